#!/usr/bin/env bash
# Runs the two smallest cases of every CUDA kernel under compute-sanitizer: memcheck, then racecheck.
#
#     tools/sanitize.sh target/release/deps/gpu-… [ROW]
#
# The first argument is what `cargo bench --bench gpu --no-run` has built; ROW is a part of the names of the rows that are
# run, all by default. SANITIZER is the tool where it does not lie on the path; it comes with the CUDA toolkit.
set -euo pipefail
program=$1
row=${2:-}
sanitizer=${SANITIZER:-$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)}
[ -x "$sanitizer" ] || { echo "compute-sanitizer was not found: install the CUDA toolkit or set SANITIZER" >&2; exit 5; }

for tool in memcheck racecheck; do
    echo "== $tool"
    # racecheck does not follow what __syncwarp orders between lanes, one of which arrives at a barrier for its warp.
    [ "$tool" = racecheck ] && export LITE3R_EVERY_LANE=1
    # Machine code comes from the cache: compiling it under the tool would take minutes.
    "$program" compile --small --only "$row"
    "$sanitizer" --tool "$tool" --error-exitcode 1 --print-limit 20 "$program" check --small --repeats 1 --only "$row"
done
