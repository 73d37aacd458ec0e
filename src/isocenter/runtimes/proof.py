"""What a session was seen to compute in, and whether that is what the manifest states."""

from collections.abc import Mapping
from typing import Final

from isocenter.core.errors import BadManifest
from isocenter.core.precision import REFERENCE, Precision

_AT_LEAST: Final = 0.5
"""The share of its layers in which a model must compute as stated; the rest may be fp32."""


def proven(stated: Precision, layers: Mapping[str, int], seen: str) -> str:
    """The proof in words. Layers are those with products: convolutions, matrix products, recurrent cells.

    >>> proven("int8", {"int8": 53, "fp32": 1}, "read from the compiled model")
    'int8: 53 of 54 layers, the rest in fp32; read from the compiled model'

    Args:
        stated: by the manifest.
        layers: how many compute in which precision; may hold words that no manifest knows.
        seen: how that was found out.

    Raises:
        BadManifest: fewer than half of the layers compute as stated, or some in a third precision.
    """
    total, as_stated = sum(layers.values()), layers.get(stated, 0)
    others = {word: count for word, count in layers.items() if word not in (stated, REFERENCE) and count}
    if others or as_stated < _AT_LEAST * total or (stated != REFERENCE and as_stated == 0):
        raise BadManifest(
            f"precision is {stated}, but {in_words(layers)}; {seen}",
            details={"stated": stated, "layers": dict(layers)},
        )
    if not total:
        return f"{stated}: the model has no layers with products; {seen}"
    rest = "" if as_stated == total else ", the rest in fp32"
    return f"{stated}: {as_stated} of {total} layers{rest}; {seen}"


def in_words(layers: Mapping[str, int]) -> str:
    """Layers by precision.

    >>> in_words({"fp32": 53, "bf16": 1}), in_words({})
    ('53 of its layers compute in fp32, 1 in bf16', 'it has no layers with products')
    """
    found = [f"{count} in {word}" for word, count in sorted(layers.items(), key=lambda each: -each[1]) if count]
    if not found:
        return "it has no layers with products"
    first, *rest = found
    return ", ".join([first.replace(" in ", " of its layers compute in ", 1), *rest])
