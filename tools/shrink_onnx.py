#!/usr/bin/env python3
"""Stores an ONNX model in about half its size without changing what it computes.

    python3 tools/shrink_onnx.py IN.onnx OUT.onnx [--check IO.npz]

f32 initialisers become f16, each followed by a Cast back to f32: refused unless every value survives the round trip, so
results are equal bit for bit. Equal Constant nodes are merged and the names of intermediate values shortened; names of
inputs, outputs, initialisers and of all other nodes (which carry the module they came from) stay.

--check runs both models under ONNX Runtime on arrays of the same names as the inputs (u8 images are divided by 255) and
compares with the arrays named as the outputs. Needs onnx and numpy; --check needs onnxruntime.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SMALL = 128  # elements up to which an initialiser is left alone: the Cast would cost as much as it saves


def halve(graph: onnx.GraphProto) -> int:
    """Replaces f32 initialisers by f16 ones and Casts. Returns the bytes saved."""
    inexact, casts, saved = [], [], 0
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) <= SMALL:
            continue
        wide = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            narrow = wide.astype(np.float16)
        if not np.array_equal(narrow.astype(np.float32), wide):
            inexact.append(tensor.name)
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(narrow, f"{name}.f16"))
        casts.append(helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))
        saved += narrow.nbytes
    if inexact:
        some = ", ".join(inexact[:5]) + (", ..." if len(inexact) > 5 else "")
        raise SystemExit(
            f"error: {len(inexact)} initialisers are not exact in half precision ({some}); round the weights first"
        )
    nodes = casts + list(graph.node)
    del graph.node[:]
    graph.node.extend(nodes)
    return saved


def merge_constants(graph: onnx.GraphProto) -> int:
    """Keeps one of every set of equal Constant nodes. Returns how many went."""
    outputs = {o.name for o in graph.output}
    first, renamed, kept = {}, {}, []
    for node in graph.node:
        if node.op_type == "Constant" and node.output[0] not in outputs:
            bare = onnx.NodeProto(op_type="Constant", attribute=node.attribute, output=["c"])
            key = bare.SerializeToString(deterministic=True)
            if key in first:
                renamed[node.output[0]] = first[key]
                continue
            first[key] = node.output[0]
            node.name = ""
        kept.append(node)
    for node in kept:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
    gone = len(graph.node) - len(kept)
    constants = [n for n in kept if n.op_type == "Constant"]
    others = [n for n in kept if n.op_type != "Constant"]
    del graph.node[:]
    graph.node.extend(constants + others)
    return gone


def shorten_names(graph: onnx.GraphProto) -> None:
    """Renames intermediate values to v1, v2, ... in order of production."""
    fixed = {v.name for v in (*graph.input, *graph.output, *graph.initializer)}
    short: dict[str, str] = {}
    for node in graph.node:
        for i, name in enumerate(node.output):
            if name and name not in fixed:
                short[name] = f"v{len(short) + 1}"
                node.output[i] = short[name]
        node.ClearField("doc_string")
        del node.metadata_props[:]
    taken = fixed & set(short.values())
    if taken:
        raise SystemExit(f"error: the model already uses the names {sorted(taken)[:5]}")
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = short.get(name, name)
    del graph.value_info[:]


def check(before: Path, after: Path, recorded: Path) -> None:
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    arrays = np.load(recorded)
    results = []
    for path in (before, after):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        feed = {}
        for value in session.get_inputs():
            x = arrays[value.name]
            x = x.astype(np.float32) / 255 if x.dtype == np.uint8 else x
            feed[value.name] = x[None] if x.ndim < len(value.shape) else x
        results.append(session.run(None, feed))
    for value, a, b in zip(session.get_outputs(), *results):
        want = arrays[value.name]
        error = float(np.linalg.norm((b - want).astype(np.float64)) / np.linalg.norm(want.astype(np.float64)))
        print(f"{value.name:12} largest change {np.abs(a - b).max():.1e}, against the recording {error:.1e} relative")
        if error > 1e-4:
            raise SystemExit(f"error: {value.name} is not what was recorded")


def main() -> int:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("model", type=Path, metavar="IN.onnx")
    cli.add_argument("out", type=Path, metavar="OUT.onnx")
    cli.add_argument(
        "--check", type=Path, metavar="IO.npz", help="recorded inputs and outputs to hold both models against"
    )
    args = cli.parse_args()
    model = onnx.load(args.model)
    if any(a.HasField("g") or a.graphs for node in model.graph.node for a in node.attribute):
        raise SystemExit("error: models with subgraphs (If, Loop, Scan) are not supported")
    saved = halve(model.graph)
    merged = merge_constants(model.graph)
    shorten_names(model.graph)
    onnx.checker.check_model(model)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_bytes(model.SerializeToString(deterministic=True))
    sizes = (args.model.stat().st_size / 1e6, args.out.stat().st_size / 1e6)
    print(
        f"{sizes[0]:.2f} MB -> {sizes[1]:.2f} MB: {saved / 1e6:.2f} MB of weights halved, {merged} equal constants merged"
    )
    if args.check:
        check(args.model, args.out, args.check)
    return 0


if __name__ == "__main__":
    sys.exit(main())
