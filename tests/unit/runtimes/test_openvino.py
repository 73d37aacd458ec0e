"""OpenVINO computes as stated: a hint that it does not take is not taken for granted."""

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from isocenter.core.errors import BadManifest
from isocenter.runtimes.base import SessionOptions
from onnx_writer import write_classifier, write_quantised

pytest.importorskip("openvino")

from isocenter.runtimes import openvino as ours
from isocenter.runtimes.openvino import OpenVino, openvino_without_telemetry
from patience import PATIENCE_S


def test_layers_are_read_from_the_compiled_model(tmp_path: Path) -> None:
    session = OpenVino().open(write_classifier(tmp_path / "m.onnx"), SessionOptions())
    assert session.proof == "fp32: 3 of 3 layers; read from the compiled model"


def test_quantised_layers_are_read_from_the_compiled_model(tmp_path: Path) -> None:
    session = OpenVino().open(write_quantised(tmp_path / "m.onnx"), SessionOptions(precision="int8"))
    assert session.proof == "int8: 2 of 3 layers, the rest in fp32; read from the compiled model"


def test_an_unquantised_graph_is_not_int8(tmp_path: Path) -> None:
    with pytest.raises(BadManifest, match="precision is int8, but 3 of its layers compute in fp32"):
        OpenVino().open(write_classifier(tmp_path / "m.onnx"), SessionOptions(precision="int8"))


def test_a_precision_that_the_processor_has_not_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Core:
        """A processor with nothing but fp32."""

        available_devices = ("CPU",)

        def get_property(self, *_: str) -> list[str]:
            return ["FP32", "EXPORT_IMPORT"]

    monkeypatch.setattr(ours, "_core", Core)
    with pytest.raises(BadManifest, match="openvino on cpu has no bf16; it has fp32"):
        OpenVino().open(tmp_path / "m.onnx", SessionOptions(precision="bf16"))


def test_a_hint_that_was_dropped_in_silence_is_found_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if "BF16" in ours._core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has bf16")
    monkeypatch.setattr(ours, "_refuse_precision", lambda *_: None)
    with pytest.raises(BadManifest, match="precision is bf16, but cpu computes in fp32"):
        OpenVino().open(write_classifier(tmp_path / "m.onnx"), SessionOptions(precision="bf16"))


def test_weights_that_were_saved_in_16_bits_are_not_fp32(tmp_path: Path) -> None:
    openvino = openvino_without_telemetry()
    model = openvino.Core().read_model(str(write_classifier(tmp_path / "m.onnx", width=64)))
    openvino.save_model(model, str(tmp_path / "m.xml"), compress_to_fp16=True)
    with pytest.raises(BadManifest, match=r"constants of m\.xml are stored in 16 bits"):
        OpenVino().open(tmp_path / "m.xml", SessionOptions())


def test_threads_and_streams_are_those_that_were_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    core, seen = ours._core(), []

    class Core:
        """The real one, listened to."""

        def __getattr__(self, name: str) -> Any:
            return getattr(core, name)

        def compile_model(self, *given: Any) -> Any:
            seen.append(core.compile_model(*given))
            return seen[-1]

    monkeypatch.setattr(ours, "_core", Core)
    OpenVino().open(write_classifier(tmp_path / "m.onnx"), SessionOptions(threads=2))
    names = ("INFERENCE_NUM_THREADS", "NUM_STREAMS", "ENABLE_CPU_PINNING", "DYNAMIC_QUANTIZATION_GROUP_SIZE")
    assert [str(seen[0].get_property(name)) for name in names] == ["2", "1", "False", "0"]


def test_an_xml_without_its_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.xml").write_text("<net/>")
    with pytest.raises(BadManifest, match=r"no weights beside m\.xml: expected m\.bin"):
        OpenVino().open(tmp_path / "m.xml", SessionOptions())


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadManifest, match=r"reads \.xml and \.onnx files, not m\.pdmodel"):
        OpenVino().open(tmp_path / "m.pdmodel", SessionOptions())


def test_a_batch_axis_of_one_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadManifest, match="axis 0 must be a dynamic batch axis"):
        OpenVino().open(write_classifier(tmp_path / "m.onnx", batch=1), SessionOptions())


def test_importing_it_tells_nobody() -> None:
    script = textwrap.dedent("""
        import socket, sys

        def refuse(*_: object, **__: object) -> None:
            sys.exit("somebody was called")

        socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
        from isocenter.runtimes.openvino import openvino_without_telemetry

        openvino_without_telemetry()
        sys.exit(sys.modules["openvino_telemetry"] is not None)
    """)
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=PATIENCE_S).returncode == 0
