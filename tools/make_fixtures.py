#!/usr/bin/env python3
"""Makes tests/fixtures: small exported models with inputs and recorded outputs, from this project's own definitions.

    python3 -m venv VENV && VENV/bin/pip install torch==2.9.1 onnx==1.23.2 onnxscript==0.7.2 onnxruntime numpy
    VENV/bin/python tools/make_fixtures.py                # everything, about a minute
    VENV/bin/python tools/make_fixtures.py 'da3_*'        # only the folders that match

Writes tests/fixtures/onnx/NAME/{model.onnx,in_X.npy,out_Y.npy}; further cases of a symbolic dimension are in_S3_X.npy and
out_S3_Y.npy. Outputs come from torch or NumPy in the precision of the model and are checked against ONNX Runtime before
anything is written; the largest relative Frobenius error of a fixture is printed. Weights are seeded by name.
tests/fixtures/weights holds the weights of the two backbones under their published names, and their sizes.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import json
import logging
import shutil
import struct
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F

import backbones
from backbones import Da3, Vggt

OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures"

VGGT = Vggt(
    dim=32, heads=1, dino_depth=1, depth=2, grid=3, mlp_ratio=2, taps=(0, 0, 1, 1), camera_depth=1, camera_heads=2,
    camera_mlp_ratio=1, features=8, channels=(8, 8, 16, 16),
)  # fmt: skip
DA3 = Da3(
    dim=64, heads=2, depth=4, grid=5, alt_start=2, mlp_ratio=0.5, taps=(2, 2, 3, 3), features=8, channels=(8, 8, 16, 16)
)

Arrays = dict[str, np.ndarray]
FIXTURES: dict[str, tuple[str, Callable[[], Fixture]]] = {}


@dataclasses.dataclass
class Fixture:
    """A model, its cases as (label, inputs, outputs), and the relative error allowed between torch and ONNX Runtime."""

    model: onnx.ModelProto
    cases: list[tuple[str, Arrays, Arrays]]
    tolerance: float = 2e-5
    external: bool = False
    """Whether `Tensor`s marked by `outside` move to model.onnx.data."""


def fixture(name: str, what: str):
    def register(make):
        FIXTURES[name] = (what, make)
        return make

    return register


# Writing and checking


def write(name: str, made: Fixture) -> float:
    folder = OUT / "onnx" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for node in made.model.graph.node:
        kept = [p for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    for message in (*made.model.graph.value_info, *made.model.graph.initializer):
        del message.metadata_props[:]
    path = folder / "model.onnx"
    path.write_bytes(made.model.SerializeToString(deterministic=True))
    if made.external:
        move_outside(path)
    onnx.checker.check_model(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    worst = 0.0
    for label, inputs, outputs in made.cases:
        if names != list(outputs):
            raise SystemExit(f"{name}: the model's outputs are {names}, recorded are {list(outputs)}")
        for (key, want), got in zip(outputs.items(), session.run(None, inputs)):
            if want.shape != got.shape or want.dtype != got.dtype:
                raise SystemExit(f"{name} {label}{key}: {got.dtype}{got.shape}, torch gives {want.dtype}{want.shape}")
            worst = max(worst, relative_error(got, want))
        for kind, arrays in (("in", inputs), ("out", outputs)):
            for key, value in arrays.items():
                np.save(folder / f"{kind}_{label}{key}.npy", value)
    if not worst <= made.tolerance:
        raise SystemExit(f"{name}: ONNX Runtime differs by {worst:.1e}, allowed is {made.tolerance:.0e}")
    return worst


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    got, want = got.astype(np.float64), want.astype(np.float64)
    if not np.isfinite(want).all():
        raise SystemExit("a recorded output is not finite")
    return float(np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30))


def move_outside(path: Path) -> None:
    """Moves every tensor whose doc string is "outside", in initialisers and in attributes, to model.onnx.data."""
    model = onnx.load(path)
    tensors = [*model.graph.initializer, *(a.t for node in model.graph.node for a in node.attribute if a.HasField("t"))]
    with open(path.with_name("model.onnx.data"), "wb") as data:
        for t in tensors:
            if t.doc_string != "outside":
                continue
            t.ClearField("doc_string")
            data.write(b"\0" * (-data.tell() % 64))
            where = {"location": "model.onnx.data", "offset": data.tell(), "length": len(t.raw_data)}
            data.write(t.raw_data)
            t.ClearField("raw_data")
            t.data_location = TensorProto.EXTERNAL
            t.external_data.extend(onnx.StringStringEntryProto(key=k, value=str(v)) for k, v in where.items())
    path.write_bytes(model.SerializeToString(deterministic=True))


def save_weights(name: str, model: nn.Module, prefix: str, cfg: Vggt | Da3) -> None:
    """A safetensors file (https://github.com/huggingface/safetensors, "Format") of half-precision values."""
    header, blobs, at = {}, [], 0
    for key, value in model.state_dict().items():
        blobs.append(value.numpy().astype("<f2").tobytes())
        header[prefix + key] = {"dtype": "F16", "shape": list(value.shape), "data_offsets": [at, at + len(blobs[-1])]}
        at += len(blobs[-1])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder = OUT / "weights"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))
    (folder / f"{name}.json").write_text(json.dumps(dataclasses.asdict(cfg), indent=2) + "\n")


