"""How many values a model's weights have, as far as its file says."""

from isocenter.core.errors import BadManifest
from isocenter.repository.load import ServedModel
from isocenter.runtimes.onnx_file import read_onnx

_FLOATS = ("float16", "float32", "float64", "bfloat16")


class Parameters:
    """Counted once a version; may be asked from several threads."""

    def __init__(self) -> None:
        self._counted: dict[str, int | None] = {}

    def of(self, served: ServedModel) -> int | None:
        """Floating-point values of an ONNX file's initializers; None of every other kind of file."""
        if served.digest not in self._counted:
            self._counted[served.digest] = _count(served)
        return self._counted[served.digest]


def _count(served: ServedModel) -> int | None:
    file = served.manifest.runtime.file
    if file is None or not file.endswith(".onnx"):
        return None
    try:
        found = read_onnx(served.folder.path / file).parameters
    except BadManifest:
        return None
    return sum(found[kind] for kind in _FLOATS)
