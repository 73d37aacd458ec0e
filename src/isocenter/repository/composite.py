"""Sessions made of sessions: the mean over the members of an ensemble, and over mirrored inputs.

To the engine each is one session: batching, memory and time of its passes are measured as those of any other. The mean
is taken in float64, so the order of the passes does not show in the float32 that is given.

`mean_of: probabilities` gives the logarithm of the mean (softmax), or its logit (sigmoid): outputs of which the
declared activation makes that mean. They are finite wherever the passes' outputs are.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from isocenter.core.errors import BadManifest
from isocenter.core.tensor import Array, Tensors, TensorSpec
from isocenter.repository.integrity import check_beside, check_file
from isocenter.repository.layout import ModelFolder
from isocenter.repository.manifest import EnsemblePart, Manifest
from isocenter.runtimes.base import Session

MeanOf: TypeAlias = Literal["outputs", "probabilities"]
Activation: TypeAlias = Literal["softmax", "sigmoid", "none"]
DoubleArray: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Mean:
    """Of what the mean of several passes is taken."""

    of: MeanOf = "outputs"
    activation: Activation = "none"
    """The declared one; read for `probabilities` only."""
    tensor: str = ""
    """The output that it belongs to; of any other, the mean of the outputs is taken."""

    def __post_init__(self) -> None:
        if self.of == "probabilities" and self.activation == "none":
            raise BadManifest("mean_of: probabilities needs an output.activation; with none, the outputs are averaged")

    def __call__(self, passes: Iterable[Tensors]) -> Tensors:
        """One batch of outputs from those of each pass; each is read before the next one is made."""
        sums: dict[str, _Sum] = {}
        dtypes: dict[str, np.dtype[np.generic]] = {}
        for outputs in passes:
            for name, array in outputs.items():
                if name not in sums:
                    sums[name], dtypes[name] = self._new_sum(name), array.dtype
                with np.errstate(invalid="ignore"):  # what is not finite is found where answers are given
                    sums[name].add(array)
        return {name: total.mean().astype(dtypes[name]) for name, total in sums.items()}

    def _new_sum(self, name: str) -> "_Sum":
        if self.of == "outputs" or name != self.tensor:
            return _Outputs()
        return _Softmax() if self.activation == "softmax" else _Sigmoid()


class EnsembleSession:
    """Several members answer each batch, one after the other; the answer is their mean."""

    def __init__(self, members: Sequence[Session], mean: Mean) -> None:
        """It closes the members when it is closed.

        Raises:
            BadManifest: they take or give other tensors, or tensors of which there is no mean.
        """
        first = members[0]
        for member in members[1:]:
            if (member.inputs, member.outputs) != (first.inputs, first.outputs):
                one, other = (f"{_shown(each.inputs)} to {_shown(each.outputs)}" for each in (first, member))
                raise BadManifest(f"members of an ensemble differ: one is {one}, another {other}")
        _check_means(first.outputs)
        self._members = tuple(members)
        self._mean = mean
        self.inputs = first.inputs
        self.outputs = first.outputs

    @property
    def proof(self) -> str:
        """What each member was seen to compute in, said once if they agree."""
        said = dict.fromkeys(member.proof for member in self._members)
        return f"{len(self._members)} members, each {'; '.join(said)}"

    def run(self, batch: Tensors) -> Tensors:
        """Run one batch through every member."""
        return self._mean(member.run(batch) for member in self._members)

    def close(self) -> None:
        """Close every member."""
        with contextlib.ExitStack() as stack:
            for member in self._members:
                stack.callback(member.close)


class FlippedSession:
    """Answers each batch as it is and mirrored; the answer is the mean.

    An output with the input's axes [channels, *spatial] is mirrored back first; one of scores [labels] has nothing to
    mirror.
    """

    def __init__(self, session: Session, flips: Sequence[Sequence[int]], mean: Mean) -> None:
        """It closes the session when it is closed.

        Args:
            session: with one input [channels, *spatial].
            flips: spatial axes that are mirrored together, a list a pass; 0 is the first one after the channels.
            mean: what is averaged.

        Raises:
            BadManifest: there is no such axis, or an output of which it is not known how it is mirrored.
        """
        if len(session.inputs) != 1:
            raise BadManifest(f"augmentation needs a model of one input, not {_shown(session.inputs)}")
        (taken,) = session.inputs
        spatial = len(taken.shape) - 1
        for axes in flips:
            if beyond := [axis for axis in axes if not 0 <= axis < spatial]:
                raise BadManifest(f"augmentation.flips names axis {beyond[0]}, {_shown([taken])} has {max(0, spatial)}")
        for given in session.outputs:
            if len(given.shape) not in (1, len(taken.shape)):
                raise BadManifest(
                    f"augmentation: output {_shown([given])} has neither the axes of input {_shown([taken])} nor scores"
                )
        _check_means(session.outputs)
        self._session = session
        # Of an array with a batch axis and channels before the spatial ones.
        self._passes = [(), *(tuple(axis + 2 for axis in axes) for axes in flips)]
        self._mean = mean
        self._spatial_outputs = {spec.name for spec in session.outputs if len(spec.shape) == len(taken.shape)}
        self.inputs = session.inputs
        self.outputs = session.outputs

    @property
    def proof(self) -> str:
        """What the session was seen to compute in."""
        return f"{len(self._passes)} passes, each {self._session.proof}"

    def run(self, batch: Tensors) -> Tensors:
        """Run one batch as it is, then mirrored."""
        return self._mean(self._mirrored(batch, axes) for axes in self._passes)

    def close(self) -> None:
        """Close the session."""
        self._session.close()

    def _mirrored(self, batch: Tensors, axes: tuple[int, ...]) -> Tensors:
        if not axes:
            return self._session.run(batch)
        # Whole again: not every framework reads an array backwards.
        outputs = self._session.run({name: np.ascontiguousarray(np.flip(each, axes)) for name, each in batch.items()})
        return {name: np.flip(each, axes) if name in self._spatial_outputs else each for name, each in outputs.items()}


def open_composite(folder: ModelFolder, open_file: Callable[[Path], Session]) -> Session:
    """The session that a manifest describes: its file, or all members of its ensemble, each mirrored as it says.

    Raises:
        BadManifest, MissingExtra: one cannot be opened, or they do not go together; then none is left open.
        DigestMismatch: a member is another file than the manifest names.
    """
    manifest = folder.manifest
    runtime, ensemble = manifest.runtime, manifest.ensemble
    if ensemble is not None and runtime.file is None:
        raise BadManifest(f"{manifest.name}: the members of an ensemble are files, not another server's models")
    with contextlib.ExitStack() as opened:
        members: list[Session] = []
        for file in (folder.weights, *_member_files(folder, ensemble)):
            members.append(augmented(open_file(file), manifest))
            opened.callback(members[-1].close)
        made: Session = members[0]
        if ensemble is not None:
            made = EnsembleSession(members, _mean(ensemble.mean_of, manifest))
        opened.pop_all()
    return made


def augmented(session: Session, manifest: Manifest) -> Session:
    """A session with the test-time augmentation of a manifest; itself if there is none.

    Raises:
        BadManifest: it cannot be mirrored so; then it is closed.
    """
    augmentation = manifest.augmentation
    if augmentation is None:
        return session
    try:
        return FlippedSession(session, augmentation.flips, _mean(augmentation.mean_of, manifest))
    except BaseException:
        session.close()
        raise


def _mean(of: MeanOf, manifest: Manifest) -> Mean:
    return Mean(of, manifest.output.activation, manifest.output.tensor)


def _member_files(folder: ModelFolder, ensemble: EnsemblePart | None) -> Iterator[Path]:
    for member in ensemble.members if ensemble is not None else ():
        check_file(folder, member.file, member.sha256)
        check_beside(folder, folder.manifest.runtime.model_copy(update={"file": member.file}))
        yield folder.path / member.file


class _Sum(Protocol):
    """What is kept of the passes so far; arrays [items, classes, ...]."""

    def add(self, outputs: Array) -> None: ...

    def mean(self) -> DoubleArray: ...


class _Outputs:
    def __init__(self) -> None:
        self._count = 0
        self._total: DoubleArray | None = None

    def add(self, outputs: Array) -> None:
        self._count += 1
        if self._total is None:
            self._total = outputs.astype(np.float64)  # a copy: the session may use its memory again
        else:
            self._total += outputs

    def mean(self) -> DoubleArray:
        assert self._total is not None
        return self._total / self._count


class _LogMean:
    """Mean of probabilities that are given, and wanted, as logarithms: none is too small for that."""

    def __init__(self) -> None:
        self._count = 0
        self._total: DoubleArray | None = None

    def add(self, logs: DoubleArray) -> None:
        self._count += 1
        self._total = logs if self._total is None else np.logaddexp(self._total, logs)

    def mean(self) -> DoubleArray:
        assert self._total is not None
        return self._total - math.log(self._count)


class _Softmax:
    def __init__(self) -> None:
        self._logs = _LogMean()

    def add(self, outputs: Array) -> None:
        self._logs.add(log_softmax(_or_nan(outputs)))

    def mean(self) -> DoubleArray:
        return self._logs.mean()


class _Sigmoid:
    def __init__(self) -> None:
        self._yes, self._no = _LogMean(), _LogMean()

    def add(self, outputs: Array) -> None:
        values = _or_nan(outputs)
        self._yes.add(-np.logaddexp(0.0, -values))
        self._no.add(-np.logaddexp(0.0, values))

    def mean(self) -> DoubleArray:
        return self._yes.mean() - self._no.mean()


def log_softmax(outputs: DoubleArray) -> DoubleArray:
    """Logarithms of the softmax over axis 1.

    >>> np.exp(log_softmax(np.array([[1000.0, 1000.0]])))
    array([[0.5, 0.5]])
    """
    shifted = outputs - outputs.max(axis=1, keepdims=True)
    logs: DoubleArray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logs


def _or_nan(outputs: Array) -> DoubleArray:
    """In float64, and NaN for what is not finite: a probability of 0 would hide that one pass failed."""
    values = outputs.astype(np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def _check_means(outputs: Iterable[TensorSpec]) -> None:
    for spec in outputs:
        if spec.dtype.kind != "f":
            raise BadManifest(f"there is no mean of output {spec.name} of {spec.dtype}")


def _shown(specs: Iterable[TensorSpec]) -> str:
    return ", ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in specs)
