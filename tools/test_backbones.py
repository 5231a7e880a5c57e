#!/usr/bin/env python3
"""Holds the definitions of backbones.py against recorded outputs of the official models.

    python3 -m unittest discover tools

The recordings are optional: a folder of exported models, LITE3R_SHARED or ../shared beside the repository.
"""

import math
import os
import unittest
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper

import backbones

ROOT = Path(__file__).resolve().parent.parent
EXPORTS = Path(os.environ.get("LITE3R_SHARED", ROOT.parent / "shared")) / "onnx"


def recording(*parts: str) -> Path:
    path = EXPORTS.joinpath(*parts)
    if not path.exists():
        raise unittest.SkipTest(f"skipped: no exported models at {path}")
    return path


def named_weights(path: Path) -> dict[str, np.ndarray]:
    """Initialisers by name, with the renamed and transposed matrices of linear layers put back under their names."""
    graph = onnx.load(path).graph
    values = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    producer = {out: node for node in graph.node for out in node.output}
    for node in graph.node:
        if node.op_type != "Add":
            continue
        bias = next((i for i in node.input if i.endswith(".bias")), None)
        matmul = next((producer[i] for i in node.input if i in producer and producer[i].op_type == "MatMul"), None)
        if bias and matmul is not None and matmul.input[1] in values:
            values[bias.removesuffix("bias") + "weight"] = values[matmul.input[1]].T
    return values


def load(
    model: torch.nn.Module, values: dict[str, np.ndarray], given: dict[str, np.ndarray], optional: set[str]
) -> None:
    state = model.state_dict()
    values = {name.removeprefix("net."): value for name, value in values.items()} | given
    missing = [name for name in state if name not in values and name not in optional]
    assert not missing, f"no recorded value for {missing}"
    for name in state:
        if name in values:
            state[name].copy_(torch.from_numpy(np.array(values[name])).reshape(state[name].shape))


def errors(names: list[str], results: tuple[torch.Tensor, ...], folder: Path) -> dict[str, float]:
    """Relative Frobenius error of every output against its recording."""
    out = {}
    for name, result in zip(names, results):
        want = np.load(folder / f"out_{name}.npy").astype(np.float64)
        out[name] = float(np.linalg.norm(result.numpy() - want) / np.linalg.norm(want))
    return out