# Exporting


def random(*shape: int, seed: int = 0, low: float | None = None) -> torch.Tensor:
    g = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(shape, generator=g) if low is None else torch.rand(shape, generator=g) + low


def export(
    model: nn.Module, inputs: dict[str, torch.Tensor], outputs: list[str], flavour: str, views: bool = False
) -> onnx.ModelProto:
    """`flavour` is ts<opset> (TorchScript) or dyn<opset> (torch.export). `views`: dimension 1 of the first input is S."""
    scripted, opset = flavour.startswith("ts"), int(flavour.lstrip("tsdyn"))
    first = next(iter(inputs))
    how = dict(input_names=list(inputs), output_names=outputs, opset_version=opset, dynamo=not scripted)
    path = OUT / "export.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    if scripted:
        how |= {"dynamic_axes": {name: {1: "S"} for name in (first, *outputs)}} if views else {}
    else:
        how |= {"dynamic_shapes": ({1: torch.export.Dim("S", min=3, max=64)},)} if views else {}
        how |= {"external_data": False, "verbose": False}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(model, tuple(inputs.values()), str(path), **how)
        made = onnx.load(path)
    finally:
        path.unlink(missing_ok=True)
    domains = {d.domain: d.version for d in made.opset_import}
    if domains.get("") != opset:
        raise SystemExit(f"asked for opset {opset}, the exporter wrote {domains}")
    return made


def exported(
    model: nn.Module, inputs: dict[str, torch.Tensor], outputs: list[str], flavour: str, tolerance: float = 2e-5
) -> Fixture:
    model = model.eval()
    made = export(model, inputs, outputs, flavour)
    return Fixture(made, [("", as_numpy(inputs), run(model, inputs, outputs))], tolerance)


@torch.no_grad()
def run(model: nn.Module, inputs: dict[str, torch.Tensor], outputs: list[str]) -> Arrays:
    results = model(*inputs.values())
    results = results if isinstance(results, tuple) else (results,)
    return as_numpy(dict(zip(outputs, results, strict=True)))


def as_numpy(tensors: dict[str, torch.Tensor]) -> Arrays:
    return {name: t.detach().contiguous().numpy() for name, t in tensors.items()}


# Backbones


def images(s: int, height: int, width: int, centred: bool = False) -> torch.Tensor:
    """Smooth random views in 0..1, each different, or around 0 where the model wants normalised images."""
    g = torch.Generator().manual_seed(s)
    coarse = torch.randn(s, 3, 4, 4, generator=g) + 0.3 * torch.randn(s, 3, 1, 1, generator=g)
    fine = F.interpolate(coarse, size=(height, width), mode="bicubic") + 0.1 * torch.randn(
        s, 3, height, width, generator=g
    )
    return (fine if centred else (0.5 + 0.2 * fine).clamp(0, 1))[None]


def vggt() -> nn.Module:
    model = backbones.randomise(backbones.build(VGGT), seed=1)
    save_weights("vggt_tiny", model, "", VGGT)
    return model


def da3() -> nn.Module:
    model = backbones.randomise(backbones.build(DA3), seed=DA3_SEED)
    save_weights("da3_tiny", model, "model.", DA3)
    return model


DA3_SEED = 8  # chosen so that the reference view differs between the recorded cases and wins by a clear margin


def backbone(model: nn.Module, flavour: str, views: list[int], height: int, width: int) -> Fixture:
    """The first of `views` is traced; more than one makes S symbolic."""
    centred = isinstance(model, backbones.Da3Model)
    name = "image" if centred else "images"
    inputs = {s: {name: images(s, height, width, centred)} for s in views}
    made = export(model, inputs[views[0]], model.outputs, flavour, views=len(views) > 1)
    cases = [("", as_numpy(inputs[views[0]]), run(model, inputs[views[0]], model.outputs))]
    cases += [(f"S{s}_", as_numpy(inputs[s]), run(model, inputs[s], model.outputs)) for s in views[1:]]
    return Fixture(made, cases)


@fixture("vggt_ts17", "VGGT, TorchScript, two views of 42x42 (position grid as it is)")
def _():
    return backbone(vggt(), "ts17", [2], 42, 42)


@fixture("vggt_s_dyn18", "VGGT, torch.export, symbolic views, 28x42 (antialiased position grid)")
def _():
    return backbone(vggt(), "dyn18", [3, 2, 5], 28, 42)


