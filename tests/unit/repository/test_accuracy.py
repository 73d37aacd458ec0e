"""No precision but fp32 becomes ready without a measured difference that belongs to it and lies within the gate."""

import asyncio
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from builders import MANIFEST_DATA
from isocenter.core.clock import SystemClock
from isocenter.core.errors import BadManifest, GateMissed, GoldenMismatch, Unmeasured
from isocenter.core.events import RecordingObserver
from isocenter.repository import accuracy
from isocenter.repository.layout import ModelFolder, find
from isocenter.repository.load import ServedModel, load, prove
from isocenter.repository.manifest import Manifest
from isocenter.repository.reload import Reloader
from isocenter.repository.repository import Repository
from model_folders import write_model
from rounding_runtime import difference_for, rounding_part
from rounding_runtime import rounding as rounding

MEMBER = {"file": "second.bin", "sha256": "2" * 64}


def in_bf16(models: Path, **changes: Any) -> ModelFolder:
    return write_model(models, **{"runtime": rounding_part(), **changes})


def put(folder: ModelFolder, name: str = accuracy.DIFFERENCE, **changes: object) -> None:
    accuracy.write_difference(folder.path / name, difference_for(folder, **changes))


def test_fp32_is_the_reference_and_needs_no_measurement(tmp_path: Path) -> None:
    assert accuracy.check_difference(write_model(tmp_path)) is None


def test_another_precision_needs_one(tmp_path: Path) -> None:
    with pytest.raises(Unmeasured, match=r"lungs 1 in bf16: no difference\.json"):
        accuracy.check_difference(in_bf16(tmp_path))


def test_one_that_belongs_to_it_and_lies_within_the_gate_is_enough(tmp_path: Path) -> None:
    folder = in_bf16(tmp_path)
    put(folder)
    found = accuracy.check_difference(folder)
    assert found is not None
    assert found == difference_for(folder)
    assert accuracy.in_words(found) == "bf16 against fp32 on 32 items: max |dp| 0.001, same class 100.00%"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"weights_sha256": "a" * 64}, "is of weights aaaaaaaaaaaa…"),
        ({"runtime": "openvino"}, "is of runtime openvino, the version has rounding"),
        ({"precision": "fp16"}, "is of precision fp16, the version has bf16"),
        ({"device": "cuda"}, "is of device cuda, the version has cpu"),
        ({"items": 31}, "is of 31 items, the gate asks for 32"),
        ({"top1_agreement": None}, "top1_agreement was not measured"),
    ],
)
def test_one_that_does_not_belong_to_it_is_none(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    folder = in_bf16(tmp_path)
    put(folder, **changes)
    with pytest.raises(Unmeasured, match=sentence):
        accuracy.check_difference(folder)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "NaN", "Infinity", "-0.1", '"0.001"', "true"],
    ids=lambda text: text or "empty",
)
def test_what_is_no_finite_number_is_no_measurement(text: str, tmp_path: Path) -> None:
    folder = in_bf16(tmp_path)
    put(folder)
    file = folder.path / accuracy.DIFFERENCE
    whole = file.read_text()
    assert '"max_abs_dp": 0.001' in whole
    file.write_text(whole.replace('"max_abs_dp": 0.001', f'"max_abs_dp": {text}') if text else "")
    with pytest.raises(Unmeasured, match="is not a measurement"):
        accuracy.check_difference(folder)


def test_an_unknown_key_is_no_measurement(tmp_path: Path) -> None:
    folder = in_bf16(tmp_path)
    data = json.loads(difference_for(folder).model_dump_json())
    (folder.path / accuracy.DIFFERENCE).write_text(json.dumps(data | {"max_dp": 0.0}))
    with pytest.raises(Unmeasured, match="max_dp"):
        accuracy.check_difference(folder)


