"""Tiny ONNX networks in the true layout of insightface's packs, made where a test needs them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

SIDE = 64
# Left and right eye, nose, corners of the mouth around an anchor, in strides; shaped like a face and upright.
POINTS = ((-1.0, -1.0), (1.0, -1.0), (0.0, 0.2), (-0.8, 1.2), (0.8, 1.2))
BOX = (2.0, 2.5, 2.0, 2.0)
"""distances from the anchor to left, top, right and bottom, in strides"""


def write_detector(path: Path, outputs: int = 9, side: int = SIDE, sees: str = "red") -> Path:
    """A detector of SCRFD's nine outputs whose score at stride 8 is how red or bright a cell is; two anchors each."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    # Input is (value - 127.5) / 128: half of red less green is 1 for pure red and 0 for every grey.
    weights = np.zeros((2, 3, 8, 8), np.float32)
    weights[0, 0], weights[0, 1] = 0.5 / 64, -0.5 / 64
    if sees == "bright":
        # White is 1 and middle grey 0.
        weights[0] = 1 / (3 * 64)
    weights[1] = weights[0] * 0.5
    constants = {"weights": weights, "rows": np.array([-1, 1], np.int64)}
    nodes = [
        helper.make_node("Conv", ["picture", "weights"], ["maps"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Transpose", ["maps"], ["last"], perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", ["last", "rows"], ["score8"]),
    ]
    for kind, values in (("score", (0.0,)), ("box", BOX), ("points", sum(POINTS, ()))):
        for stride in (8, 16, 32):
            name, count = f"{kind}{stride}", 2 * (side // stride) ** 2
            if name != "score8":
                constants[f"{name}_values"] = np.tile(np.array(values, np.float32), (count, 1))
                nodes.append(helper.make_node("Identity", [f"{name}_values"], [name]))
    names = [f"{kind}{stride}" for kind in ("score", "box", "points") for stride in (8, 16, 32)][:outputs]
    graph = helper.make_graph(
        [node for node in nodes if node.op_type != "Identity" or node.output[0] in names],
        "tiny",
        [helper.make_tensor_value_info("picture", TensorProto.FLOAT, [1, 3, side, side])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return _write(graph, path)


def write_recognizer(path: Path, width: int = 512) -> Path:
    """A recogniser that embeds mean colours on a grid of 4x4."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    matrix = np.random.RandomState(0).standard_normal((48, width)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("AveragePool", ["picture"], ["small"], kernel_shape=[28, 28], strides=[28, 28]),
            helper.make_node("Flatten", ["small"], ["row"]),
            helper.make_node("MatMul", ["row", "matrix"], ["embedding"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("picture", TensorProto.FLOAT, [1, 3, 112, 112])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, width])],
        [numpy_helper.from_array(matrix, "matrix")],
    )
    return _write(graph, path)


def _write(graph: object, path: Path) -> Path:
    from onnx import helper

    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path
