#!/usr/bin/env python3
"""Runs a model in ONNX Runtime and its plan in lite3r on the same inputs and threads, and prints times and differences.

    python3 tools/compare_onnxruntime.py MODEL.onnx PLAN.l3r [--lite3r target/release/lite3r] [--threads 2] [--repeat 2]

Inputs are random numbers in 0..1, seeded. Runs alternate, and the fastest of each counts; times are those of the model alone, without
loading. Differences are relative Frobenius norms over each output. Needs numpy and onnxruntime.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--lite3r", type=Path, default=Path("target/release/lite3r"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=2)
    args = parser.parse_args()

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    session = onnxruntime.InferenceSession(args.model, options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    inputs = {i.name: rng.random(i.shape, dtype=np.float32) for i in session.get_inputs()}
    names = [o.name for o in session.get_outputs()]
    peer, ours = [], []
    with tempfile.TemporaryDirectory() as folder:
        command = [args.lite3r, "run", args.plan, "--json", "--quiet", "--threads", str(args.threads)]
        for name, value in inputs.items():
            path = Path(folder) / f"{name}.npy"
            np.save(path, value)
            command += ["--input", f"{name}=@{path}"]
        saved = Path(folder) / "outputs.npz"
        for _ in range(args.repeat):
            start = time.perf_counter()
            want = session.run(names, inputs)
            peer.append(time.perf_counter() - start)
            done = subprocess.run([*command, "--save-outputs", saved], check=True, capture_output=True, text=True)
            ours.append(json.loads(done.stdout)["seconds"])
        got = np.load(saved)
        worst = 0.0
        for name, value in zip(names, want):
            if name not in got:
                continue
            error = np.linalg.norm(got[name].astype(np.float64) - value) / np.linalg.norm(value.astype(np.float64))
            worst = max(worst, float(error))
            print(f"{name:24} {error:.2e}")
    print(f"ONNX Runtime {onnxruntime.__version__}: {min(peer):.2f} s, lite3r: {min(ours):.2f} s, {args.threads} threads")
    print(f"ratio {min(ours) / min(peer):.2f}, largest difference {worst:.2e}")


if __name__ == "__main__":
    main()
