"""Time and memory of VGGT-1B and DA3-Large with random weights on a CUDA device: the table of whole models in benches/README.md.

    python3 tools/bench_models.py --bin target/release [--only TEXT] [--jobs 2] [--scratch DIR]

Every row is a plan (`lite3r-compile --random-weights 1`) of one precision and attention with an entry a number of views, timed by
`lite3r bench` (transfers excluded). Prints, a line an entry: name, views, median milliseconds, gigabytes (1e9) of weights and arena,
launching steps. Plans are made in parallel and take gigabytes under --scratch while they are needed.
"""

import argparse
import concurrent.futures
import json
import pathlib
import subprocess

VGGT = ["--arch", "vggt-1b", "--size", "518x518", "--outputs", "pose_enc,depth,depth_conf"]
DA3 = ["--arch", "da3-large", "--size", "504x504"]
SPARSE = "global=sla{keep=0.1,block_q=64,block_k=64,router=pooled,form=sparse}"
CENTROIDS = "global=sla{keep=0.1,block_q=64,block_k=16,router=sub16,form=centroid}"
WIDE = "fp8{attention=none}"

# Name, what is compiled, views, precision, attention.
ROWS = [
    ("vggt fp8 dense", VGGT, "1,2,8", "fp8", None),
    ("vggt fp8 dense, attention in bf16", VGGT, "1,2,8", WIDE, None),
    ("vggt bf16 dense", VGGT, "2", "bf16", None),
    ("vggt fp8 sparse .1", VGGT, "8,32,64,100", "fp8", SPARSE),
    ("vggt fp8 sparse .1, attention in bf16", VGGT, "8,32,64,100", WIDE, SPARSE),
    ("vggt fp8 centroids .1", VGGT, "32,100", "fp8", CENTROIDS),
    ("vggt fp8 centroids .1, attention in bf16", VGGT, "32,100", WIDE, CENTROIDS),
    ("da3 fp8 dense", DA3, "2", "fp8", None),
    ("da3 fp8 dense, convolutions too", DA3, "2", "fp8{convolution=e4m3}", None),
    ("da3 fp8 sparse .1", DA3, "8,32", "fp8", SPARSE),
    ("da3 fp8 sparse .1, convolutions too", DA3, "8,32", "fp8{convolution=e4m3}", SPARSE),
    ("da3 fp8 sparse .1, attention in bf16", DA3, "8,32", WIDE, SPARSE),
]


def run(*command: object) -> str:
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


def compile_row(args, index: int) -> pathlib.Path:
    _, model, views, precision, attention = ROWS[index]
    plan = args.scratch / f"bench_models_{index}.l3r"
    rule = ["--attention", attention] if attention else []
    run(args.bin / "lite3r-compile", *model, "--bind", f"S={views}", "--random-weights", 1, "--precision", precision,
        *rule, "--target", "cuda:sm_90a", "--quiet", "-o", plan)
    return plan


def measure(args, index: int, plan: pathlib.Path) -> None:
    name, _, views, *_ = ROWS[index]
    plan_info = json.loads(run(args.bin / "lite3r", "inspect", plan, "--json"))
    for entry, count in enumerate(views.split(",")):
        runs = 20 if int(count) < 32 else 5
        bench = json.loads(run(args.bin / "lite3r", "bench", plan, "--entry", entry, "--runs", runs, "--trust", "--json"))
        memory = (plan_info["weight_bytes"] + plan_info["entries"][entry]["arena_bytes"]) / 1e9
        steps = sum(row["steps"] for row in bench["kernels"] if row["name"] != "alias")
        print(f"{name} | {count} views | {bench['seconds'] * 1e3:.2f} ms | {memory:.2f} GB | {steps} steps", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", type=pathlib.Path, required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--scratch", type=pathlib.Path, default=pathlib.Path("."))
    args = parser.parse_args()
    chosen = [index for index, row in enumerate(ROWS) if args.only in row[0]]
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        plans = [(index, pool.submit(compile_row, args, index)) for index in chosen]
        for index, plan in plans:
            try:
                measure(args, index, plan.result())
                plan.result().unlink()
            except subprocess.CalledProcessError as error:
                print(f"{ROWS[index][0]}: {error.cmd[0]} failed: {error.stderr.strip()}", flush=True)


if __name__ == "__main__":
    main()