@fixture("vggt_dyn23", "VGGT, torch.export, Attention and Gelu operators, two views of 42x28")
def _():
    return backbone(vggt(), "dyn23", [2], 42, 28)


@fixture("vggt_f16_ts17", "the same VGGT in half precision; recorded are the f32 results, rounded")
def _():
    model = vggt()
    inputs = {"images": images(2, 42, 42).half()}
    recorded = run(model, {"images": inputs["images"].float()}, model.outputs)
    made = export(model.half(), inputs, model.outputs, "ts17")
    return Fixture(made, [("", as_numpy(inputs), {k: v.astype(np.float16) for k, v in recorded.items()})], 3e-2)


@fixture("da3_s_ts17", "DA3, TorchScript, symbolic views, 28x42; the reference view changes with S")
def _():
    return backbone(da3(), "ts17", [4, 3], 28, 42)


@fixture("da3_s_dyn23", "DA3, torch.export, Attention and Gelu operators, symbolic views, 42x28")
def _():
    return backbone(da3(), "dyn23", [4, 3], 42, 28)


# Single constructs, exported


class Lambda(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, *xs):
        return self.f(*xs)


def heads(lengths: tuple[int, int, int] = (12, 12, 12), width: int = 32) -> dict[str, torch.Tensor]:
    return {name: random(1, 2, n, width, seed=i) for i, (name, n) in enumerate(zip("qkv", lengths))}


for _flavour in ("ts17", "dyn18", "dyn23"):

    @fixture(f"op_attention_{_flavour}", "scaled_dot_product_attention, 10 queries on 12 keys")
    def _(flavour=_flavour):
        return exported(Lambda(F.scaled_dot_product_attention), heads((10, 12, 12)), ["y"], flavour)

    @fixture(f"op_attention_naive_{_flavour}", "(q kT) s and (q s) kT with softmax in the open")
    def _(flavour=_flavour):
        def both(q, k, v):
            after = ((q @ k.transpose(-2, -1)) * 0.125).softmax(-1) @ v
            before = ((q * 0.25) @ k.transpose(-2, -1)).softmax(-1) @ v
            return after, before

        return exported(Lambda(both), heads(), ["after", "before"], flavour)

    @fixture(f"op_activations_{_flavour}", "GELU exact and tanh, SiLU, ReLU, sigmoid, 1 + exp")
    def _(flavour=_flavour):
        def f(x):
            return F.gelu(x), F.gelu(x, approximate="tanh"), F.silu(x), F.relu(x), x.sigmoid(), 1 + x.exp()

        return exported(
            Lambda(f), {"x": 2 * random(2, 5, 16)}, ["gelu", "gelu_tanh", "silu", "relu", "sigmoid", "exp1"], flavour
        )

    @fixture(f"op_block_{_flavour}", "one frame block: q/k norm, RoPE, LayerScale, positions as an input")
    def _(flavour=_flavour):
        block = backbones.randomise(backbones.Block(64, 2, ratio=1, qk_norm=True))
        grid = backbones.patch_positions(2, 3, 2, torch.device("cpu"))[None].repeat(2, 1, 1)
        return exported(block, {"x": random(2, 8, 64), "positions": grid}, ["y"], flavour)


