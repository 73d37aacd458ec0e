"""What a MONAI bundle does is read where MONAI itself would take it from, for the tensors that the metadata names."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import monai_bundles as bundles
from isocenter.core.errors import ImportRefused
from isocenter.importers.folder import Imported
from isocenter.importers.monai import read
from onnx_writer import Node, Port, write_onnx

WEIGHTS = np.random.default_rng(0).standard_normal((3, 1, 3, 3, 3)).astype(np.float32)


def imported(path: Path, config: dict[str, Any], metadata: dict[str, Any] | None = None) -> Imported:
    """A bundle of one convolution."""
    file = write_onnx(
        path / "m.onnx",
        [Node("Conv", ["x", "w"], ["y"], {"pads": [1] * 6})],
        [Port("x", ("n", 1, "i", "j", "k"))],
        [Port("y", ("n", 3, "i", "j", "k"))],
        {"w": WEIGHTS},
    )
    return read(bundles.write(path / "bundle", config, metadata or bundles.metadata(), onnx=file.read_bytes()))


def numbered(side: str, tensor: str, *numbers: int) -> dict[str, Any]:
    made = bundles.metadata()
    made["network_data_format"][side][tensor]["channel_def"] = {str(number): f"n{number}" for number in numbers}
    return made


def test_references_to_the_stages_are_followed(tmp_path: Path) -> None:
    evaluator = {"_target_": "SupervisedEvaluator", "inferer": "@inferer", "postprocessing": "%postprocessing"}
    dataset = {"_target_": "Dataset", "data": "$@datalist", "transform": "@preprocessing"}

    found = imported(tmp_path, bundles.config(dataset=dataset, dataloader={"dataset": "@dataset"}, evaluator=evaluator))

    assert [step["kind"] for step in found.manifest["steps"]] == ["orient", "resample", "scale"]
    assert found.manifest["sliding"]["roi"] == [16, 16, 16]
    assert found.manifest["output"]["activation"] == "softmax"


ELSEWHERE: dict[str, tuple[dict[str, Any], str]] = {
    "another name": (
        {"pre": {}, "dataset": {"_target_": "Dataset", "transform": "@pre"}},
        "dataset::transform stands at pre; it is read where it is called preprocessing",
    ),
    "in the loader": ({"dataloader": {"dataset": {"transform": {}}}}, "dataloader::dataset::transform stands at"),
    "windows in place": ({"evaluator": {"inferer": {"_target_": "SimpleInferer"}}}, "evaluator::inferer stands at"),
    "masks of another name": ({"post": [], "evaluator": {"postprocessing": "@post"}}, "postprocessing stands at post"),
    "in code": ({"dataset": {"transform": "$@pre + @more"}}, "dataset::transform is an expression"),
    "before the network": ({"evaluator": {"prepare_batch": "$own"}}, "prepare_batch is a function"),
    "after the network": ({"evaluator": {"iteration_update": "$own"}}, "iteration_update is a function"),
}


@pytest.mark.parametrize(("changes", "message"), ELSEWHERE.values(), ids=ELSEWHERE)
def test_what_is_done_elsewhere_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ImportRefused, match=message):
        imported(tmp_path, bundles.config() | changes)


@pytest.mark.parametrize("stage", ["preprocessing", "inferer"])
def test_a_stage_that_is_not_there_is_not_taken_for_an_empty_one(tmp_path: Path, stage: str) -> None:
    config = {key: value for key, value in bundles.config().items() if key != stage}

    with pytest.raises(ImportRefused, match=f"{stage} is not there"):
        imported(tmp_path, config)


def test_windows_beyond_memory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImportRefused, match="the limit is 268435456"):
        imported(tmp_path, bundles.config(inferer={"_target_": "SlidingWindowInferer", "roi_size": 10**6}))


@pytest.mark.parametrize("numbers", [(1, 2, 3), (0, 1, 5)])
def test_labels_by_other_numbers_than_those_of_the_channels_are_asked_for(
    tmp_path: Path, numbers: tuple[int, ...]
) -> None:
    with pytest.raises(ImportRefused, match="--labels says what they are"):
        imported(tmp_path, bundles.config(), numbered("outputs", "pred", *numbers))


@pytest.mark.parametrize("numbers", [(1,), (0, 1)])
def test_channels_by_other_numbers_are_refused(tmp_path: Path, numbers: tuple[int, ...]) -> None:
    with pytest.raises(ImportRefused, match="not a name for each of 1"):
        imported(tmp_path, bundles.config(), numbered("inputs", "image", *numbers))
