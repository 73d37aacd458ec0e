"""What ONNX Runtime says is told in our words, and never quoted."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from conftest import MODELS
from isocenter.core.errors import BadManifest
from isocenter.runtimes.base import SessionOptions
from isocenter.runtimes.onnxruntime import OnnxRuntime
from onnx_writer import IMAGE, Node, Port, write_classifier, write_onnx, write_quantised
from patience import PATIENCE_S

WEIGHTS = MODELS / "brain-mri-classifier" / "1" / "model.onnx"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"spining": True}, "no option 'spining'"),
        ({"arena": "no"}, "option arena .* must be true or false"),
        ({"graph": "full"}, "option graph .* one of all, extended, basic, off"),
    ],
)
def test_an_option_that_means_nothing_is_refused(
    options: dict[str, str | int | float | bool], says: str, tmp_path: Path
) -> None:
    with pytest.raises(BadManifest, match=says):
        OnnxRuntime().open(tmp_path / "none.onnx", SessionOptions(options=options))


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on address space")
@pytest.mark.parametrize("arena", [True, False])
def test_a_session_that_had_no_memory_goes_on_and_says_nothing_of_it_on_stderr(arena: bool) -> None:
    script = textwrap.dedent(f"""
        import resource
        from pathlib import Path
        import numpy as np
        from isocenter.core.errors import OutOfMemory
        from isocenter.runtimes.base import SessionOptions
        from isocenter.runtimes.onnxruntime import OnnxRuntime

        session = OnnxRuntime().open(Path({str(WEIGHTS)!r}), SessionOptions(options={{"arena": {arena}}}))
        images = np.zeros((256, 3, 224, 224), np.float32)
        session.run({{"image": images[:1]}})
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + 64 * 2**20,) * 2)
        try:
            session.run({{"image": images}})
        except OutOfMemory as error:
            print(error.message)
        print(session.run({{"image": images[:1]}})["logits"].shape)
    """)
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert ended.stdout.splitlines() == ["onnxruntime had no memory for the run", "(1, 4)"]
    assert ended.stderr == ""


def test_an_fp32_graph_proves_itself(tmp_path: Path) -> None:
    session = OnnxRuntime().open(write_classifier(tmp_path / "m.onnx"), SessionOptions())
    assert session.proof == "fp32: 3 of 3 layers; read from the graph"


def test_a_quantised_graph_is_int8_where_its_products_are_computed_in_int8(tmp_path: Path) -> None:
    file = write_quantised(tmp_path / "m.onnx")
    session = OnnxRuntime().open(file, SessionOptions(precision="int8"))
    assert session.proof == "int8: 2 of 3 layers, the rest in fp32; read from the graph as rewritten to run"


def test_a_quantised_graph_that_is_not_rewritten_computes_in_fp32_and_is_refused(tmp_path: Path) -> None:
    file = write_quantised(tmp_path / "m.onnx")
    with pytest.raises(BadManifest, match="precision is int8, but 3 of its layers compute in fp32"):
        OnnxRuntime().open(file, SessionOptions(precision="int8", options={"graph": "off"}))


def test_a_graph_in_16_bits_is_refused_where_it_would_be_cast_to_fp32(tmp_path: Path) -> None:
    file = write_classifier(tmp_path / "m.onnx", dtype="float16", ports="float32")
    with pytest.raises(BadManifest, match="precision is fp16, but 3 of its layers compute in fp32"):
        OnnxRuntime().open(file, SessionOptions(precision="fp16"))
    with pytest.raises(BadManifest, match="precision is fp32, but 3 of its layers compute in fp16"):
        OnnxRuntime().open(file, SessionOptions())


@pytest.mark.parametrize("graph", ["all", "extended", "basic", "off"])
def test_every_level_of_rewriting_answers_alike(graph: str, tmp_path: Path) -> None:
    file = write_classifier(tmp_path / "m.onnx")
    batch = {"image": np.random.default_rng(0).standard_normal((3, *IMAGE), dtype=np.float32)}
    expected = OnnxRuntime().open(file, SessionOptions()).run(batch)["logits"]
    found = OnnxRuntime().open(file, SessionOptions(options={"graph": graph})).run(batch)["logits"]
    assert np.abs(found - expected).max() <= 1e-5


def test_a_batch_axis_of_one_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadManifest, match="axis 0 must be a dynamic batch axis"):
        OnnxRuntime().open(write_classifier(tmp_path / "m.onnx", batch=1), SessionOptions())


def test_weights_outside_of_the_folder_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    ones = np.ones((4, 4), np.float32)
    (tmp_path / "secret.bin").write_bytes(ones.tobytes())
    file = write_onnx(
        tmp_path / "model" / "m.onnx",
        [Node("MatMul", ["x", "w"], ["y"])],
        [Port("x", ("batch", 4))],
        [Port("y", ("batch", 4))],
        {"w": ones},
        external={"w": "../secret.bin"},
    )
    with pytest.raises(BadManifest, match="nothing of it was read"):
        OnnxRuntime().open(file, SessionOptions())


def test_the_format_of_its_own_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\x18\x00\x00\x00ORTM" + bytes(64))
    with pytest.raises(BadManifest):
        OnnxRuntime().open(tmp_path / "m.onnx", SessionOptions())