class Norms(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(32, eps=1e-6)
        self.bare = nn.LayerNorm(32, elementwise_affine=False)
        backbones.randomise(self)

    def forward(self, x):
        return self.norm(x), self.bare(x)


for _flavour in ("ts13", "ts17", "dyn18"):

    @fixture(f"op_layer_norm_{_flavour}", "LayerNorm with and without weights (before opset 17 decomposed)")
    def _(flavour=_flavour):
        return exported(Norms(), {"x": 3 * random(2, 5, 32) + 1}, ["affine", "bare"], flavour)


for _flavour in ("ts17", "dyn18"):

    @fixture(
        f"op_resize_{_flavour}", "bilinear with aligned corners by size, twice and to odd sizes; bicubic by scales"
    )
    def _(flavour=_flavour):
        def f(x):
            even = F.interpolate(x, size=(8, 10), mode="bilinear", align_corners=True)
            odd = F.interpolate(x, size=(7, 13), mode="bilinear", align_corners=True)
            cubic = F.interpolate(x, scale_factor=(3.1 / 4, 6.1 / 5), mode="bicubic", align_corners=False)
            return even, odd, cubic

        return exported(Lambda(f), {"x": random(1, 3, 4, 5)}, ["even", "odd", "cubic"], flavour)

    @fixture(f"op_convolutions_{_flavour}", "patch convolution, strided 3x3, transposed with kernel = stride 2 and 4")
    def _(flavour=_flavour):
        class Convolutions(nn.Module):
            def __init__(self):
                super().__init__()
                self.patch = nn.Conv2d(3, 8, 14, stride=14)
                self.down = nn.Conv2d(8, 6, 3, stride=2, padding=1)
                self.up2 = nn.ConvTranspose2d(8, 5, 2, stride=2)
                self.up4 = nn.ConvTranspose2d(8, 4, 4, stride=4, bias=False)
                backbones.randomise(self)

            def forward(self, x):
                p = self.patch(x)
                return p, self.down(p), self.up2(p), self.up4(p)

        return exported(Convolutions(), {"x": random(1, 3, 42, 70)}, ["patch", "down", "up2", "up4"], flavour)

    @fixture(f"op_indexing_{_flavour}", "token overwrite, view permutation, diagonal writes, gather by index")
    def _(flavour=_flavour):
        def f(x, order, token):
            y = x.clone()
            y[:, :, 0] = token
            views = backbones.take_views(x, order)
            k = torch.zeros(1, 3, 3, 3)
            k[..., 0, 0] = x[:, :, 0, 0]
            k[..., 1, 1] = 2.0
            return y, views, k, torch.gather(x, 1, order[:, :, None, None].expand(-1, -1, 4, 5)), x[:, -1], x[..., 1::2]

        inputs = {"x": random(1, 3, 4, 5), "order": torch.tensor([[2, 0, 1]]), "token": random(1, 3, 5, seed=1)}
        return exported(Lambda(f), inputs, ["token_set", "views", "k", "gathered", "last", "odd"], flavour)

    @fixture(f"op_pose_{_flavour}", "pose encodings to world-to-camera matrices and intrinsics")
    def _(flavour=_flavour):
        decode = Lambda(lambda pose: backbones.decode_cameras(pose, 42, 56))
        return exported(decode, {"pose": 0.4 + 0.3 * random(1, 3, 9)}, ["extrinsics", "intrinsics"], flavour)


@fixture("op_resize_antialias_dyn18", "bicubic with antialiasing, down and up")
def _():
    def f(x):
        how = dict(mode="bicubic", antialias=True, align_corners=False)
        return F.interpolate(x, size=(4, 7), **how), F.interpolate(x, size=(8, 11), **how)

    return exported(Lambda(f), {"x": random(1, 3, 7, 7)}, ["down", "up"], "dyn18")


# Single constructs, written by hand


def value(name: str, x: np.ndarray) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)


def by_hand(
    opset: int, nodes, inputs: Arrays, outputs: Arrays, weights: Arrays | list = (), tolerance=2e-5, external=False
) -> Fixture:
    stored = (
        [numpy_helper.from_array(x, name) for name, x in weights.items()]
        if isinstance(weights, dict)
        else list(weights)
    )
    inside = {k: value(k, v) for k, v in inputs.items()}, {k: value(k, v) for k, v in outputs.items()}
    graph = helper.make_graph(nodes, "fixture", list(inside[0].values()), list(inside[1].values()), stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8 if opset < 20 else 10)
    return Fixture(model, [("", inputs, outputs)], tolerance, external)


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return random(*shape, seed=seed).numpy()


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@fixture(
    "op_attention_scale_23", "Attention with its scale as an attribute, and with the default, 10 queries on 12 keys"
)
def _():
    x = as_numpy(heads((10, 12, 12)))
    want = {
        name: softmax(x["q"] @ x["k"].swapaxes(-1, -2) * s) @ x["v"]
        for name, s in (("given", 0.3), ("default", 32**-0.5))
    }
    nodes = [
        helper.make_node("Attention", ["q", "k", "v"], ["given"], scale=0.3),
        helper.make_node("Attention", ["q", "k", "v"], ["default"]),
    ]
    return by_hand(23, nodes, x, want)


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, interleaved: bool) -> np.ndarray:
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else np.split(x, 2, axis=-1)
    y = a * cos - b * sin, b * cos + a * sin
    return np.stack(y, -1).reshape(x.shape) if interleaved else np.concatenate(y, -1)


