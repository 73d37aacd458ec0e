"""`model.yaml`: what a model needs and promises. Plain data; nothing in it is ever evaluated."""

import difflib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    WrapValidator,
    field_validator,
    model_validator,
)

from isocenter.core.errors import BadManifest
from isocenter.core.precision import Precision
from isocenter.imaging.postprocess.findings import FindingRule
from isocenter.imaging.postprocess.objects import ObjectRule
from isocenter.imaging.sliding.plan import Sliding
from isocenter.imaging.transforms.accepts import Accepts
from isocenter.imaging.transforms.arrays.steps import ArrayStep, ArraySteps
from isocenter.imaging.transforms.steps import Step, Steps
from isocenter.repository.manifest_problems import problems_of
from isocenter.repository.plain_yaml import NotPlain, load_plain
from isocenter.runtimes.registry import AUTO, chosen

_LONGEST_NAME_BYTES, _LONGEST_PATH_BYTES = 255, 1024
MODEL_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?")


class Part(BaseModel):
    """A section of the manifest: immutable, and a typo in a key is an error."""

    # No bound is infinite: a tolerance without end would prove nothing.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _inside_the_folder(file: str) -> str:
    path = Path(file)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"file {file!r} must lie inside the version's folder")
    lengths = [len(part.encode()) for part in path.parts]
    if "\0" in file or max(lengths, default=0) > _LONGEST_NAME_BYTES or sum(lengths) > _LONGEST_PATH_BYTES:
        raise ValueError(f"no file can be called {file[:40]!r}")
    return file


Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(min_length=1), AfterValidator(_inside_the_folder)]


class FilePart(Part):
    """One more file that a runtime reads."""

    file: FileName
    sha256: Digest


def _or_nothing(steps: object, check: Callable[[object], tuple[Step, ...]]) -> tuple[Step, ...]:
    return () if steps in ((), []) else check(steps)


class RuntimePart(Part):
    """Which framework runs which file, in which precision; or which server, for `kind: triton`."""

    kind: str
    """`auto`, of an ONNX file in fp32: OpenVINO for volumes on a CPU where it is installed, else ONNX Runtime."""
    file: FileName | None = None
    """Relative to the version's folder; it may not leave it."""
    sha256: Digest | None = None
    beside: list[FilePart] = []
    """Files that the runtime reads with it: external data of an ONNX file, the `.bin` of an OpenVINO one."""
    url: str | None = None
    """Where the model is served, `grpc://host:port` or `http://host:port`, for a runtime that is another server."""
    precision: Precision = "fp32"
    options: dict[str, str | int | float | bool] = {}

    @model_validator(mode="after")
    def _a_file_or_a_server(self) -> Self:
        if self.url is None and (self.file is None or self.sha256 is None):
            raise ValueError("a runtime needs file and sha256, or url")
        if self.url is not None and (self.file is not None or self.sha256 is not None):
            raise ValueError("a runtime has file and sha256, or url, not both")
        return self

    @model_validator(mode="after")
    def _auto_is_an_onnx_file_in_fp32(self) -> Self:
        if self.kind == AUTO:
            if self.file is None or Path(self.file).suffix != ".onnx":
                raise ValueError(f"kind auto is of an .onnx file, not of {self.file or self.url}")
            if self.precision != "fp32" or self.options:
                raise ValueError("kind auto is fp32 without options, which are a runtime's own; name the runtime")
        return self


class FallbackPart(RuntimePart):
    """What answers, labelled, while none of the model's own instances works. Its golden cases are the model's."""

    device: str = "cpu"
    threads: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = "auto"

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.kind == AUTO:
            raise ValueError("a fallback names its runtime: auto is of runtime.kind only")
        return self

    @property
    def label(self) -> str:
        """How answers name it."""
        return f"{self.kind} {self.precision} on {self.device}"


class MemberPart(Part):
    """One more set of weights of an ensemble, in the runtime and precision of the first."""

    file: FileName
    sha256: Digest


class EnsemblePart(Part):
    """Several weights answer together: the mean of their outputs, before the activation or after it."""

    members: Annotated[list[MemberPart], Field(min_length=1, max_length=15)]
    """Those beside `runtime.file`, which is the first member."""
    mean_of: Literal["outputs", "probabilities"] = "outputs"


class AugmentationPart(Part):
    """Test-time augmentation: the mean over mirrored inputs, each output mirrored back where it has the axes."""

    flips: Annotated[list[Annotated[list[Annotated[int, Field(ge=0, le=2)]], Field(min_length=1)]], Field(min_length=1)]
    """Spatial axes mirrored together, one list a pass, beside the input as it is: `[[0], [1], [0, 1]]`."""
    mean_of: Literal["outputs", "probabilities"] = "outputs"

    @field_validator("flips")
    @classmethod
    def _distinct(cls, flips: list[list[int]]) -> list[list[int]]:
        passes = [frozenset(axes) for axes in flips]
        if len(set(passes)) != len(passes) or any(len(set(axes)) != len(axes) for axes in flips):
            raise ValueError(f"flips repeat: {flips}")
        return flips


