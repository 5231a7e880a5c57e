#!/usr/bin/env python3
"""Gives a graph whose weight files are missing random weights, so that it can be compiled and timed.

    python3 tools/fill_weights.py GRAPH.onnx OUT_DIR [--seed 0]     # writes OUT_DIR/model.onnx and OUT_DIR/model.onnx.data

Every tensor that refers to external data, in initialisers and in attributes, gets values drawn for its use in the graph:
matrices and filters keep the variance of what they multiply, norms scale by about 1, LayerScale by about 0.1, biases are
small; integers (positions, indices) become zero. Values depend on the seed and the tensor's name alone. Tensors are written
one by one, so that a model of 5 GB needs little memory. Needs numpy and onnx.
"""

import argparse
import math
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

DATA = "model.onnx.data"
ALIGNMENT = 4096  # what a memory map wants


def external_tensors(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """(the name under which the graph uses it, the tensor)."""
    for tensor in graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            yield tensor.name, tensor
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t") and attribute.t.data_location == TensorProto.EXTERNAL:
                yield node.output[0], attribute.t


def first_uses(graph: onnx.GraphProto) -> dict[str, tuple[str, int]]:
    """Value name to (operator, operand position) of its first consumer, looking through copies and layout changes."""
    uses: dict[str, tuple[str, int]] = {}
    for node in reversed(graph.node):
        for position, name in enumerate(node.input):
            through = (
                node.op_type in ("Identity", "Cast", "Transpose", "Unsqueeze", "Reshape", "Expand") and position == 0
            )
            behind = uses.get(node.output[0]) if through else None
            uses[name] = behind or (node.op_type, position)
    return uses


def spread(dims: tuple[int, ...], use: tuple[str, int], transposed: bool) -> tuple[float, float]:
    """(mean, standard deviation) for a tensor of this shape in this place."""
    op, position = use
    if op in ("MatMul", "Gemm") and len(dims) >= 2:
        return 0.0, 1 / math.sqrt(dims[-1] if transposed else dims[-2])
    if op == "Conv" and position == 1:
        return 0.0, 1 / math.sqrt(math.prod(dims[1:]))
    if op == "ConvTranspose" and position == 1:
        return 0.0, 1 / math.sqrt(dims[0])
    if op == "LayerNormalization" and position == 1:
        return 1.0, 0.05
    if op == "Mul":
        return (0.1, 0.02) if len(dims) == 1 else (0.0, 0.7)  # LayerScale, or a table of cosines
    if op in ("Div", "Pow", "Sqrt", "Log"):
        return 1.0, 0.05  # kept away from zero
    if len(dims) <= 1 or op in ("Conv", "ConvTranspose", "Gemm", "LayerNormalization"):
        return 0.0, 0.02  # biases
    return 0.0, 0.2  # tokens and positions


def transposed_matrices(graph: onnx.GraphProto) -> set[str]:
    """Names of matrices stored [out, in]."""
    names = {node.input[0] for node in graph.node if node.op_type == "Transpose"}
    for node in graph.node:
        if node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute):
            names.add(node.input[1])
    return names


def fill(graph: onnx.GraphProto, data: Path, seed: int) -> tuple[int, int]:
    """Writes the data file and points the tensors into it. Returns (tensors, bytes)."""
    uses, transposed, count = first_uses(graph), transposed_matrices(graph), 0
    with open(data, "wb") as out:
        for name, tensor in external_tensors(graph):
            dims, dtype = tuple(tensor.dims), helper.tensor_dtype_to_np_dtype(tensor.data_type)
            if np.issubdtype(dtype, np.floating):
                mean, deviation = spread(dims, uses.get(name, ("", 0)), name in transposed)
                rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
                values = rng.standard_normal(dims, dtype=np.float32)
                values *= np.float32(deviation)
                values += np.float32(mean)
            else:
                values = np.zeros(dims, dtype)  # positions and indices: any in range will do for timing
            out.write(b"\0" * (-out.tell() % ALIGNMENT))
            where = {"location": DATA, "offset": out.tell(), "length": values.size * dtype.itemsize}
            out.write(np.asarray(values, dtype).tobytes())
            del tensor.external_data[:]
            tensor.external_data.extend(onnx.StringStringEntryProto(key=k, value=str(v)) for k, v in where.items())
            count += 1
        return count, out.tell()


def main() -> int:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("graph", type=Path, metavar="GRAPH.onnx")
    cli.add_argument("out", type=Path, metavar="OUT_DIR")
    cli.add_argument("--seed", type=int, default=0)
    args = cli.parse_args()
    model = onnx.load(args.graph, load_external_data=False)
    if next(external_tensors(model.graph), None) is None:
        raise SystemExit(f"error: {args.graph} refers to no external data; there is nothing to fill")
    args.out.mkdir(parents=True, exist_ok=True)
    if args.graph.resolve() == (args.out / "model.onnx").resolve():
        raise SystemExit("error: OUT_DIR is the folder of GRAPH.onnx, which would be overwritten")
    count, size = fill(model.graph, args.out / DATA, args.seed)
    (args.out / "model.onnx").write_bytes(model.SerializeToString())
    print(f"{args.out}/model.onnx: {count} tensors, {size / 1e9:.2f} GB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