@fixture("op_rotary_23", "RotaryEmbedding: 2-D RoPE of two halves, tables by position, pairs interleaved")
def _():
    x = numbers(1, 2, 6, 32)
    angles = np.arange(8, dtype=np.float32)[:, None] * 100.0 ** (-np.arange(8, dtype=np.float32) / 8)
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    rows, cols = np.array([[0, 1, 1, 1, 2, 2]]), np.array([[0, 1, 2, 3, 1, 2]])
    low, high = np.split(x, 2, axis=-1)
    halves = [rotate(t, cos[p][:, None], sin[p][:, None], False) for t, p in ((low, rows), (high, cols))]
    want = {
        "planar": np.concatenate(halves, -1),
        "by_position": rotate(low, cos[cols][:, None], sin[cols][:, None], False),
        "interleaved": rotate(low, cos[cols][:, None], sin[cols][:, None], True),
    }
    weights = {"two": np.array([16, 16]), "cos": cos, "sin": sin, "cols": cols}
    weights |= {"cos_y": cos[rows], "sin_y": sin[rows], "cos_x": cos[cols], "sin_x": sin[cols]}
    nodes = [
        helper.make_node("Split", ["x", "two"], ["low", "high"], axis=-1),
        helper.make_node("RotaryEmbedding", ["low", "cos_y", "sin_y"], ["y"]),
        helper.make_node("RotaryEmbedding", ["high", "cos_x", "sin_x"], ["z"]),
        helper.make_node("Concat", ["y", "z"], ["planar"], axis=-1),
        helper.make_node("RotaryEmbedding", ["low", "cos", "sin", "cols"], ["by_position"]),
        helper.make_node("RotaryEmbedding", ["low", "cos", "sin", "cols"], ["interleaved"], interleaved=1),
    ]
    return by_hand(23, nodes, {"x": x}, want, weights)


@fixture("op_gemm_17", "Gemm: transposed sides, alpha and beta, bias of every shape and none")
def _():
    x, xt, w, bias = numbers(5, 6), numbers(6, 5, seed=1), numbers(4, 6, seed=2), numbers(4, seed=3)
    row, column, one = bias[None], numbers(5, 1, seed=4), np.array([0.5], np.float32)
    want = {
        "linear": x @ w.T + bias,
        "plain": x @ w.T.copy(),
        "transposed": xt.T @ w.T + row,
        "scaled": 0.5 * (x @ w.T) + 2.0 * column,
        "constant": x @ w.T + one,
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w", "bias"], ["linear"], transB=1),
        helper.make_node("Gemm", ["x", "wt"], ["plain"]),
        helper.make_node("Gemm", ["xt", "w", "row"], ["transposed"], transA=1, transB=1),
        helper.make_node("Gemm", ["x", "w", "column"], ["scaled"], transB=1, alpha=0.5, beta=2.0),
        helper.make_node("Gemm", ["x", "w", "one"], ["constant"], transB=1),
    ]
    weights = {"w": w, "wt": w.T.copy(), "bias": bias, "row": row, "column": column, "one": one}
    return by_hand(17, nodes, {"x": x, "xt": xt}, want, weights)


@fixture("op_einsum_17", "outer products i,j->ij and m,d->md in f32 and f64")
def _():
    i, j = numbers(6), numbers(4, seed=1)
    want = {"f32": np.outer(i, j), "f64": np.outer(i.astype(np.float64), j.astype(np.float64)).astype(np.float32)}
    nodes = [
        helper.make_node("Einsum", ["i", "j"], ["f32"], equation="i,j->ij"),
        helper.make_node("Cast", ["i"], ["m"], to=TensorProto.DOUBLE),
        helper.make_node("Cast", ["j"], ["d"], to=TensorProto.DOUBLE),
        helper.make_node("Einsum", ["m", "d"], ["md"], equation="m,d->md"),
        helper.make_node("Cast", ["md"], ["f64"], to=TensorProto.FLOAT),
    ]
    return by_hand(17, nodes, {"i": i, "j": j}, want)


@fixture("op_constants_f64_17", "a sine-cosine table built from f64 constants, added to the input in f32")
def _():
    x = numbers(6, 8)
    omega = 100.0 ** (-np.arange(4, dtype=np.float64) / 4)
    at = np.linspace(-0.8, 0.8, 6)
    angle = np.outer(at, omega)
    want = {"y": x + (0.1 * np.concatenate([np.sin(angle), np.cos(angle)], 1)).astype(np.float32)}
    nodes = [
        helper.make_node("Constant", [], ["tenth"], value=numpy_helper.from_array(np.array(0.1))),
        helper.make_node("Range", ["zero", "four", "step"], ["k"]),
        helper.make_node("Pow", ["hundred", "k"], ["power"]),
        helper.make_node("Reciprocal", ["power"], ["omega"]),
        helper.make_node("Einsum", ["at", "omega"], ["angle"], equation="m,d->md"),
        helper.make_node("Sin", ["angle"], ["sin"]),
        helper.make_node("Cos", ["angle"], ["cos"]),
        helper.make_node("Concat", ["sin", "cos"], ["table"], axis=1),
        helper.make_node("Mul", ["table", "tenth"], ["small"]),
        helper.make_node("Cast", ["small"], ["narrow"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "narrow"], ["y"]),
    ]
    weights = {
        "zero": np.array(0.0),
        "four": np.array(1.0),
        "step": np.array(0.25),
        "hundred": np.array(100.0),
        "at": at,
    }
    return by_hand(17, nodes, {"x": x}, want, weights)


