"""The mean of several passes is one session, and hides nothing of any of them."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from isocenter.core.errors import BadManifest, DigestMismatch
from isocenter.core.tensor import Array, Tensors, TensorSpec
from isocenter.imaging.transforms.fast import FastPipeline
from isocenter.repository.accuracy import activated
from isocenter.repository.composite import EnsembleSession, FlippedSession, Mean, MeanOf, log_softmax
from isocenter.repository.layout import ModelFolder
from isocenter.repository.manifest import AugmentationPart
from isocenter.repository.sessions import open_fallback, open_one
from isocenter.runtimes.synthetic import SCORES, SyntheticRuntime
from model_folders import prepared, runtime_part, scores, write_model

F32 = np.dtype(np.float32)
LABELS = TensorSpec("y", F32, (3,))
MASKS = TensorSpec("y", F32, (3, -1, -1))

logits = arrays.arrays(np.float32, (2, 3), elements=st.floats(-60, 60, width=32, allow_nan=False, allow_infinity=False))


class Told:
    """A session that computes what it is told, in memory that it uses again."""

    def __init__(
        self, compute: Callable[[Array], Array], *, given: TensorSpec = LABELS, taken: tuple[int, ...] = (1, 4, 6)
    ) -> None:
        self._compute = compute
        self._memory: Array = np.empty(0, np.float32)
        self.inputs = (TensorSpec("x", F32, taken),)
        self.outputs = (given,)
        self.proof = "fp32: as told"
        self.closed = False

    def run(self, batch: Tensors) -> Tensors:
        (spec,) = self.outputs
        found = np.asarray(self._compute(batch["x"]), spec.dtype)
        if self._memory.shape != found.shape:
            self._memory = np.empty_like(found)
        self._memory[:] = found
        return {"y": self._memory}

    def close(self) -> None:
        self.closed = True


def gives(outputs: Array) -> Told:
    return Told(lambda _: outputs)


def answer(session: EnsembleSession | FlippedSession, batch: Array | None = None) -> Array:
    return session.run({"x": np.zeros((2, 1, 4, 6), np.float32) if batch is None else batch})["y"]


def mean(of: MeanOf = "outputs", activation: Any = "softmax") -> Mean:
    return Mean(of, activation, "y")


@pytest.mark.parametrize("how", [mean(), mean("probabilities"), mean("probabilities", "sigmoid")], ids=str)
@given(outputs=logits, members=st.integers(1, 5))
def test_equal_members_answer_as_one(how: Mean, outputs: Array, members: int) -> None:
    found = answer(EnsembleSession([gives(outputs)] * members, how))
    assert found.dtype == np.float32
    if how.of == "outputs":
        np.testing.assert_array_equal(found, outputs)
    else:
        one, other = (activated(each, how.activation, axis=1) for each in (found, outputs))
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-6)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@given(members=st.lists(logits, min_size=1, max_size=4))
def test_the_declared_activation_makes_the_mean_of_probabilities(activation: str, members: list[Array]) -> None:
    found = answer(EnsembleSession([gives(each) for each in members], mean("probabilities", activation)))
    expected = np.mean([activated(each, activation, axis=1) for each in members], axis=0)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(activated(found, activation, axis=1), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("how", [mean(), mean("probabilities"), mean("probabilities", "sigmoid")], ids=str)
@given(members=st.lists(logits, min_size=2, max_size=5), seed=st.integers(0, 1000))
def test_the_order_of_members_makes_no_difference(how: Mean, members: list[Array], seed: int) -> None:
    shuffled = [members[index] for index in np.random.default_rng(seed).permutation(len(members))]
    one, other = (answer(EnsembleSession([gives(each) for each in order], how)) for order in (members, shuffled))
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("how", [mean(), mean("probabilities"), mean("probabilities", "sigmoid")], ids=str)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_is_not_finite_in_one_member_shows(how: Mean, value: float, place: int) -> None:
    sick = np.zeros((2, 3), np.float32)
    sick[1, 0] = value
    members = [gives(np.ones((2, 3), np.float32)) for _ in range(3)]
    members[place] = gives(sick)
    found = answer(EnsembleSession(members, how))
    assert np.isfinite(found[0]).all()
    assert not np.isfinite(found[1, 0])


def test_outputs_far_beyond_the_range_of_exp_stay_finite() -> None:
    far = np.array([[3e4, 0.0, -3e4]] * 2, np.float32)
    for activation in ("softmax", "sigmoid"):
        found = answer(EnsembleSession([gives(far), gives(far)], mean("probabilities", activation)))
        assert np.isfinite(found).all()


def test_the_mean_of_probabilities_is_given_as_its_logarithm() -> None:
    members = [gives(np.array([[0.0, scale, 2 * scale]] * 2, np.float32)) for scale in (1, 2, 3)]
    found = answer(EnsembleSession(members, mean("probabilities")))
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1.0, rtol=1e-6)


def test_without_an_activation_there_is_no_mean_of_probabilities() -> None:
    with pytest.raises(BadManifest, match=r"needs an output\.activation"):
        Mean("probabilities", "none")


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (Told(lambda batch: batch, given=TensorSpec("y", F32, (4,))), "members of an ensemble differ"),
        (Told(lambda batch: batch, taken=(1, 8, 8)), "members of an ensemble differ"),
    ],
)
def test_members_with_other_tensors_are_refused(other: Told, sentence: str) -> None:
    with pytest.raises(BadManifest, match=sentence):
        EnsembleSession([gives(np.zeros((2, 3))), other], mean())


def test_there_is_no_mean_of_whole_numbers() -> None:
    session = Told(lambda batch: batch, given=TensorSpec("y", np.dtype(np.int64), (3,)))
    with pytest.raises(BadManifest, match="no mean of output y of int64"):
        EnsembleSession([session], mean())


def sums(batch: Array) -> Array:
    """Symmetric: mirroring does not change them."""
    return np.stack([batch.sum((1, 2, 3)), batch.max((1, 2, 3)), batch.min((1, 2, 3))], axis=1)


def left_half(batch: Array) -> Array:
    """Not symmetric."""
    width = batch.shape[-1]
    return np.stack([batch[..., : width // 2].sum((1, 2, 3))] * 3, axis=1)


def per_pixel(batch: Array) -> Array:
    return np.concatenate([batch, 2 * batch, -batch], axis=1)


ONE_BATCH = np.random.default_rng(0).standard_normal((2, 1, 4, 6)).astype(np.float32)
FLIPS = [[[0]], [[1]], [[0], [1], [0, 1]]]


@pytest.mark.parametrize("flips", FLIPS)
@pytest.mark.parametrize("how", [mean(), mean("probabilities")], ids=str)
def test_a_model_that_mirroring_does_not_change_answers_the_same(flips: list[list[int]], how: Mean) -> None:
    found = answer(FlippedSession(Told(sums), flips, how), ONE_BATCH)
    one, other = (activated(each, "softmax", axis=1) for each in (found, sums(ONE_BATCH)))
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("flips", FLIPS)
def test_outputs_with_the_axes_are_mirrored_back(flips: list[list[int]]) -> None:
    found = answer(FlippedSession(Told(per_pixel, given=MASKS), flips, mean()), ONE_BATCH)
    np.testing.assert_allclose(found, per_pixel(ONE_BATCH), rtol=1e-6)


def test_scores_are_averaged_over_the_input_as_it_is_and_mirrored() -> None:
    found = answer(FlippedSession(Told(left_half), [[1]], mean()), ONE_BATCH)
    np.testing.assert_allclose(found[:, 0], ONE_BATCH.sum((1, 2, 3)) / 2, rtol=1e-5)
    upside_down = answer(FlippedSession(Told(left_half), [[0]], mean()), ONE_BATCH)
    np.testing.assert_allclose(upside_down, left_half(ONE_BATCH), rtol=1e-5)


def test_axes_count_from_the_first_one_after_the_channels() -> None:
    seen: list[Array] = []

    def look(batch: Array) -> Array:
        seen.append(batch.copy())
        return batch

    volume = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(1, 2, 3, 4, 5)
    session = Told(look, taken=(2, 3, 4, 5), given=TensorSpec("y", F32, (2, 3, 4, 5)))
    answer(FlippedSession(session, [[0], [2]], mean()), volume)
    np.testing.assert_array_equal(seen[1], volume[:, :, ::-1])
    np.testing.assert_array_equal(seen[2], volume[..., ::-1])


def test_what_is_not_finite_in_one_pass_shows() -> None:
    def sick_if_mirrored(batch: Array) -> Array:
        return sums(batch) * (np.nan if batch[0, 0, 0, 0] != ONE_BATCH[0, 0, 0, 0] else 1.0)

    assert np.isnan(answer(FlippedSession(Told(sick_if_mirrored), [[0]], mean()), ONE_BATCH)).all()


@pytest.mark.parametrize(
    ("session", "flips", "sentence"),
    [
        (Told(sums), [[2]], r"names axis 2, x float32 \[1, 4, 6\] has 2"),
        (Told(sums, given=TensorSpec("y", F32, (4, 6))), [[0]], "neither the axes of input"),
    ],
)
def test_a_model_that_cannot_be_mirrored_so_is_refused(session: Told, flips: list[list[int]], sentence: str) -> None:
    with pytest.raises(BadManifest, match=sentence):
        FlippedSession(session, flips, mean())


@pytest.mark.parametrize("flips", [[[0], [0]], [[0, 1], [1, 0]], [[1, 1]], [[]], []], ids=str)
def test_a_pass_comes_once(flips: Sequence[Sequence[int]]) -> None:
    with pytest.raises(ValueError, match="flips"):
        AugmentationPart.model_validate({"flips": flips})


def test_log_softmax_is_one_in_sum() -> None:
    np.testing.assert_allclose(np.exp(log_softmax(np.array([[1.0, 2.0, 800.0]]))).sum(), 1.0)


def with_member(models: Path, weights: bytes = b"second", **changes: Any) -> ModelFolder:
    member = {"file": "second.bin", "sha256": hashlib.sha256(weights).hexdigest()}
    folder = write_model(models, **{"ensemble": {"members": [member]}, **changes})
    (folder.path / "second.bin").write_bytes(b"second")
    return folder


def test_an_ensemble_opens_as_one_session(tmp_path: Path) -> None:
    folder = with_member(tmp_path, augmentation={"flips": [[0], [1]]})
    session = open_one(folder)
    assert isinstance(session, EnsembleSession)
    assert session.proof.startswith("2 members, each 3 passes, each fp32")
    found = session.run({"x": prepared(folder.manifest)[None]})[SCORES][0]
    assert found.tolist() == pytest.approx(scores(folder.manifest))
    session.close()


def test_every_member_is_the_file_that_the_manifest_names(tmp_path: Path) -> None:
    with pytest.raises(DigestMismatch, match=r"second\.bin has sha256"):
        open_one(with_member(tmp_path, weights=b"other"))
    folder = with_member(tmp_path)
    (folder.path / "second.bin").unlink()
    with pytest.raises(BadManifest, match=r"no file second\.bin"):
        open_one(folder)


def test_when_one_member_cannot_be_opened_none_is_left_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = with_member(tmp_path)
    opened: list[Told] = []

    def open_file(_: object, file: Path, __: object) -> Told:
        if opened:
            raise BadManifest(f"asked to fail on {file.name}")
        opened.append(gives(np.zeros((1, 2))))
        return opened[0]

    monkeypatch.setattr(SyntheticRuntime, "open", open_file)
    with pytest.raises(BadManifest, match=r"second\.bin"):
        open_one(folder)
    assert opened[0].closed


def test_a_fallback_is_mirrored_as_the_model_is(tmp_path: Path) -> None:
    folder = write_model(tmp_path, augmentation={"flips": [[0]]}, fallback=runtime_part())
    assert folder.manifest.fallback is not None
    session = open_fallback(folder, folder.manifest.fallback, FastPipeline(folder.manifest.transforms), nice=0)
    assert isinstance(session, FlippedSession)
    session.close()
