#!/usr/bin/env python3
"""export_onnx.py on stand-ins for the official packages: tiny modules with their attribute names and their obstacles."""

import contextlib
import io
import logging
import sys
import tempfile
import types
import unittest
from pathlib import Path
from unittest import mock

import onnx
import torch
from onnx import TensorProto, helper
from torch import nn

import backbones
import export_onnx
from export_onnx import ExportError

WIDTH = 16


# A stand-in for vggt


class CachedRope(nn.Module):
    def __init__(self):
        super().__init__()
        self.base_frequency = 100.0
        self.frequency_cache = {}

    def forward(self, tokens, positions):
        rows = int(positions.max()) + 1
        self.frequency_cache[rows] = positions
        return backbones.rope(tokens, positions, rows=rows)


class CachedPositions:
    def __init__(self):
        self.position_cache = {}

    def __call__(self, batch_size, height, width, device):
        if (height, width) not in self.position_cache:
            self.position_cache[height, width] = torch.cartesian_prod(torch.arange(height), torch.arange(width))
        return self.position_cache[height, width][None].expand(batch_size, -1, -1).clone()


class Dino(nn.Module):
    def __init__(self):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, 10, WIDTH))
        self.proj = nn.Conv2d(3, WIDTH, 14, stride=14)

    def interpolate_pos_encoding(self, x, w, h):
        return backbones.resized_positions(self.pos_embed, 3, size=(w // 14, h // 14), antialias=True)

    def forward(self, images):
        x = self.proj(images)
        return x.flatten(2).transpose(1, 2) + self.interpolate_pos_encoding(x, *images.shape[2:])[:, 1:]


class Aggregator(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch_embed = Dino()
        self.rope = CachedRope()
        self.position_getter = CachedPositions()
        self.block = backbones.Block(WIDTH, 1)

    def forward(self, images):
        b, s, _, height, width = images.shape
        x = self.patch_embed(images.flatten(0, 1))
        x = self.rope(x[:, None], self.position_getter(b * s, height // 14, width // 14, device=images.device))[:, 0]
        return [self.block(x.reshape(b, -1, WIDTH)).reshape(b, s, -1, WIDTH)], 0


class Camera(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(WIDTH, 9)

    def forward(self, taps):
        return [None, self.fc(taps[-1].mean(2))]


class Head(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.fc = nn.Linear(WIDTH, outputs)

    def forward(self, taps, images, patch_start_idx, frames_chunk_size=8):
        s = images.shape[1]
        if frames_chunk_size is not None and frames_chunk_size < s:
            raise AssertionError("chunks of frames are unrolled")
        utils, act = sys.modules["vggt.heads.utils"], sys.modules["vggt.heads.head_act"]
        x = taps[0][:, :, patch_start_idx:]
        x = self.fc(x + utils.make_sincos_pos_embed(WIDTH, torch.arange(x.shape[2]).float()))
        return act.inverse_log_transform(x[..., :-1]), 1 + x[..., -1].exp()


class VGGT(nn.Module):
    def __init__(self):
        super().__init__()
        self.aggregator, self.camera_head = Aggregator(), Camera()
        self.depth_head, self.point_head, self.track_head = Head(2), Head(4), nn.Linear(1, 1)

    def forward(self, images):
        taps, first = self.aggregator(images)
        out = {"pose_enc": self.camera_head(taps)[-1]}
        for name, head in (("depth", self.depth_head), ("world_points", self.point_head)):
            out[name], out[f"{name}_conf"] = head(taps, images=images, patch_start_idx=first)
        return out


def official_sincos(embed_dim, pos, omega_0=100):
    omega = 1.0 / omega_0 ** (torch.arange(embed_dim // 2, dtype=torch.double) / (embed_dim / 2.0))
    angle = torch.einsum("m,d->md", pos, omega)  # f32 by f64
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()


def official_inverse_log(y):
    return torch.sign(y) * torch.expm1(torch.abs(y))


# A stand-in for depth_anything_3


class Da3Vit(nn.Module):
    def __init__(self):
        super().__init__()
        cfg = backbones.Da3(16, 1, 4, 3, 2, 2, taps=(0, 1, 2, 3))
        self.pretrained = backbones.Da3Backbone(cfg)
        self.rope = CachedRope()

    def forward(self, x, cam_token=None, export_feat_layers=(), ref_view_strategy="saddle_balanced"):
        taps, camera = self.pretrained(x)
        taps[0] = self.rope(taps[0], torch.zeros(1, taps[0].shape[2], 2, dtype=torch.int64))
        return [(tap, camera) for tap in taps], []


class Da3Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.dpt = backbones.Dpt(32, 2, 8, (8, 8, 8, 8), vggt=False, rays=True)

    def forward(self, feats, height, width, patch_start_idx, chunk_size=8):
        b, s = feats[0][0].shape[:2]
        dense, ray = self.dpt([f[0].flatten(0, 1) for f in feats], height, width)
        dense, ray = dense.unflatten(0, (b, s)), ray.unflatten(0, (b, s))
        return {"depth": dense[..., 0], "depth_conf": dense[..., 1], "ray": ray[..., :6], "ray_conf": ray[..., 6]}


class Da3Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.head, self.cam_dec = Da3Vit(), Da3Head(), backbones.CameraDecoder(32)

    def forward(self, x, ref_view_strategy="saddle_balanced"):
        feats, _ = self.backbone(x)
        out = self.head(feats, *x.shape[-2:], patch_start_idx=0)
        del out["ray"], out["ray_conf"]
        out["extrinsics"], out["intrinsics"] = backbones.decode_cameras(self.cam_dec(feats[-1][1]), *x.shape[-2:])
        return out


def module(name: str, **contents: object) -> types.ModuleType:
    made = types.ModuleType(name)
    vars(made).update(contents)
    return made


def stand_ins() -> dict[str, types.ModuleType]:
    return {
        "vggt": module("vggt"),
        "vggt.models": module("vggt.models"),
        "vggt.models.vggt": module("vggt.models.vggt", VGGT=VGGT),
        "vggt.heads": module("vggt.heads"),
        "vggt.heads.utils": module("vggt.heads.utils", make_sincos_pos_embed=official_sincos),
        "vggt.heads.head_act": module("vggt.heads.head_act", inverse_log_transform=official_inverse_log),
        "depth_anything_3": module("depth_anything_3"),
        "depth_anything_3.registry": module("depth_anything_3.registry", MODEL_REGISTRY={"da3-small": "small"}),
        "depth_anything_3.cfg": module(
            "depth_anything_3.cfg", load_config=lambda path: path, create_object=lambda _: Da3Net()
        ),
    }


class Exporting(unittest.TestCase):
    def setUp(self):
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)
        for name, made in stand_ins().items():
            sys.modules[name] = made
            self.addCleanup(sys.modules.pop, name)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.out = Path(folder.name) / "model.onnx"

    def export(self, *words: str) -> str:
        args = export_onnx.parse([*words, "--random-weights", "1", "-o", str(self.out)])
        with contextlib.redirect_stdout(io.StringIO()) as said:
            export_onnx.run(args)
        return said.getvalue()

    def written(self) -> list[str]:
        return sorted(p.name for p in self.out.parent.iterdir())

    def test_both_exporters_follow_the_changed_vggt(self):
        for exporter in ("dynamo", "torchscript"):
            said = self.export("vggt", "--size", "28x56", "--exporter", exporter)
            self.assertIn("4 views, world_points_conf", said)
            self.assertEqual(self.written(), ["model.onnx", "model.onnx.data"])
            graph = onnx.load(self.out, load_external_data=False).graph
            places = {e.value for t in graph.initializer for e in t.external_data if e.key == "location"}
            self.assertEqual(places, {"model.onnx.data"})
            self.assertFalse({"Loop", "If"} & {node.op_type for node in graph.node})

    def test_both_exporters_follow_the_changed_da3(self):
        said = self.export("da3-small", "--size", "28x42", "--rays")
        self.assertIn("4 views, ray_conf", said)
        said = self.export("da3-small", "--size", "28x42", "--exporter", "torchscript")
        self.assertNotIn("ray", said.lower().replace("array", ""))

    def test_views_can_be_fixed_beyond_one_chunk_of_frames(self):
        said = self.export("vggt", "--size", "28x28", "--views", "9", "--opset", "23", "--no-check")
        self.assertIn("9 views", said)
        dims = onnx.load(self.out).graph.input[0].type.tensor_type.shape.dim
        self.assertEqual([d.dim_value for d in dims], [1, 9, 3, 28, 28])

    def test_unchanged_stand_ins_do_not_export(self):
        model = export_onnx.VggtExport(VGGT().eval())
        example = export_onnx.sample(model, 3, 28, 56)
        with self.assertRaisesRegex(ExportError, "cannot follow the model"):
            export_onnx.export(model, example, self.out, "dynamo", 18, symbolic=True)

    def test_everything_is_put_back(self):
        model = VGGT().eval()
        images = torch.rand(1, 3, 3, 28, 56)
        getter = model.aggregator.position_getter
        with torch.no_grad():
            before = model(images)
            with export_onnx.exportable(model, (2, 4)) as changes:
                during = model(images)
                self.assertEqual(len(changes), 5)
            after = model(images)
        for name, value in before.items():
            self.assertTrue(torch.allclose(value, during[name], atol=1e-6), name)
            self.assertTrue(torch.equal(value, after[name]), name)
        self.assertIs(model.aggregator.position_getter, getter)
        self.assertNotIn("forward", vars(model.aggregator.rope))
        self.assertIs(sys.modules["vggt.heads.utils"].make_sincos_pos_embed, official_sincos)
        self.assertIs(sys.modules["vggt.heads.head_act"].inverse_log_transform, official_inverse_log)

    def test_caches_are_emptied(self):
        model = VGGT().eval()
        caches = model.aggregator.rope.frequency_cache, model.aggregator.position_getter.position_cache
        with torch.no_grad():
            model(torch.rand(1, 2, 3, 28, 28))
        self.assertTrue(all(caches))
        with export_onnx.exportable(model, (2, 2)):
            self.assertFalse(any(caches))
            model.aggregator.rope.frequency_cache["traced"] = 0
        self.assertFalse(any(caches))

    def test_a_wrong_export_is_refused_and_leaves_nothing(self):
        with mock.patch.object(export_onnx, "signed_expm1", torch.exp):
            with self.assertRaisesRegex(ExportError, "is not the model: .*depth.* differs by"):
                self.export("vggt", "--size", "28x56")
        self.assertEqual(self.written(), [])


class Replacements(unittest.TestCase):
    def test_grid_positions(self):
        found = export_onnx.grid_positions(2, 3, 4, torch.device("cpu"))
        self.assertTrue(torch.equal(found, CachedPositions()(2, 3, 4, None)))

    def test_sincos(self):
        pos = torch.linspace(-1, 1, 7)
        self.assertTrue(torch.allclose(export_onnx.sincos_embedding(12, pos), official_sincos(12, pos), atol=1e-7))

    def test_signed_expm1(self):
        y = torch.linspace(-3, 3, 50)
        self.assertTrue(torch.allclose(export_onnx.signed_expm1(y), official_inverse_log(y), atol=1e-6))


class Refusals(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "model.onnx"

    def graph(self, views_out: int | str) -> None:
        """Claims S views and works for three."""
        make = helper.make_tensor_value_info
        nodes = [helper.make_node("Reshape", ["images", "shape"], ["depth"])]
        shape = helper.make_tensor("shape", TensorProto.INT64, [2], [1, 3])
        ends = [make("images", TensorProto.FLOAT, [1, "S"])], [make("depth", TensorProto.FLOAT, [1, views_out])]
        onnx.save(helper.make_model(helper.make_graph(nodes, "g", *ends, [shape]), ir_version=10), self.path)

    def test_a_graph_that_says_three_views(self):
        self.graph(3)
        with self.assertRaisesRegex(ExportError, "fixed number of views .depth has 3"):
            export_onnx.refuse_fixed_views(self.path)

    def test_a_graph_that_pretends_to_take_any(self):
        self.graph("S")
        export_onnx.refuse_fixed_views(self.path)
        cases = {n: (torch.ones(1, n), {"depth": torch.ones(1, n)}) for n in (3, 4)}
        with contextlib.redirect_stdout(io.StringIO()), self.assertRaisesRegex(ExportError, "does not run on 4 views"):
            export_onnx.check(self.path, "images", cases)

    def test_weights(self):
        model = nn.ModuleDict({"a": nn.Linear(2, 2)})
        path = self.path.with_suffix(".pt")
        torch.save(
            {f"model.{k}": v + 1 for k, v in model.state_dict().items()} | {"model.track_head.w": torch.ones(1)}, path
        )
        with contextlib.redirect_stdout(io.StringIO()) as said:
            export_onnx.load_weights(model, str(path))
        self.assertIn("not used", said.getvalue())
        torch.save({"a.weight": torch.ones(2, 2)}, path)
        with self.assertRaisesRegex(ExportError, "lacks 1 of the model's 2 tensors: a.bias"):
            export_onnx.load_weights(model, str(path))
        torch.save({"a.weight": torch.ones(3, 2), "a.bias": torch.ones(2)}, path)
        with self.assertRaisesRegex(ExportError, "is of another model"):
            export_onnx.load_weights(model, str(path))
        with self.assertRaisesRegex(ExportError, "no such file"):
            export_onnx.load_weights(model, "absent.pt")

    def test_missing_package(self):
        args = export_onnx.parse(["vggt", "--random-weights", "0", "-o", str(self.path)])
        with mock.patch.dict(sys.modules, {"vggt": None}), self.assertRaisesRegex(ExportError, "--package DIR"):
            export_onnx.load(args)

    def test_command_line(self):
        for words, message in (
            (["--size", "500x504"], "near are 490 and 504"),
            (["--size", "504"], "is not HEIGHTxWIDTH"),
            (["--exporter", "torchscript", "--opset", "23"], "opsets 13 to 20"),
            (["--views", "0"], "at least 1"),
            (["-o", "model.pt"], "does not end in .onnx"),
            (["-o", "absent/model.onnx"], "does not exist"),
        ):
            base = ["da3-large", "--weights", "x.pt"] + ([] if "-o" in words else ["-o", str(self.path)])
            with contextlib.redirect_stderr(io.StringIO()) as said, self.assertRaises(SystemExit):
                export_onnx.parse(base + words)
            self.assertIn(message, said.getvalue())


if __name__ == "__main__":
    unittest.main()
