#!/usr/bin/env python3
"""Writes the transformer block of `src/main.rs` as ONNX, weights left out, with nothing but Python.

    python3 tools/peer_burn/block.py block.onnx [TOKENS WIDTH HEADS]
    lite3r-compile block.onnx --random-weights 1 --target wgsl -o block.l3r && lite3r bench block.l3r
"""

import struct
import sys


def varint(value):
    out = bytearray()
    value &= (1 << 64) - 1
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out + bytes([value]))


def field(tag, value):
    """A field of the wire format: a number, a float, or bytes."""
    if isinstance(value, float):
        return varint(tag << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(tag << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(tag << 3 | 2) + varint(len(data)) + data


def attribute(name, value):
    if isinstance(value, float):
        return field(1, name) + field(2, value) + field(20, 1)
    if isinstance(value, int):
        return field(1, name) + field(3, value) + field(20, 2)
    if isinstance(value, str):
        return field(1, name) + field(4, value) + field(20, 3)
    return field(1, name) + b"".join(field(8, v) for v in value) + field(20, 7)


def node(op, inputs, outputs, **attributes):
    text = b"".join(field(1, i) for i in inputs) + b"".join(field(2, o) for o in outputs)
    return text + field(3, outputs[0]) + field(4, op) + b"".join(field(5, attribute(*a)) for a in attributes.items())


def weight(name, *dims):
    """A tensor whose file is not there."""
    external = field(13, field(1, "location") + field(2, "weights.bin"))
    return b"".join(field(1, d) for d in dims) + field(2, 1) + field(8, name) + external + field(14, 1)


def integers(name, *values):
    return field(1, len(values)) + field(2, 7) + b"".join(field(7, v) for v in values) + field(8, name)


def port(name, *dims):
    shape = b"".join(field(1, field(1, d)) for d in dims)
    return field(1, name) + field(2, field(1, field(1, 1) + field(2, shape)))


def block(tokens, width, heads):
    nodes, weights = [], []

    def linear(x, name, inputs, outputs):
        weights.extend([weight(f"{name}.w", inputs, outputs), weight(f"{name}.b", outputs)])
        nodes.append(node("MatMul", [x, f"{name}.w"], [f"{name}.m"]))
        nodes.append(node("Add", [f"{name}.m", f"{name}.b"], [name]))
        return name

    def norm(x, name):
        weights.extend([weight(f"{name}.g", width), weight(f"{name}.b", width)])
        nodes.append(node("LayerNormalization", [x, f"{name}.g", f"{name}.b"], [name], axis=-1, epsilon=1e-5))
        return name

    head = width // heads
    weights.append(integers("split", 1, tokens, 3, heads, head))
    weights.append(integers("joined", 1, tokens, width))
    weights.extend(integers(f"part{i}", i) for i in range(3))
    linear(norm("x", "norm1"), "qkv", width, 3 * width)
    nodes.append(node("Reshape", ["qkv", "split"], ["five"]))
    nodes.append(node("Transpose", ["five"], ["turned"], perm=[2, 0, 3, 1, 4]))
    for i, name in enumerate("qkv"):
        nodes.append(node("Gather", ["turned", f"part{i}"], [f"{name}1"], axis=0))
        nodes.append(node("Squeeze", [f"{name}1", "part0"], [f"{name}4"]))
    nodes.append(node("Transpose", ["k4"], ["kt"], perm=[0, 1, 3, 2]))
    nodes.append(node("MatMul", ["q4", "kt"], ["scores"]))
    weights.append(field(2, 1) + field(4, struct.pack("<f", head**-0.5)) + field(8, "scale"))
    nodes.append(node("Mul", ["scores", "scale"], ["scaled"]))
    nodes.append(node("Softmax", ["scaled"], ["p"], axis=-1))
    nodes.append(node("MatMul", ["p", "v4"], ["o"]))
    nodes.append(node("Transpose", ["o"], ["ot"], perm=[0, 2, 1, 3]))
    nodes.append(node("Reshape", ["ot", "joined"], ["mixed"]))
    nodes.append(node("Add", ["x", linear("mixed", "projection", width, width)], ["x1"]))
    linear(norm("x1", "norm2"), "up", width, 4 * width)
    nodes.append(node("Gelu", ["up"], ["hidden"]))
    nodes.append(node("Add", ["x1", linear("hidden", "down", 4 * width, width)], ["y"]))
    graph = b"".join(field(1, n) for n in nodes) + field(2, "block") + b"".join(field(5, w) for w in weights)
    graph += field(11, port("x", 1, tokens, width)) + field(12, port("y", 1, tokens, width))
    return field(1, 10) + field(7, graph) + field(8, field(2, 20))


if __name__ == "__main__":
    sizes = [int(a) for a in sys.argv[2:5]] or [2748, 1024, 16]
    with open(sys.argv[1], "wb") as out:
        out.write(block(*sizes))
