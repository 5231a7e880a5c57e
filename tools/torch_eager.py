"""Latency and memory of torch in eager mode on VGGT-1B and DA3-Large, camera and depth, to hold lite3r's beside.

    python3 tools/torch_eager.py [--views 2]

The models are those of `backbones.py`: the structure of the published ones, random weights, torch's own attention. bf16 means
weights of bf16 under autocast. Prints one line a model and precision: name, precision, views, median milliseconds of 10 runs
after 3, and the gigabytes (1e9 bytes) that tensors took at most, weights included.
"""

import argparse
import dataclasses

import torch

import backbones

SIZES = {"vggt-1b": 518, "da3-large": 504}


def milliseconds(call, runs: int) -> float:
    times = []
    for _ in range(runs):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times)[len(times) // 2]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--views", type=int, default=2)
    views = parser.parse_args().views
    for name, size in SIZES.items():
        cfg = backbones.ARCHITECTURES[name]
        if name == "vggt-1b":
            cfg = dataclasses.replace(cfg, points=False)
        else:
            cfg = dataclasses.replace(cfg, pose_encoder=False)
        for dtype in (torch.float32, torch.bfloat16):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            with torch.device("cuda"):
                model = backbones.build(cfg).to(dtype)
            images = torch.rand(1, views, 3, size, size, device="cuda")
            with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16):
                milliseconds(lambda: model(images), 3)
                torch.cuda.reset_peak_memory_stats()
                ms = milliseconds(lambda: model(images), 10)
            peak = torch.cuda.max_memory_allocated() / 1e9
            print(f"{name}\t{str(dtype)[6:]}\t{views} views\t{ms:.1f} ms\t{peak:.2f} GB", flush=True)
            del model


if __name__ == "__main__":
    main()
