"""How fast torch trains the small VGGT in eager mode, to hold `lite3r train` beside.

    python3 tools/torch_train.py [--scenes 15] [--views 8] [--size 224] [--no-points]

The model is `vggt-small-points` of `backbones.py`'s modules with random weights and random pictures: bf16 under autocast, f32 weights, the losses
of cameras, depth and world points as `lite3r train` has them, gradients clipped, AdamW. Prints milliseconds a step (the median of 10 after 3), views a
second and the gigabytes (1e9 bytes) that tensors took at most.
"""

import argparse
import dataclasses
import time

import torch
from torch import Tensor, nn

import backbones

SMALL = backbones.Vggt(
    dim=192, heads=3, dino_depth=0, depth=6, grid=16, taps=(1, 2, 4, 5), camera_depth=1, camera_heads=6, camera_mlp_ratio=2, features=64,
    channels=(48, 96, 112, 112),
)  # fmt: skip


def dense(predicted: Tensor, confidence: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """Distances, distances weighted by a confidence that has its price, and differences between neighbours at four scales."""
    difference = (predicted - truth) * mask[..., None]
    distance, count = difference.norm(dim=-1), mask.sum().clamp(min=1)
    total = distance.sum() / count + (distance * confidence - 0.2 * confidence.log() * mask).sum() / count
    for scale in (1, 2, 4, 8):
        x, m = difference[:, :, ::scale, ::scale], mask[:, :, ::scale, ::scale]
        for axis in (2, 3):
            n = x.shape[axis]
            both = m.narrow(axis, 0, n - 1) * m.narrow(axis, 1, n - 1)
            step = (x.narrow(axis, 1, n - 1) - x.narrow(axis, 0, n - 1)).abs() * both[..., None]
            total = total + step.sum() / m.sum().clamp(min=1)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=15)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--no-points", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = backbones.VggtModel(dataclasses.replace(SMALL, points=False) if args.no_points else SMALL).cuda()
    for weight in model.parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=0.02)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)
    frames = (args.scenes, args.views, args.size, args.size)
    images, depth = torch.rand(frames[0], frames[1], 3, *frames[2:], device="cuda"), torch.rand(*frames, 1, device="cuda") + 0.5
    points, mask, pose = torch.randn(*frames, 3, device="cuda"), torch.ones(frames, device="cuda"), torch.rand(*frames[:2], 9, device="cuda")
    times = []
    for _ in range(13):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16):
            outputs = [x.float() for x in model(images)]
        loss = 5 * (outputs[0] - pose).abs().mean() + dense(outputs[1], outputs[2], depth, mask)
        if not args.no_points:
            loss = loss + dense(outputs[3], outputs[4], points, mask)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    seconds = sorted(times[3:])[5]
    views, peak = args.scenes * args.views, torch.cuda.max_memory_allocated() / 1e9
    print(f"torch {views} views\t{seconds * 1e3:.1f} ms\t{views / seconds:.0f} views/s\t{peak:.2f} GB")


if __name__ == "__main__":
    main()
