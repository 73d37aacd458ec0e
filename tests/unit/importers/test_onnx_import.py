"""A bare ONNX file: what the graph says is taken, what it does not say is asked, and nothing is guessed."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isocenter.core.errors import BadManifest, ImportRefused
from isocenter.importers.answers import Answers, Question
from isocenter.importers.batch_axis import open_batch_axis
from isocenter.importers.folder import write_folder
from isocenter.importers.onnx_file import read
from isocenter.runtimes.base import SessionOptions
from isocenter.runtimes.onnx_file import parse_onnx, read_onnx
from isocenter.runtimes.registry import open_runtime
from onnx_writer import Node, Port, write_classifier, write_onnx, write_quantised

CLASSIFIER = {
    "task": "classification", "labels": "a,b,c,d", "activation": "softmax", "scale": "1/255", "mean": "0.5",
    "std": "0.25", "resize": "letterbox",
}  # fmt: skip
SEGMENTER = {
    "task": "segmentation", "labels": "background,cell", "activation": "softmax", "scale": "1", "mean": "0", "std": "2",
    "channels": "stain", "size": "16,24",
}  # fmt: skip
W = np.random.default_rng(0).standard_normal((2, 1, 3, 3)).astype(np.float32)


def segmenter(file: Path, **options: Any) -> Path:
    """One convolution of an open size."""
    return write_onnx(
        file,
        [Node("Conv", ["x", "w"], ["y"], {"pads": [1, 1, 1, 1]})],
        [Port("x", ("batch", 1, "h", "w"))],
        [Port("y", ("batch", 2, "h", "w"))],
        {"w": W},
        **options,
    )


def flattened(file: Path) -> Path:
    """Its reshape knows one item only."""
    nodes = [
        Node("GlobalAveragePool", ["x"], ["p"]),
        Node("Constant", [], ["shape"], {"value": np.array([1, 3], np.int64)}),
        Node("Reshape", ["p", "shape"], ["y"]),
    ]
    return write_onnx(file, nodes, [Port("x", (1, 3, 8, 8))], [Port("y", (1, 3))])


def run(file: Path, batch: Any) -> Any:
    session = open_runtime("onnxruntime").open(file, SessionOptions())
    return session.run({session.inputs[0].name: batch})[session.outputs[0].name]


def test_a_classifier_becomes_a_version(tmp_path: Path) -> None:
    file = write_classifier(tmp_path / "some.onnx")

    made = read(file, Answers(CLASSIFIER), name="lungs", version=3)
    written = write_folder(tmp_path / "models", made)

    manifest = written.manifest
    assert (manifest.version, manifest.runtime.file, manifest.output.labels) == (3, "model.onnx", ["a", "b", "c", "d"])
    assert [step.model_dump() for step in manifest.transforms] == [
        {"kind": "color", "to": "rgb"},
        {
            "kind": "resize", "size": (16, 16), "mode": "letterbox",
            "filter": "bilinear", "antialias": True, "pad": 0.0,
        },
        {"kind": "normalize", "scale": 1 / 255, "mean": (0.5,) * 3, "std": (0.25,) * 3},
    ]  # fmt: skip
    assert written.weights.read_bytes() == file.read_bytes()
    assert any("not that it is right" in note for note in made.notes)


def test_a_segmentation_model_becomes_a_version(tmp_path: Path) -> None:
    made = read(segmenter(tmp_path / "m.onnx"), Answers(SEGMENTER), name="cells")

    manifest = write_folder(tmp_path / "models", made).manifest

    assert manifest.sliding is not None
    assert manifest.sliding.roi == (16, 24)
    assert [step.model_dump() for step in manifest.steps] == [{"kind": "shift_scale", "gain": (0.5,), "offset": (0.0,)}]
    assert (manifest.input.kind, manifest.input.channels) == ("image2d", ["stain"])


def test_plain_tensors_become_a_version(tmp_path: Path) -> None:
    made = read(segmenter(tmp_path / "m.onnx"), Answers({"task": "tensors", "size": "1,8,8"}), name="plain")

    assert write_folder(tmp_path / "models", made).manifest.input.kind == "tensors"


@pytest.mark.parametrize("flag", sorted(CLASSIFIER))
def test_what_is_not_said_is_an_error_that_names_its_flag(tmp_path: Path, flag: str) -> None:
    file = write_classifier(tmp_path / "m.onnx")
    said = {key: text for key, text in CLASSIFIER.items() if key != flag}

    with pytest.raises(ImportRefused, match=f"nothing is guessed.*--{flag}") as refused:
        read(file, Answers(said), name="lungs")
    assert refused.value.details == {"flag": f"--{flag}"}


def test_a_person_is_asked_only_what_is_not_known(tmp_path: Path) -> None:
    asked: list[str] = []

    def person(question: Question, check: Any) -> str:
        asked.append(question.flag)
        check(CLASSIFIER[question.flag])
        return CLASSIFIER[question.flag]

    file = write_classifier(tmp_path / "m.onnx")
    made = read(file, Answers({"task": "classification", "mean": "0"}, person), name="lungs")

    assert set(asked) == set(CLASSIFIER) - {"task", "mean"}
    assert made.manifest["output"]["labels"] == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("flag", "text", "sentence"),
    [
        ("labels", "a,b", "the graph gives 4"),
        ("labels", "a,b,b,d", "differ"),
        ("mean", "0.1,0.2", "3 channels"),
        ("mean", "half", "numbers"),
        ("std", "0", "above 0"),
        ("scale", "-1", "above 0"),
        ("size", "32,32", "the graph takes"),
        ("color", "gray", "3 channels"),
        ("activation", "relu", "one of softmax"),
        ("task", "segmentation", "takes and gives"),
    ],
)
def test_an_answer_that_contradicts_the_graph_is_refused(tmp_path: Path, flag: str, text: str, sentence: str) -> None:
    file = write_classifier(tmp_path / "m.onnx")

    with pytest.raises(ImportRefused, match=sentence):
        read(file, Answers({**CLASSIFIER, flag: text}), name="lungs")


def test_flags_that_nobody_wanted_are_known() -> None:
    answers = Answers({"mean": "0", "task": "tensors"})
    answers.get(Question("task", "?"), str)
    assert answers.unused() == ["mean"]


def test_channels_last_is_refused(tmp_path: Path) -> None:
    file = write_onnx(
        tmp_path / "m.onnx", [Node("Relu", ["x"], ["y"])], [Port("x", ("n", 32, 32, 3))], [Port("y", ("n", 32, 32, 3))]
    )
    with pytest.raises(ImportRefused, match="channels last"):
        read(file, Answers(SEGMENTER), name="cells")


@pytest.mark.parametrize("dtype", ["uint8", "float16"])
def test_another_type_than_float32_is_refused(tmp_path: Path, dtype: str) -> None:
    file = write_onnx(
        tmp_path / "m.onnx", [Node("Relu", ["x"], ["y"])], [Port("x", ("n", 3), dtype)], [Port("y", ("n", 3), dtype)]
    )
    with pytest.raises(ImportRefused, match=f"is {dtype}"):
        read(file, Answers({"task": "tensors"}), name="plain")


def test_one_of_several_outputs_is_named_never_taken(tmp_path: Path) -> None:
    nodes = [Node("Relu", ["x"], ["y"]), Node("Neg", ["x"], ["z"])]
    file = write_onnx(tmp_path / "m.onnx", nodes, [Port("x", ("n", 3))], [Port("y", ("n", 3)), Port("z", ("n", 3))])

    with pytest.raises(ImportRefused, match=r"--output y\|z"):
        read(file, Answers({"task": "tensors"}), name="plain")


@pytest.mark.parametrize("write", [write_quantised, partial(write_classifier, dtype="float16", ports="float32")])
def test_layers_of_another_precision_are_not_imported_as_fp32(tmp_path: Path, write: Any) -> None:
    file = write(tmp_path / "m.onnx")

    with pytest.raises(BadManifest, match="precision is fp32, but"):
        write_folder(tmp_path / "models", read(file, Answers(CLASSIFIER), name="lungs"))
    assert list((tmp_path / "models").rglob("*")) == []


# The batch axis.


def test_a_fixed_batch_axis_is_opened_and_gives_the_same_answers(tmp_path: Path) -> None:
    fixed, free = (write_classifier(tmp_path / f"{batch}.onnx", batch=batch) for batch in (1, "batch"))
    batch = np.random.default_rng(0).standard_normal((3, 3, 16, 16), dtype=np.float32)

    opened = tmp_path / "opened.onnx"
    opened.write_bytes(open_batch_axis(fixed.read_bytes()))

    assert read_onnx(opened) == read_onnx(free)
    np.testing.assert_array_equal(run(opened, batch), run(free, batch))


def test_an_opened_file_is_what_the_onnx_package_takes_for_valid(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(open_batch_axis(write_classifier(tmp_path / "m.onnx", batch=1).read_bytes()))
    onnx.checker.check_model(model, full_check=True)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_an_import_says_that_it_opened_the_axis(tmp_path: Path) -> None:
    file = write_classifier(tmp_path / "m.onnx", batch=1)

    made = read(file, Answers(CLASSIFIER), name="lungs")
    manifest = write_folder(tmp_path / "models", made).manifest

    assert "batch axis was fixed at 1" in made.notes[0]
    assert manifest.batching.max_batch_size == 16


def test_a_graph_that_knows_one_item_only_is_served_one_at_a_time(tmp_path: Path) -> None:
    said = {**CLASSIFIER, "labels": "a,b,c"}

    made = read(flattened(tmp_path / "m.onnx"), Answers(said), name="lungs")
    manifest = write_folder(tmp_path / "models", made).manifest

    assert manifest.batching.max_batch_size == 1
    assert "one item a batch" in made.notes[-1]


def test_a_batch_axis_of_eight_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImportRefused, match="fixed at 8"):
        read(write_classifier(tmp_path / "m.onnx", batch=8), Answers(CLASSIFIER), name="lungs")


# Other files.


def test_external_data_comes_along_with_a_digest(tmp_path: Path) -> None:
    file = segmenter(tmp_path / "m.onnx", external={"w": "w.bin"})
    (tmp_path / "w.bin").write_bytes(W.tobytes())
    plain = segmenter(tmp_path / "plain.onnx")
    item = np.random.default_rng(0).standard_normal((1, 1, 16, 24), dtype=np.float32)

    written = write_folder(tmp_path / "models", read(file, Answers(SEGMENTER), name="cells"))

    assert [part.file for part in written.manifest.runtime.beside] == ["w.bin"]
    np.testing.assert_array_equal(run(written.weights, item), run(plain, item))


@pytest.mark.parametrize(
    "where",
    ["../secret.bin", "/etc/passwd", "a/../../secret.bin", "link.bin", "absent.bin", "", "m.onnx", "a\0b", "x" * 5000],
)
def test_external_data_elsewhere_is_refused_and_not_read(tmp_path: Path, where: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    secret = tmp_path / "secret.bin"
    secret.write_bytes(W.tobytes())
    (inside / "link.bin").symlink_to(secret)
    secret.chmod(0)
    file = segmenter(inside / "m.onnx", external={"w": where})

    with pytest.raises(ImportRefused):
        read(file, Answers(SEGMENTER), name="cells")
    assert not (tmp_path / "models").exists()


def test_of_several_tensors_the_one_that_was_named_is_proven(tmp_path: Path) -> None:
    nodes = [Node("Relu", ["x"], ["y"]), Node("Neg", ["x"], ["z"])]
    ports = [Port("y", ("n", 4)), Port("z", ("n", 4))]
    file = write_onnx(tmp_path / "m.onnx", nodes, [Port("x", ("n", 4))], ports)

    written = write_folder(tmp_path / "models", read(file, Answers({"task": "tensors", "output": "z"}), name="both"))

    assert written.manifest.output.tensor == "z"
    np.testing.assert_allclose(
        np.load(written.golden / "noise.output.npy"), -np.load(written.golden / "noise.input.npy")
    )


@pytest.mark.parametrize("name", ["model.onnx", "difference.json", "golden/noise.input.npy", "./model.yaml"])
def test_external_data_does_not_take_the_place_of_what_a_folder_has_of_its_own(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(W.tobytes())
    file = segmenter(tmp_path / "m.onnx", external={"w": name})

    with pytest.raises(ImportRefused, match="a name that a version's folder has for something else"):
        read(file, Answers(SEGMENTER), name="cells")


def scorer(file: Path, *last: Node) -> Path:
    """Scores of four labels, and what the graph makes of them."""
    nodes = [Node("GlobalAveragePool", ["x"], ["p"]), Node("Flatten", ["p"], ["f"]), Node("MatMul", ["f", "w"], ["s"])]
    given = last[-1].outputs[0] if last else "s"
    weights = 50 * np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    return write_onnx(file, [*nodes, *last], [Port("x", ("n", 3, 8, 8))], [Port(given, ("n", 4))], {"w": weights})


SHARES = Node("Softmax", ["s"], ["y"])


@pytest.mark.parametrize(("last", "activation"), [((), "softmax"), ((), "sigmoid"), ((SHARES,), "none")])
def test_scores_want_an_activation_and_probabilities_none(
    tmp_path: Path, last: tuple[Node, ...], activation: str
) -> None:
    said = CLASSIFIER | {"activation": activation}

    write_folder(tmp_path / "models", read(scorer(tmp_path / "m.onnx", *last), Answers(said), name="lungs"))


@pytest.mark.parametrize(
    ("last", "activation", "message"),
    [
        ((), "none", "which is no probability"),
        ((SHARES,), "softmax", "are probabilities already"),
        ((SHARES,), "sigmoid", "are probabilities already"),
    ],
)
def test_an_activation_that_the_outputs_belie_is_refused(
    tmp_path: Path, last: tuple[Node, ...], activation: str, message: str
) -> None:
    said = CLASSIFIER | {"activation": activation}

    with pytest.raises(BadManifest, match=message):
        write_folder(tmp_path / "models", read(scorer(tmp_path / "m.onnx", *last), Answers(said), name="lungs"))


def test_an_item_beyond_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImportRefused, match="has 1000000000000 values, the limit is 268435456"):
        read(segmenter(tmp_path / "m.onnx"), Answers(SEGMENTER | {"size": "1000000,1000000"}), name="cells")


def test_a_version_whose_weights_read_a_file_without_digest_is_not_opened(tmp_path: Path) -> None:
    written = write_folder(tmp_path / "models", read(segmenter(tmp_path / "m.onnx"), Answers(SEGMENTER), name="cells"))
    shutil.copy(segmenter(tmp_path / "other.onnx", external={"w": "w.bin"}), written.weights)
    (written.path / "w.bin").write_bytes(W.tobytes())
    from isocenter.repository.sessions import open_one

    with pytest.raises(BadManifest, match=r"w\.bin.*no digest"):
        open_one(written)


def test_bytes_that_lie_about_their_lengths_are_refused(tmp_path: Path) -> None:
    good = segmenter(tmp_path / "m.onnx").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(300):
        bad = bytearray(good)
        for at in rng.integers(0, len(bad), 3):
            bad[at] = rng.integers(0, 256)
        cut = bytes(bad[: rng.integers(1, len(bad))])
        for content in (bytes(bad), cut):
            try:
                parse_onnx("m.onnx", memoryview(content))
            except BadManifest:
                continue