class GatePart(Part):
    """How far a precision may be from the reference. What was measured stands in `difference.json`."""

    max_abs_dp: Annotated[float, Field(gt=0, le=1)] = 0.02
    """Largest absolute difference of a probability."""
    top1_agreement: Annotated[float, Field(ge=0, le=1)] = 0.99
    """Share of items with the same most probable class."""
    dice: Annotated[float, Field(ge=0, le=1)] = 0.99
    """Smallest Dice of a label's mask against the reference's; of segmentation models."""
    min_items: Annotated[int, Field(ge=1)] = 32
    """A measurement of fewer items (windows, of a segmentation that slides) says too little."""


_Extent = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class InputPart(Part):
    """What a caller sends and which tensor it becomes."""

    kind: Literal["image2d", "volume3d", "tensors"]
    tensor: str = ""
    """Its name in the model. Left out for `tensors`: every input of the model is sent."""
    channels: list[Annotated[str, Field(min_length=1)]] = []
    """Names of what is sent as channels, in the order that `steps` and the model take; of segmentation models."""
    accepts: Accepts = Accepts()
    """Bounds on a picture; of classification models."""
    extent_mm: Annotated[list[_Extent], Field(min_length=2, max_length=2)] | None = None
    """The least and the most that a volume may measure along each of its axes; of models of volumes."""

    @field_validator("extent_mm")
    @classmethod
    def _in_order(cls, extent_mm: list[float] | None) -> list[float] | None:
        if extent_mm is not None and extent_mm[0] > extent_mm[1]:
            raise ValueError(f"the least ({extent_mm[0]:g}) is above the most ({extent_mm[1]:g})")
        return extent_mm

    @field_validator("channels")
    @classmethod
    def _distinct(cls, channels: list[str]) -> list[str]:
        if len(set(channels)) != len(channels):
            raise ValueError(f"channels repeat: {channels}")
        return channels


class OutputPart(Part):
    """What the output tensor means. The activation is declared, never guessed from the values."""

    tensor: str = ""
    """Its name in the model. Left out for `tensors`: every output of the model is answered."""
    activation: Literal["softmax", "sigmoid", "none"] = "none"
    labels: list[str | int] = []
    """One a value (a channel, of a segmentation) of the output, in its order; a whole number is answered as a number.
    The first one of a segmentation whose labels exclude each other is the background."""
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Of a segmentation: the probability from which a voxel has a label, each label for itself; 0.5 for `sigmoid`.
    Without one, the most probable label is the voxel's."""
    foreground_threshold: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Of a segmentation whose labels exclude each other: the probability of all labels but the background together
    from which a voxel has the most probable one of them. Without one, the background is a label like any other."""
    back: Literal["probabilities", "scores", "labels"] = "probabilities"
    """Of a segmentation: what is brought back onto the source grid, linearly, or by nearest neighbour for labels."""
    objects: Annotated[ObjectRule, Field(strict=False)] | None = None
    """How pixels become objects; of segmentations of pictures, and left out where objects make no sense."""
    findings: Annotated[FindingRule, Field(strict=False)] | None = None
    """Which labels are findings; of segmentations of volumes, and left out where none is one."""

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: list[str | int]) -> list[str | int]:
        if len({str(label) for label in labels}) != len(labels):
            raise ValueError(f"labels repeat: {labels}")
        if unread := [label for label in labels if not (shown := str(label)).strip() or not shown.isprintable()]:
            raise ValueError(f"labels are read by people: {unread}")
        return labels


class BatchingPart(Part):
    """How requests are gathered. Sizes count items."""

    max_batch_size: Annotated[int, Field(ge=1, le=1024)] = 8
    preferred_batch_sizes: list[int] = []
    max_queue_delay_ms: Annotated[float, Field(ge=0, le=10_000)] = 2.0
    max_queue_size: Annotated[int, Field(ge=1, le=1_000_000)] = 256
    max_queue_bytes: Annotated[int, Field(ge=1)] = 256 * 2**20
    """Bytes of prepared items that may wait."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        sizes = self.preferred_batch_sizes
        if sizes != sorted(set(sizes)) or any(not 1 <= size <= self.max_batch_size for size in sizes):
            raise ValueError(f"preferred_batch_sizes {sizes} must rise from 1 to max_batch_size {self.max_batch_size}")
        return self


