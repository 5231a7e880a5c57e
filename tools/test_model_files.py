#!/usr/bin/env python3
"""shrink_onnx.py keeps every bit of a result, fill_weights.py makes a runnable model of a bare graph."""

import contextlib
import io
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import fill_weights
import shrink_onnx


def linear(weight: np.ndarray) -> onnx.ModelProto:
    """y = relu(x W + 1) + 1, with the two ones in separate Constant nodes."""
    one = numpy_helper.from_array(np.float32(1))
    nodes = [
        helper.make_node("Constant", [], ["one"], value=one),
        helper.make_node("MatMul", ["x", "w"], ["xw"], name="/layer/MatMul"),
        helper.make_node("Add", ["xw", "one"], ["shifted"]),
        helper.make_node("Relu", ["shifted"], ["active"]),
        helper.make_node("Constant", [], ["again"], value=one),
        helper.make_node("Add", ["active", "again"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 16]) for n in "xy"]
    graph = helper.make_graph(nodes, "linear", values[:1], values[1:], [numpy_helper.from_array(weight, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(path: Path) -> np.ndarray:
    x = np.linspace(-1, 1, 32, dtype=np.float32).reshape(2, 16)
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def call(tool, *words: object) -> str:
    with (
        mock.patch.object(sys, "argv", [tool.__name__, *map(str, words)]),
        contextlib.redirect_stdout(io.StringIO()) as out,
    ):
        tool.main()
    return out.getvalue()


class ModelFiles(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.weight = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float16).astype(np.float32)

    def test_shrink_keeps_every_bit(self):
        big, small = self.folder / "big.onnx", self.folder / "small.onnx"
        big.write_bytes(linear(self.weight).SerializeToString())
        self.assertIn("1 equal constants merged", call(shrink_onnx, big, small))
        model = onnx.load(small)
        self.assertEqual([t.data_type for t in model.graph.initializer], [TensorProto.FLOAT16])
        self.assertEqual([n.name for n in model.graph.node if n.op_type == "MatMul"], ["/layer/MatMul"])
        self.assertTrue(np.array_equal(run(big), run(small)))

    def test_shrink_refuses_what_half_precision_would_change(self):
        for spoiled in (1 / 3, 1e6):
            self.weight[3, 4] = spoiled
            path = self.folder / "big.onnx"
            path.write_bytes(linear(self.weight).SerializeToString())
            with self.assertRaisesRegex(SystemExit, "1 initialisers are not exact"):
                call(shrink_onnx, path, self.folder / "small.onnx")
            self.assertFalse((self.folder / "small.onnx").exists())

    def test_fill_is_seeded_and_runs(self):
        bare = self.folder / "bare.onnx"
        model = linear(self.weight)
        onnx.save(model, bare, save_as_external_data=True, location="gone.data", size_threshold=0)
        (self.folder / "gone.data").unlink()
        results = []
        for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
            call(fill_weights, bare, self.folder / folder, "--seed", seed)
            results.append(run(self.folder / folder / "model.onnx"))
        self.assertTrue(np.array_equal(results[0], results[1]))
        self.assertFalse(np.array_equal(results[0], results[2]))
        w = next(iter(onnx.load(self.folder / "a" / "model.onnx").graph.initializer))
        self.assertAlmostEqual(float(numpy_helper.to_array(w).std()), 0.25, delta=0.03)

    def test_fill_says_when_nothing_is_missing(self):
        whole = self.folder / "whole.onnx"
        whole.write_bytes(linear(self.weight).SerializeToString())
        with self.assertRaisesRegex(SystemExit, "nothing to fill"):
            call(fill_weights, whole, self.folder / "out")


if __name__ == "__main__":
    unittest.main()
