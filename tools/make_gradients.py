#!/usr/bin/env python3
"""Makes tests/fixtures/gradients: losses of the tiny backbones and their gradients by torch's autograd, in f64.

    python3 -m venv VENV && VENV/bin/pip install torch==2.15.0 numpy safetensors
    VENV/bin/python tools/make_gradients.py               # both, some seconds

The models are those of backbones.py with the weights in tests/fixtures/weights. The losses are written here from the
papers, with torch's operations alone, so that nothing is shared with what they are compared to. Each file holds

    in.NAME      images and targets, f32, as a training step takes them
    weight.LOSS  how much a loss counts, f64
    loss.LOSS    each loss alone, f64; `loss` is their weighted sum
    grad.NAME    the gradient of that sum by every parameter that it depends on, computed in f64, stored in f32

Facts: Wang et al., "VGGT: Visual Geometry Grounded Transformer", 2025; Lin et al., "Depth Anything 3", 2025.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import backbones
from backbones import Da3, Vggt

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"

Tensors = dict[str, Tensor]

VIEWS, HEIGHT, WIDTH = 3, 28, 42


# Losses


def camera_loss(rounds: list[Tensor], truth: Tensor) -> Tensor:
    """L1 on translations, quaternions and, by half, fields of view; a round counts 0.6 of the one after it."""
    total = 0.0
    for i, pose in enumerate(reversed(rounds)):
        error = (pose - truth).abs()
        parts = error[..., :3].clamp(max=100).mean() + error[..., 3:7].mean() + 0.5 * error[..., 7:].mean()
        total = total + 0.6**i * parts
    return total / len(rounds)


def dense_loss(predicted: Tensor, confidence: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """Distances, distances by confidence less 0.2 of its logarithm, and differences of neighbours at four scales.

    `predicted` and `truth` are [1, S, H, W, C], `confidence` and `mask` (bool) [1, S, H, W].
    """
    distance = (predicted - truth).norm(dim=-1)[mask]
    known = confidence[mask]
    total = distance.mean() + (distance * known - 0.2 * known.log()).mean()
    for step in (1, 2, 4, 8):
        error = (predicted - truth)[:, :, ::step, ::step]
        valid = mask[:, :, ::step, ::step]
        for axis in (2, 3):
            n = valid.shape[axis]
            both = valid.narrow(axis, 0, n - 1) & valid.narrow(axis, 1, n - 1)
            slope = error.diff(dim=axis).abs().sum(-1)
            total = total + slope[both].sum() / valid.sum()
    return total


def ray_loss(predicted: Tensor, confidence: Tensor, truth: Tensor) -> Tensor:
    """The l1 norm of every ray's error by its confidence less 0.2 of its logarithm, a mean over rays."""
    distance = (predicted - truth).abs().sum(-1)
    return (distance * confidence - 0.2 * confidence.log()).mean()


def pose_loss(predicted: Tensor, truth: Tensor) -> Tensor:
    """The l1 norm of the error of every camera's nine numbers, a mean over cameras."""
    return (predicted - truth).abs().sum(-1).mean()


# Models


def vggt(model: backbones.VggtModel, given: Tensors) -> Tensors:
    aggregator, images = model.aggregator, given["images"]
    tokens = aggregator(images)[-1][:, :, 0]
    rounds = [model.camera_head(tokens, refinements=n) for n in (1, 2, 3, 4)]
    pose, depth, depth_conf, points, points_conf = model(images)
    assert torch.equal(rounds[-1], pose)
    mask = given["target.mask"] > 0
    return {
        "camera": camera_loss(rounds, given["target.pose_enc"]),
        "depth": dense_loss(depth, depth_conf, given["target.depth"], mask),
        "points": dense_loss(points, points_conf, given["target.points"], mask),
    }


def da3(model: backbones.Da3Model, given: Tensors) -> Tensors:
    depth, depth_conf, ray, ray_conf, *_ = model(given["image"])
    pose = model.cam_dec(model.backbone.pretrained(given["image"])[1])
    truth, mask = given["target.depth"][..., None], given["target.mask"] > 0
    return {
        "depth": dense_loss(depth[..., None], depth_conf, truth, mask),
        "rays": ray_loss(ray, ray_conf, given["target.ray"]),
        "pose": pose_loss(pose, given["target.pose"]),
    }


