"""What precisions and devices cost in accuracy at real size: VGGT-1B and DA3-Large with seeded random weights.

    python3 tools/accuracy.py --bin target/release [--arch vggt-1b,da3-large] [--views 2] [--size 280x280]
                              [--runs cuda:sm_90a=f32,cuda:sm_90a=bf16,cuda:sm_90a=fp8]

The reference is f32 on the CPU, kept under --references and taken from there if it is there already: weights and images have the
same bits on every machine. Prints, for every run TARGET=PRECISION, the relative Frobenius error of every output. Plans take gigabytes
under --scratch while they are needed.
"""

import argparse
import pathlib
import re
import subprocess
import sys

import numpy as np

INPUTS = {"vggt-1b": "images", "da3-large": "image"}
# What a user of depth and cameras asks for.
OUTPUTS = {"vggt-1b": "pose_enc,depth,depth_conf"}


def outputs(args, arch: str, target: str, precision: str, images: pathlib.Path) -> dict[str, np.ndarray]:
    plan, result = args.scratch / "accuracy.l3r", args.scratch / "accuracy.npz"
    compile_ = [args.bin / "lite3r-compile", "--arch", arch, "--size", args.size, "--bind", f"S={args.views}", "--random-weights", "1"]
    compile_ += ["--precision", precision, "--target", target, "--quiet", "-o", plan]
    compile_ += ["--outputs", OUTPUTS[arch]] if arch in OUTPUTS else []
    subprocess.run(compile_, check=True)
    run = [args.bin / "lite3r", "run", plan, "--input", f"{INPUTS[arch]}=@{images}", "--save-outputs", result, "--quiet", "--trust"]
    subprocess.run(run, check=True)
    plan.unlink()
    with np.load(result) as archive:
        return {name: archive[name].astype(np.float64) for name in archive.files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", type=pathlib.Path, required=True)
    parser.add_argument("--arch", default="vggt-1b,da3-large")
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--size", default="280x280")
    parser.add_argument("--runs", default="cuda:sm_90a=f32,cuda:sm_90a=bf16,cuda:sm_90a=fp8")
    parser.add_argument("--references", type=pathlib.Path, default=pathlib.Path("."))
    parser.add_argument("--scratch", type=pathlib.Path, default=pathlib.Path("."))
    args = parser.parse_args()
    images = args.scratch / "accuracy.npy"
    width, height = (int(side) for side in args.size.split("x"))
    np.save(images, np.random.default_rng(1).random((1, args.views, 3, height, width), dtype=np.float32))
    for arch in args.arch.split(","):
        kept = args.references / f"{arch}-{args.size}-{args.views}.npz"
        if not kept.exists():
            np.savez(kept, **outputs(args, arch, "cpu", "f32", images))
        with np.load(kept) as archive:
            reference = {name: archive[name] for name in archive.files}
        # Commas part runs, and options within braces.
        for run in filter(None, re.split(r",(?![^{]*\})", args.runs)):
            target, precision = run.split("=", 1)
            try:
                found = outputs(args, arch, target, precision, images)
            except subprocess.CalledProcessError as error:
                print(f"{arch} {run}: {error}", file=sys.stderr)
                continue
            norm = np.linalg.norm
            errors = {name: norm((found[name] - x).ravel()) / norm(x.ravel()) for name, x in reference.items()}
            print(arch, run, *(f"{name} {error:.2e}" for name, error in errors.items()), flush=True)


if __name__ == "__main__":
    main()
