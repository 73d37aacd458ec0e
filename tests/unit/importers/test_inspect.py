"""What is in a file, and what an item costs on paper: against sums done by hand."""

from pathlib import Path

import numpy as np
import pytest

from isocenter.core.errors import ImportRefused
from isocenter.importers import inspect_onnx
from isocenter.importers.inspect_facts import with_sizes
from onnx_writer import Node, Port, write_classifier, write_onnx, write_quantised

CONV_1, CONV_2, LAST = 8 * 8 * 8 * 3 * 9, 8 * 8 * 8 * 8 * 9, 8 * 4
"""Multiply-adds of the classifier: 8 x 8 places, 8 channels, kernels of 3 x 3 over 3 and over 8 channels."""


def ones(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.ones(shape, np.float32)


def test_a_file_says_what_it_takes_and_gives(tmp_path: Path) -> None:
    facts = inspect_onnx.inspect(write_classifier(tmp_path / "m.onnx"))

    assert [str(slot) for slot in (*facts.inputs, *facts.outputs)] == [
        "image float32 [batch x 3 x 16 x 16]",
        "logits float32 [batch x 4]",
    ]
    assert facts.ops == {"Conv": 2, "Relu": 2, "Flatten": 1, "Gemm": 1, "GlobalAveragePool": 1}
    assert facts.weights == {"float32": 8 * 27 + 8 + 8 * 72 + 8 + 32 + 4}
    assert facts.weights_bytes == 4 * facts.parameters
    assert (facts.opsets, facts.layers, facts.warnings) == ({"ai.onnx": 17}, {"fp32": 3}, [])


def test_weights_are_counted_in_the_type_that_they_are_stored_in(tmp_path: Path) -> None:
    facts = inspect_onnx.inspect(write_quantised(tmp_path / "m.onnx"))

    assert facts.layers == {"int8": 2, "fp32": 1}
    assert facts.weights["int8"] == 8 * 27 + 8 * 72 + 1


def test_without_the_package_onnx_the_cost_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspect_onnx, "installed", lambda _: False)

    facts = inspect_onnx.inspect(write_classifier(tmp_path / "m.onnx"))

    assert facts.cost is None
    assert 'pip install "isocenter[' in facts.cost_missing


def test_multiply_adds_are_those_done_by_hand(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    facts = inspect_onnx.inspect(write_classifier(tmp_path / "m.onnx"))

    assert facts.cost is not None
    assert facts.cost.multiply_adds == CONV_1 + CONV_2 + LAST
    assert facts.cost.flops == 2 * facts.cost.multiply_adds
    assert facts.cost.uncounted == ()
    # A convolution's input and output, or two outputs of 8 x 8 x 8, whichever is more; the picture is 3 x 16 x 16.
    assert facts.cost.activation_bytes == 4 * (3 * 256 + 512)


@pytest.mark.parametrize(
    ("node", "weights", "taken", "expected"),
    [
        (Node("Conv", ["x", "w"], ["y"], {"group": 4}), ones(8, 1, 3, 3), (4, 10, 10), 8 * 8 * 8 * 9),
        (Node("Conv", ["x", "w"], ["y"]), ones(6, 4, 1, 2, 3), (4, 5, 6, 7), 6 * 5 * 5 * 5 * 4 * 6),
        (Node("ConvTranspose", ["x", "w"], ["y"], {"strides": [2, 2]}), ones(4, 5, 2, 2), (4, 6, 6), 4 * 36 * 5 * 4),
        (Node("MatMul", ["x", "w"], ["y"]), ones(7, 9), (5, 7), 5 * 7 * 9),
        (Node("Gemm", ["x", "w"], ["y"], {"transB": 1}), ones(9, 7), (7,), 7 * 9),
        (Node("Relu", ["x"], ["y"]), ones(1), (7,), 0),
    ],
    ids=["grouped", "three axes", "transposed", "matrices", "layer", "no product"],
)
def test_each_operator_is_counted(
    tmp_path: Path,
    node: Node,
    weights: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    taken: tuple[int, ...],
    expected: int,
) -> None:
    pytest.importorskip("onnx")
    given = ["batch", *(f"d{axis}" for axis in range(len(taken)))]
    file = write_onnx(tmp_path / "m.onnx", [node], [Port("x", ("batch", *taken))], [Port("y", given)], {"w": weights})

    facts = inspect_onnx.inspect(file)

    assert facts.cost is not None
    assert facts.cost.multiply_adds == expected


def test_memory_is_freed_after_its_last_use(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    chain = [Node("Relu", [f"v{at}"], [f"v{at + 1}"]) for at in range(6)]
    kept = [Node("Add", ["v6", "v0"], ["y"])]
    ports = [Port("v0", ("n", 100))], [Port("y", ("n", 100))]

    assert inspect_onnx.inspect(write_onnx(tmp_path / "a.onnx", chain, ports[0], [Port("v6", ("n", 100))])).cost
    free, held = (
        inspect_onnx.inspect(write_onnx(tmp_path / "m.onnx", nodes, ports[0], outputs)).cost
        for nodes, outputs in ((chain, [Port("v6", ("n", 100))]), ([*chain, *kept], ports[1]))
    )
    assert free is not None
    assert held is not None
    assert (free.activation_bytes, held.activation_bytes) == (800, 1200)


def test_open_sizes_are_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    weights = {"w": ones(2, 1, 3, 3)}
    file = write_onnx(
        tmp_path / "m.onnx",
        [Node("Conv", ["x", "w"], ["y"], {"pads": [1, 1, 1, 1]})],
        [Port("x", ("n", 1, "h", "w"))],
        [Port("y", ("n", 2, "h", "w"))],
        weights,
    )
    assert "--size" in inspect_onnx.inspect(file).cost_missing
    facts = inspect_onnx.inspect(file, sizes=[10, 20])
    assert facts.cost is not None
    assert facts.cost.multiply_adds == 2 * 200 * 9
    with pytest.raises(ImportRefused, match="2 axes are open"):
        inspect_onnx.inspect(file, sizes=[10])


def test_a_size_that_contradicts_the_file_is_refused() -> None:
    with pytest.raises(ImportRefused):
        with_sizes((3, 224, 224), (192, 192))


@pytest.mark.parametrize(
    ("nodes", "batch", "external", "warning"),
    [
        ([Node("Add", ["x", "w"], ["y"])], "n", "../w.bin", "outside of its folder"),
        ([Node("Add", ["x", "w"], ["y"])], "n", "w.bin", "are not there"),
        ([Node("Add", ["x", "w"], ["y"])], "n", "w\0", "outside of its folder"),
        ([Node("Add", ["x", "w"], ["y"])], 1, None, "fixed at 1"),
        ([Node("RandomNormalLike", ["x"], ["y"])], "n", None, "random numbers"),
    ],
    ids=["outside", "absent", "no name of a file", "fixed batch", "random"],
)
def test_what_is_odd_is_said(
    tmp_path: Path, nodes: list[Node], batch: int | str, external: str | None, warning: str
) -> None:
    file = write_onnx(
        tmp_path / "m.onnx",
        nodes,
        [Port("x", (batch, 3))],
        [Port("y", (batch, 3))],
        {"w": ones(3)},
        external={"w": external} if external else None,
    )
    facts = inspect_onnx.inspect(file)
    assert any(warning in said for said in facts.warnings)
    assert facts.external == ({external: None} if external else {})
