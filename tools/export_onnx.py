#!/usr/bin/env python3
"""Exports the official VGGT or Depth Anything 3 to ONNX, ready for lite3r-compile.

    python3 tools/export_onnx.py vggt --weights facebook/VGGT-1B --size 518x518 -o vggt.onnx
    python3 tools/export_onnx.py da3-large --weights da3-large.safetensors --size 378x504 -o da3.onnx --opset 23
    python3 tools/export_onnx.py vggt --weights model.pt --size 392x518 --views 8 -o vggt_8.onnx --exporter torchscript

You need the official package (`vggt` or `depth_anything_3`: installed, or its folder named by --package), its weights
(a .safetensors, .pt, .pth or .bin file, or a model on the Hugging Face hub), torch >= 2.9, onnx, onnxscript and onnxruntime.
VGGT-1B takes 12 GB of memory and a few minutes, DA3-Large a third of that.

The result is OUT.onnx with all weights in OUT.onnx.data beside it. Height and width are fixed, multiples of 14; the number
of views is the symbol S unless --views fixes it: bind it with `lite3r-compile --bind S=8`. VGGT takes RGB in 0..1; DA3 takes
images already normalised by the ImageNet mean and deviation. Cameras come out as the model gives them.

As they stand neither package exports: positions are read back as Python numbers, caches outlive a trace, a product
mixes f32 and f64, some operators are unknown to the exporter, heads are unrolled in chunks of 8 frames. The needed changes
are made to the loaded model while it is exported and undone after; no file of the package is touched. Then the exported
model runs under ONNX Runtime on two different numbers of views and every output is compared with the unchanged model:
a graph that only pretends to be symbolic in S (exporters fall back to that silently) is refused.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("XFORMERS_DISABLED", "1")  # its kernels cannot be exported

try:
    import numpy as np
    import onnx
    import onnxruntime
    import onnxscript  # noqa: F401  (torch.onnx needs it)
    import torch
    from torch import Tensor, nn
    from torch.nn import functional as F
except ModuleNotFoundError as e:
    sys.exit(f"error: {e}\n  pip install torch onnx onnxscript onnxruntime numpy")

import backbones

PATCH = 14
TOLERANCE = 1e-3
"""Relative Frobenius error allowed between the package in torch and the export in ONNX Runtime. Usual is 1e-5."""


class ExportError(Exception):
    """A message for the person at the terminal."""


# Changes to the loaded model


@contextlib.contextmanager
def changed(owner: object, name: str, value: object) -> Iterator[None]:
    """Sets an attribute and puts the former state back, whether it lay on the object itself or on its class."""
    missing = object()
    former = vars(owner).get(name, missing)
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name) if former is missing else setattr(owner, name, former)


def grid_positions(batch: int, height: int, width: int, device: torch.device) -> Tensor:
    """[batch, height * width, 2] rows and columns from 0. Replaces a cached torch.cartesian_prod."""
    rows = torch.arange(height, device=device)[:, None].expand(height, width)
    cols = torch.arange(width, device=device)[None, :].expand(height, width)
    return torch.stack([rows, cols], dim=-1).reshape(1, height * width, 2).expand(batch, -1, -1)


def sincos_embedding(embed_dim: int, pos: Tensor, omega_0: float = 100) -> Tensor:
    """[pos.numel(), embed_dim] in f32 from one f64 product: its two operands had different types."""
    half = embed_dim // 2
    omega = torch.tensor([omega_0 ** (-k / half) for k in range(half)], dtype=torch.float64, device=pos.device)
    angle = torch.einsum("m,d->md", pos.reshape(-1).double(), omega)
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()


def signed_expm1(y: Tensor) -> Tensor:
    """sign(y) (exp|y| - 1) without expm1, which TorchScript export does not know."""
    return y.sign() * (y.abs().exp() - 1)


def resize_whole(
    x: Tensor,
    size: tuple[int, int] | None = None,
    scale_factor: float | None = None,
    mode: str = "bilinear",
    align_corners: bool = True,
) -> Tensor:
    """One resize; the packages cut the batch where a result has more than 1.6e9 elements, which bounds the symbol S."""
    size = size or tuple(int(n * scale_factor) for n in x.shape[-2:])
    return F.interpolate(x, size=size, mode=mode, align_corners=align_corners)


class KeptPositions:
    """Resizes a learned position grid once and returns that from then on: it depends on the image size alone."""

    def __init__(self, vit: nn.Module):
        self.vit, self.resize, self.kept = vit, vit.interpolate_pos_encoding, None

    def __call__(self, x: Tensor, *size: int) -> Tensor:
        if self.kept is None:
            with torch.no_grad():
                self.kept = self.resize(x, *size)
        return self.kept


@contextlib.contextmanager
def exportable(model: nn.Module, grid: tuple[int, int]) -> Iterator[list[str]]:
    """Changes a loaded VGGT or DA3 so that exporters follow it; yields what was changed. `grid` is rows and columns of patches.

    Afterwards run the model once on the chosen image size before exporting it, so that position grids are resized.
    """
    clear_caches(model)
    done = []
    with contextlib.ExitStack() as stack:

        def change(owner, name, value, why):
            stack.enter_context(changed(owner, name, value))
            done.append(why)

        for module in model.modules():
            if hasattr(module, "frequency_cache") and hasattr(module, "base_frequency"):
                turn = functools.partial(backbones.rope, base=float(module.base_frequency), rows=max(grid) + 1)
                change(module, "forward", turn, "RoPE tables of a fixed size, no cache")
            if hasattr(getattr(module, "position_getter", None), "position_cache"):
                change(module, "position_getter", grid_positions, "patch positions without a cache")
            if hasattr(module, "interpolate_pos_encoding"):
                change(
                    module, "interpolate_pos_encoding", KeptPositions(module), "learned positions resized beforehand"
                )
        for where, name, value in (
            ("vggt.heads.utils", "make_sincos_pos_embed", sincos_embedding),
            ("vggt.heads.head_act", "inverse_log_transform", signed_expm1),
        ):
            if hasattr(sys.modules.get(where), name):
                change(sys.modules[where], name, value, f"{where}.{name}")
        for name, module in list(sys.modules.items()):
            if name.split(".")[0] in ("vggt", "depth_anything_3") and hasattr(module, "custom_interpolate"):
                change(module, "custom_interpolate", resize_whole, "resizes in one piece")
        try:
            yield sorted(set(done))
        finally:
            clear_caches(model)


def clear_caches(model: nn.Module) -> None:
    """Empties position and frequency caches: a trace leaves tensors without data in them."""
    for module in model.modules():
        for holder in (module, getattr(module, "position_getter", None)):
            for name in ("frequency_cache", "position_cache"):
                cache = getattr(holder, name, None)
                if isinstance(cache, dict):
                    cache.clear()


# The two families


class VggtExport(nn.Module):
    """The official VGGT as images -> tensors, heads in one piece instead of chunks of frames."""

    input = "images"
    normalised = False

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        model.track_head = None
        heads = {"pose_enc": model.camera_head, "depth": model.depth_head, "world_points": model.point_head}
        absent = [name for name, head in heads.items() if head is None]
        if "pose_enc" in absent or "depth" in absent:
            raise ExportError(f"this VGGT lacks the heads for {', '.join(absent)}")
        self.outputs = ["pose_enc", "depth", "depth_conf"]
        self.outputs += [] if absent else ["world_points", "world_points_conf"]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        taps, first_patch = self.model.aggregator(images)
        results = [self.model.camera_head(taps)[-1]]
        for head in (self.model.depth_head, self.model.point_head):
            if head is not None:
                results += head(taps, images=images, patch_start_idx=first_patch, frames_chunk_size=None)
        return tuple(results)

    def unchanged(self, images: Tensor) -> dict[str, Tensor]:
        return self.model(images)


class Da3Export(nn.Module):
    """The official DA3 network as normalised image -> tensors."""

    input = "image"
    normalised = True

    def __init__(self, model: nn.Module, reference: str, rays: bool):
        super().__init__()
        if getattr(model, "cam_dec", None) is None:
            raise ExportError("only DA3 models with a camera decoder export (da3-small, -base, -large, -giant)")
        self.model, self.reference, self.rays = model, reference, rays
        self.outputs = ["depth", "depth_conf"] + ["ray", "ray_conf"] * rays + ["extrinsics", "intrinsics"]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        height, width = image.shape[-2:]
        taps, _ = self.model.backbone(image, cam_token=None, export_feat_layers=[], ref_view_strategy=self.reference)
        dense = self.model.head(taps, height, width, patch_start_idx=0, chunk_size=None)
        extrinsics, intrinsics = backbones.decode_cameras(self.model.cam_dec(taps[-1][1]), height, width)
        return (*(dense[name] for name in self.outputs[:-2]), extrinsics, intrinsics)

    def unchanged(self, image: Tensor) -> dict[str, Tensor]:
        return self.model(image, ref_view_strategy=self.reference)


def load(args: argparse.Namespace) -> VggtExport | Da3Export:
    if args.package:
        sys.path.insert(0, str(args.package))
    try:
        if args.architecture == "vggt":
            model = importlib.import_module("vggt.models.vggt").VGGT()
        else:
            registry = importlib.import_module("depth_anything_3.registry").MODEL_REGISTRY
            cfg = importlib.import_module("depth_anything_3.cfg")
            model = cfg.create_object(cfg.load_config(registry[args.architecture]))
    except ModuleNotFoundError as e:
        package = "vggt" if args.architecture == "vggt" else "depth_anything_3"
        if e.name and e.name.split(".")[0] == package:
            hint = f"install the official {package}, or name the folder that contains it with --package DIR"
        else:
            hint = f"{package} needs it: pip install {e.name}"
        raise ExportError(f"{e}; {hint}") from None
    model.eval()
    if args.random_weights is None:
        load_weights(model, args.weights)
    else:
        backbones.randomise(model, args.random_weights)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return VggtExport(model) if args.architecture == "vggt" else Da3Export(model, args.reference_view, args.rays)


def load_weights(model: nn.Module, weights: str) -> None:
    """Every parameter of the model must be in the file; the file's `model.` prefix and heads that the model lacks are dropped."""
    state = read_weights(weights)
    names = model.state_dict().keys()
    state = {key if key in names else key.removeprefix("model."): value for key, value in state.items()}
    missing = sorted(names - state.keys())
    if missing:
        some = ", ".join(missing[:4]) + (", ..." if len(missing) > 4 else "")
        raise ExportError(f"{weights} lacks {len(missing)} of the model's {len(names)} tensors: {some}")
    spare = {key.split(".")[0] for key in state.keys() - names}
    if spare:
        print(f"not used from {weights}: {', '.join(sorted(spare))}")
    try:
        model.load_state_dict({key: state[key] for key in names})
    except RuntimeError as e:
        raise ExportError(f"{weights} is of another model: {e}") from None