class InstancesPart(Part):
    """How many sessions run side by side, where, and with how many threads each."""

    count: Annotated[int, Field(ge=1, le=64)] = 1
    device: str = "cpu"
    threads: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = "auto"
    """`auto`: the usable cores, shared out over the instances."""
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Share of the machine where models compete for it: twice the weight, about twice the cores' time."""


class SloPart(Part):
    """What is promised, and how long a caller waits who does not say."""

    p95_ms: Annotated[float, Field(gt=0)] | None = None
    timeout_ms: Annotated[float, Field(gt=0, le=3_600_000)] = 10_000.0


class GoldenPart(Part):
    """|out - ref| <= absolute + relative * |ref|, and at most `misses_per_million` values may miss it."""

    absolute: Annotated[float, Field(gt=0)] = 1e-3
    relative: Annotated[float, Field(ge=0)] = 1e-3
    misses_per_million: Annotated[int, Field(ge=0, lt=1_000_000)] = 100


class Manifest(Part):
    """One version of one model."""

    schema_: Annotated[Literal[1], Field(alias="schema")]
    name: str
    version: Annotated[int, Field(ge=1)]
    title: str = ""
    description: str = ""
    task: Literal["classification", "segmentation", "tensors"]
    license: str = ""
    runtime: RuntimePart
    input: InputPart
    transforms: Annotated[Steps, WrapValidator(_or_nothing), Field(strict=False)] = ()
    """How a picture becomes a tensor; of classification models."""
    steps: Annotated[ArraySteps, Field(strict=False)] = ()
    """How an array [C, *spatial] becomes a tensor; of segmentation models."""
    sliding: Annotated[Sliding, Field(strict=False)] | None = None
    """Windows over what `steps` give; left out, it is run as a whole. Of segmentation models."""
    output: OutputPart = OutputPart()
    batching: BatchingPart = BatchingPart()
    instances: InstancesPart = InstancesPart()
    slo: SloPart = SloPart()
    golden: GoldenPart = GoldenPart()
    gate: GatePart = GatePart()
    ensemble: EnsemblePart | None = None
    augmentation: AugmentationPart | None = None
    fallback: FallbackPart | None = None

    @property
    def runtime_kind(self) -> str:
        """The runtime that runs it on this machine; `runtime.kind` unless that is `auto`."""
        volumes = self.input.kind == "volume3d"
        return chosen(self.runtime.kind, volumes=volumes, device=self.instances.device)

    @property
    def runtime_in_words(self) -> str:
        """The same, and whether this machine chose it."""
        return f"{self.runtime_kind} (auto)" if self.runtime.kind == AUTO else self.runtime_kind

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not MODEL_NAME.fullmatch(name):
            raise ValueError(f"name {name!r}: lower-case letters, digits, '.', '_' and '-' only")
        return name

    @model_validator(mode="after")
    def _fits_its_task(self) -> Self:
        if problems := list(problems_of(self)):
            raise ValueError(f"task {self.task}: {'; '.join(problems)}")
        return self


def read_manifest(file: Path) -> Manifest:
    """Read and check one `model.yaml`.

    Raises:
        BadManifest: missing, not YAML, or not what a manifest holds; the message names the key and what was meant.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:  # its own words hold the whole path, which is nothing to those who ask for a reload
        raise BadManifest(f"cannot read {_shown(file)}: {error.strerror or type(error).__name__}") from error
    except UnicodeDecodeError as error:
        raise BadManifest(f"cannot read {_shown(file)}: {error}") from error
    try:
        data = load_plain(text)
    except NotPlain as error:
        raise BadManifest(f"{_shown(file)} is not YAML: {error}") from error
    if not isinstance(data, dict):
        raise BadManifest(f"{_shown(file)} must hold a mapping, not {type(data).__name__}")
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        problems = [_sentence(problem) for problem in error.errors(include_url=False, include_context=False)]
        raise BadManifest(f"{_shown(file)}: {'; '.join(problems)}", details={"problems": list(problems)}) from error


def _shown(file: Path) -> str:
    return str(Path(*file.parts[-3:]))


def _sentence(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] != "extra_forbidden":
        return f"{where}: {problem['msg']}" if where else str(problem["msg"])
    key = str(problem["loc"][-1])
    near = difflib.get_close_matches(key, _known_keys(), n=1)
    return f"{where}: unknown key{f' (did you mean {near[0]!r}?)' if near else ''}"


def _known_keys() -> list[str]:
    parts: tuple[type[BaseModel], ...] = (
        Manifest,
        RuntimePart,
        FallbackPart,
        InputPart,
        OutputPart,
        BatchingPart,
        InstancesPart,
        SloPart,
        GoldenPart,
        ObjectRule,
        FindingRule,
        Accepts,
        Sliding,
        *(get_args(get_args(ArrayStep)[0])),
    )
    return sorted({field.alias or name for part in parts for name, field in part.model_fields.items()})