@pytest.mark.parametrize(
    ("changes", "name", "found", "limit"),
    [
        ({"max_abs_dp": 0.0301}, "max_abs_dp", 0.0301, 0.03),
        ({"top1_agreement": 0.89}, "top1_agreement", 0.89, 0.9),
        ({"dice": 0.94}, "dice", 0.94, 0.95),
    ],
)
def test_what_lies_outside_the_gate_is_refused_with_both_figures(
    changes: dict[str, Any], name: str, found: float, limit: float, tmp_path: Path
) -> None:
    folder = in_bf16(tmp_path, gate={"max_abs_dp": 0.03, "top1_agreement": 0.9, "dice": 0.95})
    put(folder, **changes)
    with pytest.raises(GateMissed, match=f"{name} is {found}, at (most|least) {limit} is allowed") as raised:
        accuracy.check_difference(folder)
    assert raised.value.details == {name: {"found": found, "limit": limit}}


def test_the_bounds_themselves_are_within_the_gate(tmp_path: Path) -> None:
    folder = in_bf16(tmp_path, gate={"max_abs_dp": 0.03, "top1_agreement": 0.9, "min_items": 5})
    put(folder, max_abs_dp=0.03, top1_agreement=0.9, items=5)
    assert accuracy.check_difference(folder) is not None


def test_a_segmentation_needs_dice() -> None:
    manifest = Manifest.model_validate(
        {
            **{key: part for key, part in MANIFEST_DATA.items() if key != "transforms"},
            "task": "segmentation",
            "output": {"tensor": "y", "activation": "softmax", "labels": ["background", "nodule"]},
        }
    )
    with pytest.raises(Unmeasured, match="dice was not measured"):
        accuracy.misses(difference_for(ModelFolder(Path(), manifest)), manifest)


def test_an_int8_file_cannot_be_its_own_reference(tmp_path: Path) -> None:
    folder = in_bf16(tmp_path, runtime={**rounding_part(), "precision": "int8"})
    own = folder.manifest.runtime.sha256
    put(folder, reference={"runtime": "rounding", "precision": "fp32", "sha256": own})
    with pytest.raises(Unmeasured, match="is the int8 file itself"):
        accuracy.check_difference(folder)
    with pytest.raises(BadManifest, match="int8 in its file"):
        accuracy.reference_of(folder)


def test_a_fallback_of_another_precision_has_a_measurement_of_its_own(tmp_path: Path) -> None:
    folder = write_model(tmp_path, fallback={**rounding_part(), "device": "cpu"})
    with pytest.raises(Unmeasured, match=r"lungs 1 fallback in bf16: no difference\.fallback\.json"):
        accuracy.check_fallback_difference(folder)
    put(folder, accuracy.FALLBACK_DIFFERENCE, runtime="rounding", precision="bf16")
    assert accuracy.check_difference(folder) is None
    assert accuracy.check_fallback_difference(folder) is not None


@pytest.mark.usefixtures("rounding")
def test_a_version_whose_fallback_was_not_measured_does_not_become_ready(tmp_path: Path) -> None:
    folder = write_model(tmp_path, fallback={**rounding_part(), "device": "cpu"})
    with pytest.raises(Unmeasured, match=r"no difference\.fallback\.json"):
        prove(folder)
    put(folder, accuracy.FALLBACK_DIFFERENCE, runtime="rounding", precision="bf16", max_abs_dp=0.5)
    with pytest.raises(GateMissed, match=r"lungs 1 fallback: bf16 differs too much"):
        prove(folder)
    put(folder, accuracy.FALLBACK_DIFFERENCE, runtime="rounding", precision="bf16")
    prove(folder)


def test_every_file_of_weights_counts(tmp_path: Path) -> None:
    alone = in_bf16(tmp_path).manifest
    together = in_bf16(tmp_path, ensemble={"members": [MEMBER]}).manifest
    beside = in_bf16(tmp_path, runtime={**rounding_part(), "beside": [MEMBER]}).manifest
    digests = [
        accuracy.weights_digest(alone.runtime),
        accuracy.weights_digest(together.runtime, together.ensemble),
        accuracy.weights_digest(alone.runtime, None) and accuracy.weights_digest(beside.runtime),
    ]
    assert digests[0] == alone.runtime.sha256
    assert digests[0] not in digests[1:]