def read_weights(weights: str) -> dict[str, Tensor]:
    path = Path(weights)
    if not path.exists():
        if weights.count("/") != 1 or path.suffix:
            raise ExportError(f"{weights}: no such file, and not the name of a hub model (owner/name)")
        try:
            hub = importlib.import_module("huggingface_hub")
        except ModuleNotFoundError:
            raise ExportError("fetching from the hub needs: pip install huggingface_hub safetensors") from None
        try:
            path = Path(hub.hf_hub_download(weights, "model.safetensors"))
        except Exception as e:  # the hub raises errors of many libraries
            raise ExportError(f"could not fetch {weights} from the hub: {e}") from None
    if path.suffix == ".safetensors":
        try:
            return importlib.import_module("safetensors.torch").load_file(path)
        except ModuleNotFoundError:
            raise ExportError("reading .safetensors needs: pip install safetensors") from None
    if path.suffix not in (".pt", ".pth", ".bin"):
        raise ExportError(f"{path}: expected a .safetensors, .pt, .pth or .bin file")
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state.get("model", state) if isinstance(state.get("model"), dict) else state


# Exporting and checking


def sample(model: VggtExport | Da3Export, views: int, height: int, width: int) -> Tensor:
    """Smooth random views, the same for a given number of views."""
    g = torch.Generator().manual_seed(views)
    coarse = torch.rand(views, 3, 6, 8, generator=g)
    images = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False).clamp(0, 1)[None]
    if model.normalised:
        mean, deviation = (torch.tensor(v).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        images = (images - mean) / deviation
    return images


def export(
    model: VggtExport | Da3Export, example: Tensor, path: Path, exporter: str, opset: int, symbolic: bool
) -> None:
    """Writes `path` and its data file. Call inside `exportable`, after one run of the model."""
    how = dict(input_names=[model.input], output_names=model.outputs, opset_version=opset)
    if exporter == "torchscript":
        axes = {name: {1: "S"} for name in (model.input, *model.outputs)}
        how |= dict(dynamo=False, dynamic_axes=axes if symbolic else None)
    else:
        views = torch.export.Dim("S", min=3, max=4096)  # one or two views take branches of their own
        how |= dict(dynamo=True, external_data=True, dynamic_shapes=({1: views},) if symbolic else None, verbose=False)
    with tempfile.TemporaryDirectory(
        dir=path.parent
    ) as folder:  # TorchScript writes a file for every tensor of a large model
        raw = Path(folder, "raw.onnx")
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            try:
                torch.onnx.export(model, (example,), str(raw), **how)
            except (torch.onnx.OnnxExporterError, RuntimeError, TypeError) as e:
                cause = str(e.__cause__ or e).strip().splitlines()[0]
                raise ExportError(
                    f"the {exporter} exporter of torch {torch.__version__} cannot follow the model: {cause}"
                ) from e
        whole = onnx.load(raw)
    for node in whole.graph.node:
        kept = [p for p in node.metadata_props if p.key != "pkg.torch.onnx.stack_trace"]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    data = f"{path.name}.data"
    onnx.save_model(whole, path, save_as_external_data=True, location=data, size_threshold=1024, convert_attribute=True)
    onnx.checker.check_model(path)
    if symbolic:
        refuse_fixed_views(path)


def refuse_fixed_views(path: Path) -> None:
    graph = onnx.load(path, load_external_data=False).graph
    fixed = {}
    for value in (*graph.input, *graph.output):
        dim = value.type.tensor_type.shape.dim[1]
        if dim.HasField("dim_value"):
            fixed[value.name] = dim.dim_value
    if fixed:
        listed = ", ".join(f"{name} has {n}" for name, n in fixed.items())
        raise ExportError(
            f"the exporter wrote a graph for a fixed number of views ({listed}); try --exporter torchscript or --views N"
        )


def check(path: Path, input_name: str, cases: dict[int, tuple[Tensor, dict[str, Tensor]]]) -> None:
    """Runs the export on every case (views to example and expected outputs) and raises where it differs."""
    onnxruntime.set_default_logger_severity(4)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    problems = []
    for views, (example, expected) in cases.items():
        try:
            results = dict(zip(names, session.run(None, {input_name: example.numpy()})))
        except Exception as e:  # ONNX Runtime's errors share no base class
            problems.append(f"does not run on {views} views ({str(e).splitlines()[0][:200]})")
            continue
        for name, want in expected.items():
            got, want = results[name].astype(np.float64), want.double().numpy()
            if got.shape != want.shape:
                problems.append(f"{name} for {views} views has shape {got.shape} instead of {want.shape}")
                continue
            error = np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30)
            print(f"  {views} views, {name:18} relative error {error:.1e}")
            if not error <= TOLERANCE:
                problems.append(f"{name} for {views} views differs by {error:.1e} (allowed: {TOLERANCE:.0e})")
    if problems:
        raise ExportError("the export is not the model: " + "; ".join(problems))