class Recorded(unittest.TestCase):
    def close(self, found: dict[str, float], limit: float = 1e-5) -> None:
        print("\n ", ", ".join(f"{name} {error:.1e}" for name, error in found.items()))
        self.assertLess(max(found.values()), limit)

    @torch.no_grad()
    def test_vggt(self):
        folder = recording("tiny_vggt_a_dyn23")
        values = named_weights(folder / "model.onnx")
        traced = named_weights(recording("tiny_vggt_a_ts17") / "model.onnx")
        special = [traced[f"onnx::Expand_{i}"] for i in (5523, 5535, 5551, 5563)]
        given = {
            "aggregator.patch_embed.cls_token": values["expand"][:1],
            "aggregator.patch_embed.register_tokens": values["expand_1"][:1],
            "aggregator.camera_token": np.concatenate(special[:2], axis=1),
            "aggregator.register_token": np.concatenate(special[2:], axis=1),
            "camera_head.empty_pose_tokens": traced["camera_head.empty_pose_tokens"],
        }
        model = backbones.build(backbones.ARCHITECTURES["tiny_vggt_a"])
        load(model, values, given, optional={"aggregator.patch_embed.mask_token"})
        images = torch.from_numpy(np.load(folder / "in_images.npy"))
        self.close(errors(model.outputs, model(images), folder))

    @torch.no_grad()
    def test_da3(self):
        folder = recording("tiny_da3_b_dyn23")
        values = named_weights(folder / "model.onnx")
        given = {
            "backbone.pretrained.cls_token": values["view_2"][:1],
            "backbone.pretrained.camera_token": values["val_293"][0, :2, 0],
        }
        model = backbones.build(backbones.ARCHITECTURES["tiny_da3_b"])
        unused = {name for name in model.state_dict() if "_aux.0." in name or "_aux.1." in name or "_aux.2." in name}
        load(model, values, given, optional=unused | {"backbone.pretrained.pos_embed"})
        positions = torch.from_numpy(np.array(values["cat_1"]))  # the recording holds the resized table only
        model.backbone.pretrained._positions = lambda rows, cols: positions
        image = torch.from_numpy(np.load(folder / "in_image.npy"))
        self.close(errors(model.outputs, model(image), folder))

    def test_position_tables(self):
        for name, rows, cols, antialias in (
            ("posembed_bicubic_aa_37to28x37_dyn18", 28, 37, True),
            ("posembed_bicubic_aa_37to46x52_dyn18", 46, 52, True),
            ("posembed_bicubic_scale_37to27x36_dyn18", 27, 36, False),
        ):
            folder = recording("ops", name)
            square = torch.from_numpy(np.load(folder / "in_x0.npy"))
            table = torch.cat([torch.zeros(1, 1, 8), square.flatten(2).transpose(1, 2)], dim=1)
            how = {"size": (rows, cols)} if antialias else {"scale_factor": ((rows + 0.1) / 37, (cols + 0.1) / 37)}
            found = backbones.resized_positions(table, 37, antialias=antialias, **how)[:, 1:]
            found = found.transpose(1, 2).unflatten(2, (rows, cols))
            self.close(errors(["y"], (found,), folder), 1e-6)

    def test_rotation_tables(self):
        folder = recording("ops", "rope2d_hd64_posinput_dyn18")
        found = backbones.rope(*(torch.from_numpy(np.load(folder / f"in_x{i}.npy")) for i in range(2)))
        self.close(errors(["y"], (found,), folder), 1e-6)


class Sizes(unittest.TestCase):
    def test_parameter_counts(self):
        with torch.device("meta"):
            for name, count in (
                ("vggt-1b", 1_190_596_120),
                ("da3-small", 34_299_463),
                ("da3-base", 135_366_599),
                ("da3-large", 410_941_767),
            ):
                model = backbones.build(backbones.ARCHITECTURES[name])
                self.assertEqual(sum(p.numel() for p in model.parameters()), count, name)

    def test_orders_are_inverse(self):
        for s in (3, 5, 8):
            for first in range(s):
                reference = torch.tensor([first])
                order = backbones.to_front(reference, s)
                self.assertEqual(order[0, 0], first)
                back = torch.gather(order, 1, backbones.from_front(reference, s))
                self.assertEqual(back[0].tolist(), list(range(s)))

    def test_rope_keeps_lengths_and_depends_on_offsets(self):
        g = torch.Generator().manual_seed(0)
        q, k = (torch.randn(1, 2, 1, 32, generator=g) for _ in range(2))
        at = lambda x, r, c: backbones.rope(x, torch.tensor([[[r, c]]]))
        self.assertTrue(torch.allclose(at(q, 5, 9).norm(dim=-1), q.norm(dim=-1), atol=1e-5))
        near = (at(q, 1, 2) * at(k, 4, 3)).sum(-1)
        far = (at(q, 11, 22) * at(k, 14, 23)).sum(-1)
        self.assertTrue(torch.allclose(near, far, atol=1e-4))

    def test_plane_embedding_corner(self):
        plane = backbones.plane_embedding(8, 3, 4, aspect=1.5, double=True, device=torch.device("cpu"))
        x = 1.5 / math.sqrt(3.25) * 3 / 4
        self.assertAlmostEqual(plane[0, 0, 3].item(), math.sin(x), places=6)
        self.assertAlmostEqual(plane[3, 0, 3].item(), math.cos(x / 10), places=6)


if __name__ == "__main__":
    unittest.main()
