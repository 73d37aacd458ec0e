"""Keep what a served model answers today as the golden cases of its folder, for a model that is only on a server.

    python examples/triton/record_golden.py examples/triton/models resnet_medical slice-1.png slice-2.png

From then on a version that answers otherwise does not become ready. Look at the answers before you keep them.
"""

import json
import sys
from pathlib import Path

from isocenter.imaging.codecs.raster import decode_reference
from isocenter.imaging.limits import ImageLimits
from isocenter.imaging.transforms.reference import preprocess
from isocenter.repository.layout import find
from isocenter.repository.sessions import open_one


def record(models: Path, name: str, pictures: list[Path]) -> list[list[float]]:
    """Write `golden/<picture>.png` and `.json`; gives the outputs."""
    folder = find(models, name)
    manifest = folder.manifest
    session = open_one(folder)
    answers: list[list[float]] = []
    try:
        for picture in pictures:
            image = decode_reference(picture.read_bytes(), limits=ImageLimits())
            item = preprocess(image, manifest.transforms).tensor
            output = session.run({manifest.input.tensor: item[None]})[manifest.output.tensor][0]
            answers.append([float(value) for value in output])
    finally:
        session.close()
    folder.golden.mkdir(exist_ok=True)
    for picture, answer in zip(pictures, answers, strict=True):
        (folder.golden / f"{picture.stem}.png").write_bytes(picture.read_bytes())
        (folder.golden / f"{picture.stem}.json").write_text(json.dumps({"logits": answer}))
    return answers


if __name__ == "__main__":
    for answer in record(Path(sys.argv[1]), sys.argv[2], [Path(word) for word in sys.argv[3:]]):
        print([round(value, 4) for value in answer])