# What they are given: no scene, only numbers of the right kind


def given(model: str) -> Tensors:
    """The mask leaves out a block of every view and single pixels, so that neighbours are missing on every side."""
    g = torch.Generator().manual_seed(17)
    image = (1, VIEWS, HEIGHT, WIDTH)
    mask = (torch.rand(image, generator=g) > 0.1).float()
    mask[..., 5:11, 20:30] = 0.0
    quaternion = torch.nn.functional.normalize(torch.randn(1, VIEWS, 4, generator=g), dim=-1)
    translation = torch.randn(1, VIEWS, 3, generator=g)
    pose = torch.cat([translation, quaternion, 0.5 + torch.rand(1, VIEWS, 2, generator=g)], dim=-1)
    depth = 0.5 + torch.rand(image, generator=g)
    points = torch.randn(*image, 3, generator=g)
    pictures = torch.rand(1, VIEWS, 3, HEIGHT, WIDTH, generator=g)
    ray = torch.randn(1, VIEWS, HEIGHT * 4 // 7, WIDTH * 4 // 7, 6, generator=g)
    if model == "vggt":
        targets = {"pose_enc": pose, "depth": depth[..., None], "points": points, "mask": mask}
        return {"images": pictures} | {f"target.{name}": value for name, value in targets.items()}
    targets = {"pose": pose, "depth": depth, "ray": ray, "mask": mask}
    return {"image": 4 * pictures - 2} | {f"target.{name}": value for name, value in targets.items()}


MODELS = {
    "vggt": (Vggt, "", vggt, {"camera": 5.0, "depth": 1.0, "points": 0.75}),
    "da3": (Da3, "model.", da3, {"depth": 1.0, "rays": 0.75, "pose": 0.5}),
}


def model(name: str, kind: type[Vggt] | type[Da3], prefix: str) -> nn.Module:
    sizes = json.loads((FIXTURES / "weights" / f"{name}_tiny.json").read_text())
    sizes = {key: tuple(value) if isinstance(value, list) else value for key, value in sizes.items()}
    made = backbones.build(kind(**sizes))
    weights = load_file(FIXTURES / "weights" / f"{name}_tiny.safetensors")
    made.load_state_dict({key.removeprefix(prefix): value for key, value in weights.items()})
    return made.double()


def record(name: str) -> Path:
    kind, prefix, losses_of, weights = MODELS[name]
    made, inputs = model(name, kind, prefix), given(name)
    losses = losses_of(made, {key: value.double() for key, value in inputs.items()})
    total = sum(weights[key] * value for key, value in losses.items())
    total.backward()
    file = {f"in.{key}": value for key, value in inputs.items()}
    file |= {f"weight.{key}": torch.tensor(value, dtype=torch.float64) for key, value in weights.items()}
    file |= {f"loss.{key}": value.detach() for key, value in losses.items()} | {"loss": total.detach()}
    # One norm is shared by all ray levels, of which only the last is computed: it goes by that name.
    named = ((key.replace("_aux.0.2.", "_aux.3.2."), p) for key, p in made.named_parameters())
    gradients = {key: p.grad for key, p in named if p.grad is not None}
    file |= {f"grad.{key}": value.float() for key, value in gradients.items()}
    if not all(value.isfinite().all() for value in file.values()):
        raise SystemExit(f"{name}: a recorded number is not finite")
    path = FIXTURES / "gradients" / f"{name}_tiny.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in file.items()}, path)
    print(f"{path.name}: {len(gradients)} gradients, {path.stat().st_size / 1e3:.0f} kB", end="; ")
    print(", ".join(f"{key} {value.item():.6f}" for key, value in losses.items()), flush=True)
    return path


def main() -> int:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("models", nargs="*", default=list(MODELS), help="vggt, da3 (default: both)")
    args = cli.parse_args()
    torch.set_num_threads(2)
    for name in args.models:
        record(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