@fixture("op_scatter_gather_17", "ScatterND, ScatterElements, GatherND, GatherElements, Gather, with negative indices")
def _():
    x, u = numbers(3, 4, 5), numbers(2, 5, seed=1)
    nd = np.array([[0, 1], [2, -1]])
    elements = np.array([[[0, 2, 1, 0, 1]], [[1, -1, 2, 1, 0]]])
    scattered, replaced = x.copy(), x.copy()
    scattered[nd[:, 0], nd[:, 1]] = u
    source = numbers(2, 1, 5, seed=2)
    for a in range(2):
        for c in range(5):
            replaced[a, elements[a, 0, c] % 4, c] = source[a, 0, c]
    pick = np.array([[1, 0], [2, 3]])
    want = {
        "scatter_nd": scattered,
        "scatter_elements": replaced,
        "gather_nd": x[nd[:, 0], nd[:, 1]],
        "gather_batched": np.stack([x[i, pick[i % 2, 0]] for i in range(3)]),
        "gather_elements": np.take_along_axis(x[:2], elements % 4, 1),
        "gather_scalar": x[:, 2],
        "gather_matrix": x[:, pick],
    }
    nodes = [
        helper.make_node("ScatterND", ["x", "nd", "u"], ["scatter_nd"]),
        helper.make_node("ScatterElements", ["x", "elements", "source"], ["scatter_elements"], axis=1),
        helper.make_node("GatherND", ["x", "nd"], ["gather_nd"]),
        helper.make_node("GatherND", ["x", "per_batch"], ["gather_batched"], batch_dims=1),
        helper.make_node("Slice", ["x", "start", "end"], ["x2"]),
        helper.make_node("GatherElements", ["x2", "elements"], ["gather_elements"], axis=-2),
        helper.make_node("Gather", ["x", "second"], ["gather_scalar"], axis=1),
        helper.make_node("Gather", ["x", "pick"], ["gather_matrix"], axis=1),
    ]
    weights = {"nd": nd, "elements": elements, "per_batch": pick[[0, 1, 0], :1], "pick": pick}
    weights |= {"second": np.array(2), "start": np.array([0]), "end": np.array([2])}
    return by_hand(17, nodes, {"x": x, "u": u, "source": source}, want, weights)


def split_fixture(opset: int) -> Fixture:
    x = numbers(2, 7, 6)
    parts = np.split(x, [1, 3], axis=1)
    halves = np.split(x, 2, axis=2)
    want = dict(zip("abc", parts)) | dict(zip("de", halves))
    nodes = [helper.make_node("Split", ["x", "sizes"], list("abc"), axis=1)]
    if opset >= 18:
        thirds = np.split(x, [3, 6], axis=1)
        want |= dict(zip("fgh", thirds))
        nodes.append(helper.make_node("Split", ["x"], list("de"), axis=-1, num_outputs=2))
        nodes.append(helper.make_node("Split", ["x"], list("fgh"), axis=1, num_outputs=3))
    else:
        nodes.append(helper.make_node("Split", ["x"], list("de"), axis=-1))
    return by_hand(opset, nodes, {"x": x}, want, {"sizes": np.array([1, 2, 4])})


@fixture("op_split_13", "Split by sizes and into equal parts by the number of outputs")
def _():
    return split_fixture(13)


@fixture("op_split_18", "Split by sizes and by num_outputs, with a shorter last part")
def _():
    return split_fixture(18)


@fixture("op_clip_17", "Clip with both bounds, either one, and none")
def _():
    x = 2 * numbers(3, 5)
    want = {"both": x.clip(-1, 1.5), "low": x.clip(-1, None), "high": x.clip(None, 1.5), "none": x}
    bounds = {"both": ["x", "lo", "hi"], "low": ["x", "lo"], "high": ["x", "", "hi"], "none": ["x"]}
    nodes = [helper.make_node("Clip", names, [out]) for out, names in bounds.items()]
    return by_hand(17, nodes, {"x": x}, want, {"lo": np.float32(-1), "hi": np.float32(1.5)})


def reduce_fixture(opset: int) -> Fixture:
    """Axes are an attribute before opset 18, except ReduceSum's since 13."""
    x = numbers(2, 3, 4)
    want = {
        "mean": x.mean(-1, keepdims=True),
        "sum": x.sum((0, 2)),
        "norm": np.sqrt((x * x).sum(1, keepdims=True)),
        "least": x.min(2),
        "most": x.max((0, 1, 2), keepdims=True),
        "where": x.argmin(1),
    }
    rows = [
        ("ReduceMean", "mean", [-1], 1),
        ("ReduceSum", "sum", [0, 2], 0),
        ("ReduceL2", "norm", [1], 1),
        ("ReduceMin", "least", [2], 0),
    ]
    nodes, weights = (
        [
            helper.make_node("ReduceMax", ["x"], ["most"]),
            helper.make_node("ArgMin", ["x"], ["where"], axis=1, keepdims=0),
        ],
        {},
    )
    for op, name, axes, keep in rows:
        if opset >= 18 or op == "ReduceSum":
            weights[f"{name}_axes"] = np.array(axes)
            nodes.append(helper.make_node(op, ["x", f"{name}_axes"], [name], keepdims=keep))
        else:
            nodes.append(helper.make_node(op, ["x"], [name], axes=axes, keepdims=keep))
    return by_hand(opset, nodes, {"x": x}, {k: np.asarray(want[k]) for k in want}, weights)


