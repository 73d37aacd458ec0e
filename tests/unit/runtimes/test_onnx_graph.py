"""What an ONNX graph computes in, read from its bytes."""

from pathlib import Path

import numpy as np
import pytest

from isocenter.core.errors import BadManifest
from isocenter.runtimes.onnx_graph import computed_layers, stated_layers, vetted
from onnx_writer import NUMBERS, Node, Port, write_classifier, write_onnx, write_quantised

ONES = np.ones((4, 4), np.float32)
X, Y = [Port("x", ("batch", 4))], [Port("y", ("batch", 4))]


def test_layers_count_in_the_type_of_their_weights(tmp_path: Path) -> None:
    assert stated_layers(write_classifier(tmp_path / "m.onnx")) == {"fp32": 3}
    assert stated_layers(write_classifier(tmp_path / "m.onnx", dtype="float16")) == {"fp16": 3}


def test_weights_behind_a_dequantiser_are_int8_until_a_runtime_has_left_them_there(tmp_path: Path) -> None:
    file = write_quantised(tmp_path / "m.onnx")
    assert stated_layers(file) == {"int8": 2, "fp32": 1}
    assert computed_layers(file) == {"fp32": 3}


def test_weights_stored_in_16_bits_are_not_fp32_because_they_are_cast(tmp_path: Path) -> None:
    cast = Node("Cast", ["half"], ["w"], {"to": NUMBERS["float32"]})
    product = Node("MatMul", ["x", "w"], ["y"])
    file = write_onnx(tmp_path / "m.onnx", [cast, product], X, Y, {"half": ONES.astype(np.float16)})
    assert stated_layers(file) == {"fp16": 1}
    assert computed_layers(file) == {"fp32": 1}


def test_a_product_between_casts_is_seen(tmp_path: Path) -> None:
    nodes = [
        Node("Constant", [], ["w"], {"value": ONES}),
        Node("Cast", ["x"], ["x16"], {"to": NUMBERS["float16"]}),
        Node("Cast", ["w"], ["w16"], {"to": NUMBERS["float16"]}),
        Node("MatMul", ["x16", "w16"], ["y16"]),
        Node("Cast", ["y16"], ["y"], {"to": NUMBERS["float32"]}),
    ]
    assert stated_layers(write_onnx(tmp_path / "m.onnx", nodes, X, Y)) == {"fp16": 1}


def test_types_are_followed_through_nodes(tmp_path: Path) -> None:
    nodes = [
        Node("Transpose", ["w"], ["wt"], {"perm": [1, 0]}),
        Node("Relu", ["wt"], ["wr"]),
        Node("MatMul", ["x", "wr"], ["y"]),
    ]
    assert stated_layers(write_onnx(tmp_path / "m.onnx", nodes, X, Y, {"w": ONES})) == {"fp32": 1}


def test_integer_products_are_int8(tmp_path: Path) -> None:
    nodes = [Node("DynamicQuantizeMatMul", ["x", "w", "s"], ["y"])]
    file = write_onnx(tmp_path / "m.onnx", nodes, X, Y, {"w": ONES.astype(np.int8), "s": np.ones((), np.float32)})
    assert stated_layers(file) == {"int8": 1}


@pytest.mark.parametrize("elsewhere", ["../secret.bin", "/etc/passwd", "a/../../secret.bin", "", "link.bin"])
def test_weights_outside_of_the_folder_are_refused(elsewhere: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(ONES.tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    file = folder / "m.onnx"
    write_onnx(file, [Node("MatMul", ["x", "w"], ["y"])], X, Y, {"w": ONES}, external={"w": elsewhere})
    with pytest.raises(BadManifest, match="which is not in its folder; nothing of it was read"):
        vetted(file)


def test_weights_beside_the_file_are_let_in(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    write_onnx(file, [Node("MatMul", ["x", "w"], ["y"])], X, Y, {"w": ONES}, external={"w": "weights.bin"})
    assert vetted(file).external == ["weights.bin"]


@pytest.mark.parametrize("content", [b"", b"no graph at all", b"\x3a\xff\xff\xff\xff\x0f"])
def test_what_is_not_an_onnx_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(BadManifest):
        vetted(tmp_path / "m.onnx")
