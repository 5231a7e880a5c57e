"""What precisions and devices cost in accuracy at real size: VGGT-1B and DA3-Large with seeded random weights.

    python3 tools/accuracy.py --bin target/release [--arch vggt-1b,da3-large] [--views 2] [--size 280x280] [--seeds 1]
                              [--runs cuda:sm_90a=f32,cuda:sm_90a=bf16,cuda:sm_90a=fp8] [--reference cpu]

The reference is f32 on the target --reference. References are kept under --references and taken from there if they are there already:
weights and images have the same bits on every machine. Every seed draws other weights and other images. Prints, for every run
TARGET=PRECISION, the relative Frobenius error of every output. Plans take gigabytes under --scratch while they are needed.
"""

import argparse
import itertools
import pathlib
import re
import subprocess
import sys

import numpy as np

INPUTS = {"vggt-1b": "images", "da3-large": "image"}
# What a user of depth and cameras asks for.
OUTPUTS = {"vggt-1b": "pose_enc,depth,depth_conf"}


def outputs(args, arch: str, seed: int, target: str, precision: str, images: pathlib.Path) -> dict[str, np.ndarray]:
    plan, result = args.scratch / "accuracy.l3r", args.scratch / "accuracy.npz"
    compile_ = [args.bin / "lite3r-compile", "--arch", arch, "--size", args.size, "--bind", f"S={args.views}"]
    compile_ += ["--random-weights", str(seed), "--precision", precision, "--target", target, "--quiet", "-o", plan]
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
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--reference", default="cpu")
    parser.add_argument("--references", type=pathlib.Path, default=pathlib.Path("."))
    parser.add_argument("--scratch", type=pathlib.Path, default=pathlib.Path("."))
    args = parser.parse_args()
    width, height = (int(side) for side in args.size.split("x"))
    for arch, seed in itertools.product(args.arch.split(","), map(int, args.seeds.split(","))):
        images = args.scratch / "accuracy.npy"
        np.save(images, np.random.default_rng(seed).random((1, args.views, 3, height, width), dtype=np.float32))
        kept = args.references / f"{arch}-{args.size}-{args.views}-{seed}.npz"
        if not kept.exists():
            np.savez(kept, **outputs(args, arch, seed, args.reference, "f32", images))
        with np.load(kept) as archive:
            reference = {name: archive[name] for name in archive.files}
        # Commas part runs, and options within braces.
        for run in filter(None, re.split(r",(?![^{]*\})", args.runs)):
            target, precision = run.split("=", 1)
            try:
                found = outputs(args, arch, seed, target, precision, images)
            except subprocess.CalledProcessError as error:
                print(f"{arch} {run}: {error}", file=sys.stderr)
                continue
            norm = np.linalg.norm
            errors = {name: norm((found[name] - x).ravel()) / norm(x.ravel()) for name, x in reference.items()}
            print(arch, f"seed {seed}", run, *(f"{name} {error:.2e}" for name, error in errors.items()), flush=True)


if __name__ == "__main__":
    main()