@fixture("op_reduce_17", "reductions with axes as an attribute")
def _():
    return reduce_fixture(17)


@fixture("op_reduce_18", "reductions with axes as an input")
def _():
    return reduce_fixture(18)


@fixture(
    "op_shapes_17",
    "shape arithmetic that folds: Shape, Slice to the end, Concat with an empty tensor, Range, Expand, Where, EyeLike",
)
def _():
    x = numbers(2, 3, 4)
    y = x.reshape(2, 12)
    want = {
        "flat": y,
        "kept": x.reshape(2, 3, 2, 2),
        "tail": x[:, 1:, ::-1],
        "wide": np.broadcast_to(np.arange(3, dtype=np.float32)[:, None], (1, 3, 4)).copy(),
        "chosen": np.where(x > 0, x, 2.0).astype(np.float32),
        "eye": x[:, :, :3] - np.eye(3, dtype=np.float32),
        "squeezed": x[:1].squeeze(0),
    }
    most = np.iinfo(np.int64).max
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Slice", ["shape", "i0", "i1"], ["first"]),
        helper.make_node("Slice", ["shape", "i1", "end"], ["rest"]),
        helper.make_node("ReduceProd", ["rest"], ["product"], keepdims=1),
        helper.make_node("Slice", ["shape", "i1", "i1"], ["nothing"]),
        helper.make_node("Concat", ["first", "nothing", "product"], ["new"], axis=0),
        helper.make_node("Reshape", ["x", "new"], ["flat"]),
        helper.make_node("Reshape", ["x", "copy"], ["kept"]),
        helper.make_node("Slice", ["x", "starts", "ends", "axes", "steps"], ["tail"]),
        helper.make_node("Gather", ["shape", "s1"], ["rows"], axis=0),
        helper.make_node("Range", ["s0", "rows", "s1"], ["range"]),
        helper.make_node("Cast", ["range"], ["ramp"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["ramp", "end_axis"], ["column"]),
        helper.make_node("Shape", ["target"], ["rank"]),
        helper.make_node("ConstantOfShape", ["rank"], ["ones"], value=numpy_helper.from_array(np.array([1], np.int64))),
        helper.make_node("Mul", ["ones", "end_axis"], ["minus"]),
        helper.make_node("Equal", ["target", "minus"], ["open"]),
        helper.make_node("Where", ["open", "ones", "target"], ["size"]),
        helper.make_node("Expand", ["column", "size"], ["wide"]),
        helper.make_node("Greater", ["x", "zero_f"], ["positive"]),
        helper.make_node("Where", ["positive", "x", "two_f"], ["chosen"]),
        helper.make_node("Slice", ["x", "i0", "i3", "end_axis"], ["square"]),
        helper.make_node("ConstantOfShape", ["three_three"], ["zeros33"]),
        helper.make_node("EyeLike", ["zeros33"], ["identity"]),
        helper.make_node("Sub", ["square", "identity"], ["eye"]),
        helper.make_node("Slice", ["x", "i0", "i1", "i0"], ["one_view"]),
        helper.make_node("Squeeze", ["one_view", "i0"], ["view"]),
        helper.make_node("Identity", ["view"], ["squeezed"]),
    ]
    weights = {"i0": np.array([0]), "i1": np.array([1]), "i3": np.array([3]), "s0": np.array(0), "s1": np.array(1)}
    weights |= {"end": np.array([most]), "end_axis": np.array([-1]), "copy": np.array([0, 0, 2, -1])}
    weights |= {
        "starts": np.array([1, most]),
        "ends": np.array([most, -most]),
        "axes": np.array([1, -1]),
        "steps": np.array([1, -1]),
    }
    weights |= {"target": np.array([-1, 3, 4]), "three_three": np.array([3, 3])}
    weights |= {"zero_f": np.float32(0), "two_f": np.float32(2)}
    return by_hand(17, nodes, {"x": x}, want, weights)


