"""What a task forbids in a manifest, and what it needs."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from pydantic import BaseModel

from isocenter.imaging.postprocess.activation import threshold_of
from isocenter.imaging.transforms.arrays.steps import spatial_rank

if TYPE_CHECKING:
    from isocenter.repository.manifest import Manifest

_KINDS = {"classification": ("image2d",), "segmentation": ("image2d", "volume3d"), "tensors": ("tensors",)}
_NOT_OF = {
    "classification": (
        "steps", "sliding", "input.channels",
        "output.threshold", "output.foreground_threshold", "output.objects", "output.findings",
    ),
    "segmentation": ("transforms", "input.accepts"),
    "tensors": (
        "transforms", "steps", "sliding", "input.channels", "input.accepts",
        "output.labels", "output.threshold", "output.foreground_threshold", "output.activation", "output.objects",
        "output.findings",
    ),
}  # fmt: skip
_NEEDED = {
    "classification": ("transforms", "input.tensor", "output.tensor", "output.labels", "output.activation"),
    "segmentation": ("input.tensor", "output.tensor", "output.labels", "output.activation"),
    "tensors": (),
}


def problems_of(manifest: "Manifest") -> Iterator[str]:
    """What its task forbids, and what it needs, in words."""
    task = manifest.task
    if manifest.input.kind not in _KINDS[task]:
        yield f"input.kind is {' or '.join(_KINDS[task])}, not {manifest.input.kind}"
    if manifest.input.extent_mm is not None and manifest.input.kind != "volume3d":
        yield "input.extent_mm is of models of volumes"
    for key in _NOT_OF[task]:
        part, last = _owner(manifest, key)
        if getattr(part, last) != type(part).model_fields[last].default:
            yield f"{key} does not belong there"
    for key in _NEEDED[task]:
        part, last = _owner(manifest, key)
        if last not in part.model_fields_set or getattr(part, last) in ((), [], ""):
            yield f"{key} is missing"
    output = manifest.output
    if output.activation == "softmax" and output.threshold is not None:
        yield "output.threshold goes with sigmoid or none, as labels of a softmax exclude each other"
    if output.foreground_threshold is not None and threshold_of(output.activation, output.threshold) is not None:
        yield "output.foreground_threshold goes with labels that exclude each other: softmax, or none and no threshold"
    if task == "segmentation" and len(output.labels) < 2 and output.activation == "softmax":
        yield "output.labels of a softmax are the background and at least one more"
    yield from _problems_of_objects(manifest)
    yield from _problems_of_findings(manifest)
    rank = {"image2d": 2, "volume3d": 3}.get(manifest.input.kind)
    found = [("sliding.roi", len(manifest.sliding.roi))] if manifest.sliding else []
    found += [(step.kind, axes) for step in manifest.steps if (axes := spatial_rank(step)) is not None]
    for where, axes in found:
        if rank is not None and axes != rank:
            yield f"{where} is of {axes} spatial axes, {manifest.input.kind} has {rank}"


def _problems_of_objects(manifest: "Manifest") -> Iterator[str]:
    output, rule = manifest.output, manifest.output.objects
    if rule is None or manifest.task != "segmentation":
        return
    yield from _problems_of_rule(manifest, "output.objects", "image2d", rule.names)
    overlap = output.activation == "sigmoid" or output.threshold is not None
    if overlap and len(output.labels) > 1 and len(rule.inside) != 1:
        yield "output.objects.inside is one label where labels may overlap"


def _problems_of_findings(manifest: "Manifest") -> Iterator[str]:
    output, rule = manifest.output, manifest.output.findings
    if rule is None or manifest.task != "segmentation":
        return
    yield from _problems_of_rule(manifest, "output.findings", "volume3d", rule.labels)
    exclusive = threshold_of(output.activation, output.threshold) is None
    if exclusive and output.labels and output.labels[0] in rule.labels:
        yield f"output.findings names {output.labels[0]}, which is the background"


def _problems_of_rule(manifest: "Manifest", where: str, kind: str, names: Iterable[str | int]) -> Iterator[str]:
    if manifest.input.kind != kind:
        yield f"{where} is of {kind}, not {manifest.input.kind}"
    if unknown := [name for name in names if name not in manifest.output.labels]:
        yield f"{where} names {', '.join(map(str, unknown))}, which is none of output.labels"


def _owner(manifest: "Manifest", key: str) -> tuple[BaseModel, str]:
    part: BaseModel = manifest
    *owners, last = key.split(".")
    for owner in owners:
        part = getattr(part, owner)
    return part, last
