"""The next version of a model: the same one, run by a tritonserver, with the weights at hand as its fallback.

python examples/triton/behind_triton.py models brain-mri-classifier grpc://127.0.0.1:8001
"""

import shutil
import sys
from pathlib import Path

import yaml

from isocenter.repository.layout import ModelFolder, find


def behind_triton(models: Path, name: str, url: str) -> ModelFolder:
    """Copy the highest version under the next number; its `runtime` becomes the `fallback`."""
    local = find(models, name)
    version = local.manifest.version + 1
    folder = local.path.parent / str(version)
    shutil.copytree(local.path, folder)
    file = folder / "model.yaml"
    described = yaml.safe_load(file.read_text(encoding="utf-8"))
    described["version"] = version
    described["fallback"] = described["runtime"]
    described["runtime"] = {
        "kind": "triton",
        "url": url,
        "precision": local.manifest.runtime.precision,
        "options": {"model": name},
    }
    file.write_text(yaml.safe_dump(described, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return find(models, name, version)


if __name__ == "__main__":
    print(behind_triton(Path(sys.argv[1]), sys.argv[2], sys.argv[3]).path)