@fixture(
    "op_external_data_17", "external data in an initialiser and in a Constant attribute, at aligned offsets of one file"
)
def _():
    x, w, b = numbers(5, 6), numbers(6, 4, seed=1), numbers(4, seed=2)
    stored, attribute = numpy_helper.from_array(w, "w"), numpy_helper.from_array(b, "b_value")
    stored.doc_string = attribute.doc_string = "outside"
    nodes = [
        helper.make_node("Constant", [], ["b"], value=attribute),
        helper.make_node("MatMul", ["x", "w"], ["xw"]),
        helper.make_node("Add", ["xw", "b"], ["y"]),
    ]
    return by_hand(17, nodes, {"x": x}, {"y": x @ w + b}, [stored], external=True)


@fixture(
    "op_tensor_storage_17",
    "one number in every storage: raw and typed fields, f16, bf16, f64, i32, u8, bool, scalar attributes",
)
def _():
    x = numbers(2, 4)
    typed = [
        helper.make_tensor("f32", TensorProto.FLOAT, [4], [1, 2, 3, 4]),
        helper.make_tensor("f16", TensorProto.FLOAT16, [4], [0.5, -1.5, 2.0, 0.25]),
        helper.make_tensor("bf16", TensorProto.BFLOAT16, [4], [1.0, -2.0, 0.5, 3.0]),
        helper.make_tensor("f64", TensorProto.DOUBLE, [], [0.125]),
        helper.make_tensor("i32", TensorProto.INT32, [4], [1, -2, 3, -4]),
        helper.make_tensor("u8", TensorProto.UINT8, [4], [0, 1, 200, 255]),
        helper.make_tensor("flags", TensorProto.BOOL, [4], [True, False, True, False]),
        numpy_helper.from_array(np.array([0.5, -1.5, 2.0, 0.25], np.float16), "f16_raw"),
        helper.make_tensor(
            "bf16_raw", TensorProto.BFLOAT16, [4], np.array([0x3F80, 0xC000, 0x3F00, 0x4040], "<u2").tobytes(), raw=True
        ),
    ]
    names = ["f16", "f16_raw", "bf16", "bf16_raw", "f64", "i32", "u8"]
    nodes = [helper.make_node("Cast", [n], [f"{n}_wide"], to=TensorProto.FLOAT) for n in names]
    nodes += [
        helper.make_node("Constant", [], ["c_float"], value_float=0.75),
        helper.make_node("Constant", [], ["c_floats"], value_floats=[1.0, 0.0, -1.0, 2.0]),
        helper.make_node("Constant", [], ["c_ints"], value_ints=[2, 4]),
        helper.make_node("Constant", [], ["c_int"], value_int=-1),
        helper.make_node("Sum", ["x", "f32", *(f"{n}_wide" for n in names), "c_float", "c_floats"], ["total"]),
        helper.make_node("Where", ["flags", "total", "x"], ["picked"]),
        helper.make_node("Reshape", ["picked", "c_ints"], ["shaped"]),
        helper.make_node("Gather", ["shaped", "c_int"], ["y"], axis=0),
    ]
    f16, bf16 = np.array([0.5, -1.5, 2.0, 0.25]), np.array([1.0, -2.0, 0.5, 3.0])
    total = x + [1, 2, 3, 4] + 2 * f16 + 2 * bf16 + 0.125 + [1, -2, 3, -4] + [0, 1, 200, 255] + 0.75 + [1, 0, -1, 2]
    want = np.where([True, False, True, False], total, x)[-1].astype(np.float32)
    return by_hand(17, nodes, {"x": x}, {"y": want}, typed)


def main() -> int:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("patterns", nargs="*", default=["*"], help="folders to make, as shell patterns (default: all)")
    cli.add_argument("--list", action="store_true", help="say what there is and stop")
    args = cli.parse_args()
    torch.set_num_threads(2)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    onnxruntime.set_default_logger_severity(3)
    chosen = [name for name in FIXTURES if any(fnmatch.fnmatch(name, p) for p in args.patterns)]
    if not chosen:
        raise SystemExit(f"no fixture matches {' '.join(args.patterns)}; --list names them")
    for name in chosen:
        what, make = FIXTURES[name]
        if args.list:
            print(f"{name:28} {what}")
            continue
        worst = write(name, make())
        size = sum(f.stat().st_size for f in (OUT / "onnx" / name).iterdir())
        print(f"{name:28} {size / 1e3:8.0f} kB  ONNX Runtime within {worst:.1e}", flush=True)
    if not args.list:
        rows = "".join(f"| {name} | {what} |\n" for name, (what, _) in FIXTURES.items())
        text = (
            "# Exported models\n\nMade by `tools/make_fixtures.py`. `in_X.npy` and `out_X.npy` lie beside each model; `in_S3_X.npy` is a\n"
            "further case of the symbolic dimension S.\n\n| folder | what |\n| --- | --- |\n"
        )
        (OUT / "onnx" / "README.md").write_text(text + rows)
        total = sum(f.stat().st_size for f in OUT.rglob("*") if f.is_file())
        print(f"tests/fixtures: {total / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
