"""No file is read without anybody knowing."""

from pathlib import Path

import numpy as np
import pytest

from isocenter.core.errors import BadManifest
from isocenter.runtimes.beside import read_with
from onnx_writer import Node, Port, write_classifier, write_onnx


def test_the_weights_of_an_xml_are_in_its_bin() -> None:
    assert read_with("openvino", Path("a/model.xml")) == ["model.bin"]


@pytest.mark.parametrize("kind", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", ["model.onnx", "model.weights"])
def test_an_onnx_file_says_itself_what_it_reads(kind: str, name: str, tmp_path: Path) -> None:
    ports = [Port("x", ("batch", 4))], [Port("y", ("batch", 4))]
    ones = np.ones((4, 4), np.float32)
    file = write_onnx(
        tmp_path / name, [Node("MatMul", ["x", "w"], ["y"])], *ports, {"w": ones}, external={"w": "w.bin"}
    )
    assert read_with(kind, file) == ["w.bin"]
    assert read_with(kind, write_classifier(tmp_path / "whole.onnx")) == []


def test_what_is_not_an_onnx_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"none")
    with pytest.raises(BadManifest):
        read_with("onnxruntime", tmp_path / "m.onnx")


def test_torch_reads_one_file(tmp_path: Path) -> None:
    assert read_with("torch", tmp_path / "m.pt") == []
