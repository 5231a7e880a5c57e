#!/usr/bin/env python3
"""Gives an exported model the weights of a training run: same graph, other numbers.

    python3 tools/replace_weights.py GRAPH.onnx weights.safetensors OUT.onnx

Weights are found by their names, with or without `.f16`; a matrix that an exporter named after its MatMul is that of the module whose node
multiplies by it, and is transposed; of tokens [1, 2, n, C] the exporter made two constants, for the first view and for the others, in that order.
Every weight must find its place, in its shape, and every matrix that the graph multiplies by must be given. Needs numpy, onnx and safetensors.
"""

import argparse
import re
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from safetensors.numpy import load_file


def sources(graph: onnx.GraphProto, op: str, operand: int) -> list[tuple[str, onnx.NodeProto]]:
    """What nodes of a kind take there, behind copies and casts, with the node."""
    through = {node.output[0]: node.input[0] for node in graph.node if node.op_type in ("Cast", "Transpose", "Identity")}
    found = []
    for node in graph.node:
        if node.op_type == op:
            name = node.input[operand]
            while name in through:
                name = through[name]
            found.append((name, node))
    return found


def module(node: onnx.NodeProto) -> str:
    """`/head/trunk/trunk.0/qkv_3/MatMul`, of the fourth round, is of `head.trunk.0.qkv`."""
    parts: list[str] = []
    for part in node.name.strip("/").split("/")[:-1]:
        part = re.sub(r"_\d+$", "", part)
        if parts and part.startswith(parts[-1] + "."):
            parts.pop()
        parts.append(part)
    return ".".join(parts)


def tokens(graph: onnx.GraphProto, weights: dict[str, np.ndarray]) -> dict[str, tuple[str, np.ndarray]]:
    """The constants that tokens became, with the weight of each and its value."""
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    expanded = list(dict.fromkeys(name for name, _ in sources(graph, "Expand", 0) if name in shapes))
    found = {}
    for weight in (name for name in weights if name.endswith("_token") and weights[name].ndim == 4):
        halves = [weights[weight][:, :1], weights[weight][:, 1:]]
        places = [name for name in expanded if shapes[name] == list(halves[0].shape)]
        found |= {place: (weight, half) for place, half in zip(places, halves)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graph", type=Path, metavar="GRAPH.onnx")
    parser.add_argument("weights", type=Path, metavar="weights.safetensors")
    parser.add_argument("out", type=Path, metavar="OUT.onnx")
    args = parser.parse_args()
    model, weights = onnx.load(args.graph), load_file(args.weights)
    users = {name: module(node) for name, node in sources(model.graph, "MatMul", 1)}
    parts, left, problems = tokens(model.graph, weights), set(weights), []
    for tensor in model.graph.initializer:
        bare = tensor.name.removesuffix(".f16")
        if tensor.name in parts:
            name, value = parts[tensor.name]
        elif bare in weights:
            name, value = bare, weights[bare]
        elif f"{users.get(tensor.name)}.weight" in weights:
            name = f"{users[tensor.name]}.weight"
            value = weights[name].T
        else:
            if tensor.name in users:
                problems.append(f"`{tensor.name}`, which `{users[tensor.name]}` multiplies by, is not among the weights")
            continue
        if list(value.shape) != list(tensor.dims):
            problems.append(f"`{name}` is {list(value.shape)}, the graph has {list(tensor.dims)}")
            continue
        kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value).astype(kind), tensor.name))
        left.discard(name)
    problems += [f"`{name}` has no place in the graph" for name in sorted(left)]
    if problems:
        raise SystemExit("error:\n  " + "\n  ".join(problems))
    onnx.save(model, args.out)
    print(f"{args.out}: {len(weights)} weights, {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
