"""A session that says so gives answers that are nobody else's: neither its own, nor the caller's input."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, save

from isocenter.runtimes.base import Fresh, SessionOptions
from isocenter.runtimes.registry import open_runtime

NAMES = ("as it came", "half", "weights")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A graph that gives back its input, its input halved, and weights of its own."""
    nodes = [
        helper.make_node("Identity", ["x"], [NAMES[0]]),
        helper.make_node("Mul", ["x", "factor"], [NAMES[1]]),
        helper.make_node("Gather", ["kept", "rows"], [NAMES[2]]),
        helper.make_node("Sub", ["x", "x"], ["none"]),
        helper.make_node("ReduceSum", ["none", "axis"], ["zeros"], keepdims=0),
        helper.make_node("Cast", ["zeros"], ["rows"], to=TensorProto.INT64),
    ]
    weights = [
        helper.make_tensor("factor", TensorProto.FLOAT, [1], [0.5]),
        helper.make_tensor("kept", TensorProto.FLOAT, [1, 4], [1.0, 2.0, 3.0, 4.0]),
        helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
    ]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in NAMES]
    graph = helper.make_graph(nodes, "fresh", given, made, weights)
    file = tmp_path / "model.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    return file


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_no_run_and_no_caller_writes_over_an_answer(runtime: str, model: Path) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    session = open_runtime(runtime).open(model, SessionOptions(precision="fp32"))
    # What ONNX Runtime gives lies in its arena: kept uncopied, the windows of one volume made that grow by 600 MB.
    assert isinstance(session, Fresh) is (runtime == "openvino")
    item = np.array([[2, 4, 6, 8]], np.float32)
    first = session.run({"x": item})
    expected = {name: array.copy() for name, array in first.items()}

    item[:] = -1.0
    later = session.run({"x": np.full((1, 4), 7, np.float32)})
    session.run({"x": np.full((3, 4), 9, np.float32)})

    for name in NAMES:
        assert np.array_equal(first[name], expected[name]), name
        later[name][:] = 0.0
        assert np.array_equal(first[name], expected[name]), name
    assert np.array_equal(session.run({"x": np.ones((1, 4), np.float32)})["weights"], [[1, 2, 3, 4]])