def test_a_measurement_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = in_bf16(tmp_path)
    put(folder)
    before = sorted(folder.path.iterdir())

    def full(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        put(folder, items=1000)
    assert sorted(folder.path.iterdir()) == before
    assert accuracy.check_difference(folder) == difference_for(folder)


@pytest.mark.usefixtures("rounding")
async def test_a_version_becomes_ready_with_it_and_only_with_it(tmp_path: Path) -> None:
    folder = await asyncio.to_thread(in_bf16, tmp_path)
    with pytest.raises(Unmeasured):
        await loaded(folder)
    await asyncio.to_thread(put, folder)
    served = await loaded(folder)
    await served.retire(1.0)


@pytest.mark.usefixtures("rounding")
async def test_a_reload_asks_for_it_too_whatever_else_is_unchanged(tmp_path: Path) -> None:
    folder = await asyncio.to_thread(in_bf16, tmp_path)
    await asyncio.to_thread(put, folder)
    repository = Repository()
    repository.add(await loaded(folder))
    reloader = Reloader(repository, tmp_path, load=loaded, observer=RecordingObserver(), drain_bound_s=1.0)

    (unchanged,) = await reloader.reload_all()
    await asyncio.to_thread(put, folder, max_abs_dp=0.5)
    (outside,) = await reloader.reload_all()
    await asyncio.to_thread((folder.path / accuracy.DIFFERENCE).unlink)
    (gone,) = await reloader.reload_all()

    assert [(each.what, each.code) for report in (unchanged, outside, gone) for each in report.versions] == [
        ("unchanged", ""),
        ("refused", "gate_missed"),
        ("refused", "unmeasured_precision"),
    ]
    await repository.resolve("lungs", 1).retire(1.0)


async def loaded(folder: ModelFolder) -> ServedModel:
    there = await asyncio.to_thread(find, folder.path.parent.parent, "lungs")
    return await load(there, clock=SystemClock(), observer=RecordingObserver(), measure_memory=False)


@pytest.mark.usefixtures("rounding")
async def test_golden_answers_of_another_precision_are_held_against_the_gate(tmp_path: Path) -> None:
    # The score of `no` is 0.05 too large: no golden score in fp32 may be, while a probability moves by 0.0125 at most.
    folder = await asyncio.to_thread(in_bf16, tmp_path, runtime=rounding_part(error=0.05))
    await asyncio.to_thread(put, folder)
    served = await loaded(folder)
    await served.retire(1.0)
    narrow = await asyncio.to_thread(in_bf16, tmp_path, runtime=rounding_part(error=0.05), gate={"max_abs_dp": 0.005})
    with pytest.raises(GoldenMismatch, match=r"allowed 0\.005 after the activation, in bf16"):
        await loaded(narrow)


async def test_a_member_of_an_ensemble_that_has_changed_is_no_unchanged_version(tmp_path: Path) -> None:
    member = {"file": "second.bin", "sha256": hashlib.sha256(b"second").hexdigest()}
    folder = await asyncio.to_thread(write_model, tmp_path, ensemble={"members": [member]})
    await asyncio.to_thread((folder.path / "second.bin").write_bytes, b"second")
    repository = Repository()
    repository.add(await loaded(folder))
    reloader = Reloader(repository, tmp_path, load=loaded, observer=RecordingObserver(), drain_bound_s=1.0)

    (same,) = await reloader.reload_all()
    await asyncio.to_thread((folder.path / "second.bin").write_bytes, b"other")
    (changed,) = await reloader.reload_all()

    assert [(each.what, each.code) for report in (same, changed) for each in report.versions] == [
        ("unchanged", ""),
        ("refused", "digest_mismatch"),
    ]
    await repository.resolve("lungs", 1).retire(1.0)
