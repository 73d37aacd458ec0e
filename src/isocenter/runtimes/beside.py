"""Which other files a runtime reads when it is given one: each of them needs a digest of its own."""

from pathlib import Path

from isocenter.runtimes.onnx_file import read_onnx


def read_with(kind: str, file: Path) -> list[str]:
    """Other files that a runtime reads with this one, as paths from its folder.

    Raises:
        BadManifest: it is no file of that runtime.
    """
    if kind == "openvino" and file.suffix == ".xml":
        return [file.with_suffix(".bin").name]
    if kind in ("onnxruntime", "openvino"):
        return read_onnx(file).external
    return []
