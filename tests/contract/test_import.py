"""`import isocenter` costs nothing, and types say the same as the code."""

import ast
import importlib
import subprocess
import sys

import isocenter
from conftest import ROOT
from patience import PATIENCE_S

HEAVY = ("numpy", "cv2", "onnxruntime", "fastapi", "uvicorn", "pydantic", "asyncio", "isocenter.core")


def test_importing_the_package_imports_nothing_else() -> None:
    code = f"import sys, isocenter; sys.exit(str([name for name in {HEAVY} if name in sys.modules] or '') or 0)"

    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=PATIENCE_S)

    assert (done.returncode, done.stderr) == (0, "")


def test_errors_come_without_the_server() -> None:
    code = "import sys; from isocenter import Overloaded, errors; sys.exit('isocenter.app' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=PATIENCE_S).returncode == 0


def test_the_stub_names_what_is_exported() -> None:
    stub = ast.parse((ROOT / "src" / "isocenter" / "__init__.pyi").read_text(encoding="utf-8"))

    imported = {
        (node.module, each.asname) for node in stub.body if isinstance(node, ast.ImportFrom) for each in node.names
    }

    assert {name for _, name in imported} | {"__version__"} == set(isocenter.__all__)
    for module, name in imported:
        if name != "errors":
            assert getattr(isocenter, str(name)) is getattr(importlib.import_module(str(module)), str(name))


def test_what_is_not_there_is_an_attribute_error() -> None:
    assert not hasattr(isocenter, "Servcie")
    assert set(dir(isocenter)) == set(isocenter.__all__)