@torch.no_grad()
def run(args: argparse.Namespace) -> None:
    height, width = args.size
    model = load(args)
    symbolic = args.views is None
    counts = (3, 4) if symbolic else (args.views,)
    examples = {views: sample(model, views, height, width) for views in counts}
    expected: dict[int, dict[str, Tensor]] = {}
    if args.check:
        print(f"running the unchanged model on {' and '.join(map(str, counts))} views")
        for views, example in examples.items():
            results = model.unchanged(example)
            expected[views] = {name: results[name] for name in model.outputs if name in results}
    with exportable(model, (height // PATCH, width // PATCH)) as changes:
        print(f"changed for the export: {'; '.join(changes)}")
        for views, example in examples.items():
            results = dict(zip(model.outputs, model(example), strict=True))
            if args.check:
                expected[views] = results | expected[views]  # rays are deleted by the unchanged forward
        print(f"exporting with {args.exporter}, opset {args.opset}")
        with tempfile.TemporaryDirectory(dir=args.out.parent, prefix=".export-") as folder:
            path = Path(folder, args.out.name)
            export(model, examples[counts[0]], path, args.exporter, args.opset, symbolic)
            if args.check:
                check(path, model.input, {views: (examples[views], expected[views]) for views in counts})
            files = [file for file in (path.with_name(f"{path.name}.data"), path) if file.exists()]
            size = sum(file.stat().st_size for file in files)
            for file in files:  # the model last: once it is there, it is whole
                file.chmod(path.stat().st_mode)
                os.replace(file, args.out.with_name(file.name))
    views = "S views (bind with --bind S=N)" if symbolic else f"{args.views} views"
    print(
        f"{args.out}: {size / 1e6:.0f} MB, {model.input} [1, {'S' if symbolic else args.views}, 3, {height}, {width}], {views}"
    )


# Command line


def image_size(text: str) -> tuple[int, int]:
    try:
        height, width = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, such as 378x504") from None
    for side in (height, width):
        if side < PATCH or side % PATCH:
            raise argparse.ArgumentTypeError(
                f"{side} is not a multiple of {PATCH}; near are {side // PATCH * PATCH} and {side // PATCH * PATCH + PATCH}"
            )
    return height, width


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["vggt", "da3-small", "da3-base", "da3-large", "da3-giant"]
    cli.add_argument("architecture", choices=names)
    source = cli.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--weights", metavar="FILE|OWNER/NAME", help="weights: a file, or a model on the Hugging Face hub"
    )
    source.add_argument(
        "--random-weights", metavar="SEED", type=int, help="seeded random weights, for measuring speed and memory"
    )
    cli.add_argument("-o", "--out", type=Path, required=True, metavar="OUT.onnx")
    cli.add_argument(
        "--size", type=image_size, default=None, metavar="HxW", help="default: 518x518 for vggt, 504x504 for da3"
    )
    cli.add_argument("--views", type=int, metavar="N", help="fix the number of views (default: any, at least 3)")
    cli.add_argument(
        "--exporter", choices=["dynamo", "torchscript"], default="dynamo", help="torch.export (default) or TorchScript"
    )
    cli.add_argument(
        "--opset", type=int, help="default: 18 with dynamo (23 writes Attention operators), 17 with torchscript"
    )
    cli.add_argument("--reference-view", default="saddle_balanced", choices=["saddle_balanced", "first", "middle"],
                     help="how DA3 chooses the view whose camera is the world (default: saddle_balanced)")  # fmt: skip
    cli.add_argument(
        "--rays", action="store_true", help="export DA3's ray outputs too: more than half of its head's work"
    )
    cli.add_argument(
        "--package", type=Path, metavar="DIR", help="folder that contains the package `vggt` or `depth_anything_3`"
    )
    cli.add_argument("--no-check", dest="check", action="store_false", help="skip the comparison with ONNX Runtime")
    args = cli.parse_args(argv)
    args.size = args.size or ((518, 518) if args.architecture == "vggt" else (504, 504))
    args.opset = args.opset or (18 if args.exporter == "dynamo" else 17)
    if args.views is not None and args.views < 1:
        cli.error("--views must be at least 1")
    if args.exporter == "torchscript" and not 13 <= args.opset <= 20:
        cli.error(f"TorchScript writes opsets 13 to 20, not {args.opset}")
    if args.exporter == "dynamo" and not 18 <= args.opset <= 24:
        cli.error(f"torch.export writes opsets 18 to 24, not {args.opset}")
    if args.out.suffix != ".onnx":
        cli.error(f"{args.out} does not end in .onnx")
    if not args.out.parent.is_dir():
        cli.error(f"the folder {args.out.parent} does not exist")
    if args.package and not args.package.is_dir():
        cli.error(f"--package {args.package} is not a folder")
    return args


def main() -> int:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        run(parse())
    except ExportError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
