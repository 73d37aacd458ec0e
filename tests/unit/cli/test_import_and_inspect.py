"""`isocenter import` and `isocenter inspect` as people type them."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from bioimageio_packages import package
from isocenter.cli import import_ as command
from isocenter.cli.main import app
from isocenter.core.errors import ImportRefused
from isocenter.importers import answers as q
from onnx_writer import write_classifier

SAID = [
    "--task", "classification", "--labels", "a,b,c,d", "--activation", "softmax", "--scale", "1/255",
    "--mean", "0.5", "--std", "0.25", "--resize", "stretch",
]  # fmt: skip


def isocenter(*arguments: object, typed: str = "") -> Any:
    return CliRunner().invoke(app, [str(each) for each in arguments], input=typed)


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    return write_classifier(tmp_path / "net.onnx")


def test_flags_alone_make_a_version(tmp_path: Path, classifier: Path) -> None:
    done = isocenter("import", classifier, "--models", tmp_path / "models", "--name", "lungs", "--yes", "--json", *SAID)

    assert done.exit_code == 0, done.stderr
    said = json.loads(done.stdout)
    assert {key: said[key] for key in ("kind", "name", "version", "task")} == {
        "kind": "onnx", "name": "lungs", "version": 1, "task": "classification",
    }  # fmt: skip
    assert (Path(said["path"]) / "model.yaml").is_file()


def test_each_import_is_the_next_version(tmp_path: Path, classifier: Path) -> None:
    for version in (1, 2):
        done = isocenter("import", classifier, "--models", tmp_path / "models", "--name", "lungs", "--yes", *SAID)
        assert f"lungs {version}: classification, proven" in done.stdout
    done = isocenter(
        "import", classifier, "--models", tmp_path / "models", "--name", "lungs", "--version", "2", "--yes", *SAID
    )
    assert (done.exit_code, "never overwritten" in done.stderr) == (2, True)


def test_a_missing_answer_names_its_flag(tmp_path: Path, classifier: Path) -> None:
    done = isocenter("import", classifier, "--models", tmp_path / "models", "--name", "lungs", "--yes", *SAID[2:])
    assert done.exit_code == 2
    assert "--task classification|segmentation|tensors" in done.stderr
    assert not (tmp_path / "models").exists()


def test_an_option_that_means_nothing_is_an_error(tmp_path: Path, classifier: Path) -> None:
    odd = ("--channels", "red")
    done = isocenter("import", classifier, "--models", tmp_path / "models", "--name", "lungs", "--yes", *SAID, *odd)
    assert (done.exit_code, "--channels does not belong" in done.stderr) == (2, True)


def test_a_bare_file_needs_a_name(tmp_path: Path, classifier: Path) -> None:
    done = isocenter("import", classifier, "--models", tmp_path / "models", "--yes", *SAID)
    assert (done.exit_code, "--name" in done.stderr) == (2, True)


def test_a_package_is_found_by_looking_and_needs_no_option(tmp_path: Path) -> None:
    source = package(tmp_path / "cells")

    done = isocenter("import", source, "--models", tmp_path / "models", "--yes")

    assert done.exit_code == 0, done.stderr
    assert "cells-two-stains 1: segmentation, proven" in done.stdout
    assert "reproduced" in done.stdout


def test_a_package_is_not_asked_what_it_says_itself(tmp_path: Path) -> None:
    done = isocenter("import", package(tmp_path / "cells"), "--models", tmp_path / "models", "--yes", "--mean", "0")
    assert (done.exit_code, "--mean is not asked of a bioimageio package" in done.stderr) == (2, True)


def test_folds_go_to_nnunet_and_to_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def read(source: Path, **said: Any) -> None:
        asked.append({"source": source, **said})
        raise ImportRefused("read so far")

    monkeypatch.setitem(sys.modules, "isocenter.importers.nnunet", SimpleNamespace(read=read))
    for name in ("plans.json", "dataset.json"):
        (tmp_path / name).write_text("{}")
    isocenter("import", tmp_path, "--models", tmp_path / "models", "--yes", "--folds", "0,1")
    assert asked == [{"source": tmp_path, "version": 1, "folds": ["0", "1"]}]

    done = isocenter("import", package(tmp_path / "cells"), "--models", tmp_path / "models", "--yes", "--folds", "0")
    assert (done.exit_code, "--folds is not asked of a bioimageio package" in done.stderr) == (2, True)


def test_what_it_is_may_be_said_and_is_still_looked_at(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"\x80\x04not a model")
    for said in ([], ["--as", "onnx"], ["--as", "torchscript"], ["--as", "bioimageio"]):
        done = isocenter("import", tmp_path / "net.onnx", "--models", tmp_path / "m", "--name", "x", "--yes", *said)
        assert (done.exit_code, "error: " in done.stderr, "bug" in done.stderr) == (2, True, False)


def test_a_person_is_asked_again_until_the_answer_can_be_read(
    tmp_path: Path, classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = iter(["a,b,b", "a,b,c,d"])
    monkeypatch.setattr("rich.prompt.Prompt.ask", lambda *_, **__: next(typed))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)

    answers = q.Answers({}, command._ask)

    assert answers.get(q.LABELS, q.words) == ["a", "b", "c", "d"]


def test_inspect_says_what_is_in_a_file(classifier: Path) -> None:
    done = isocenter("inspect", classifier)
    assert done.exit_code == 0, done.stderr
    for said in ("image float32 [batch x 3 x 16 x 16]", "Conv 2", "3 in fp32"):
        assert said in done.stdout


def test_inspect_writes_json(classifier: Path) -> None:
    pytest.importorskip("onnx")
    said = json.loads(isocenter("inspect", classifier, "--json").stdout)
    assert said["parameters"] == 844
    assert said["cost"]["flops"] == 2 * said["cost"]["multiply_adds"]


def test_inspect_takes_a_model_folder(tmp_path: Path, classifier: Path) -> None:
    isocenter("import", classifier, "--models", tmp_path / "models", "--name", "lungs", "--yes", *SAID)
    done = isocenter("inspect", tmp_path / "models" / "lungs" / "1")
    assert "model.onnx: onnx" in done.stdout


def test_inspect_says_what_it_cannot_look_into(tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(b"\x80\x04not a model")
    for source, sentence in ((tmp_path / "net.pt", "is a pickle"), (tmp_path, "no model.yaml")):
        done = isocenter("inspect", source)
        assert (done.exit_code, sentence in done.stderr) == (2, True)
