"""Files of torch are programs: what is in one is looked into before it is loaded, and loaded without being run.

`torch.export.load` unpickles, evaluates expressions and looks operators up by name; `torch.jit.load` runs what a file
says is to be run while it is loaded. Both are harmless for files that hold nothing but tensors and calls of torch's own
operators, and that is what is let in.
"""

import io
import json
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import torch

from isocenter.core.errors import BadManifest
from isocenter.core.tensor import TensorSpec

Ports: TypeAlias = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]
"""Inputs and outputs."""

PORTS_FILE: Final = "isocenter.json"
"""Names, element types and shapes of a TorchScript file's tensors, which has none of its own; an extra file in it."""

_FILE_OPERATORS: Final = ("save", "from_file")
"""Operators of `aten` that touch files."""
_NAMESPACES: Final = frozenset({"aten", "prim", "prims", "quantized", "mkldnn", "mkldnn_prepacked"})
_BYPASSES: Final = frozenset({"prim::CallFunction", "prim::CallMethod", "prim::fork", "prim::awaitable"})
"""Nodes whose operators are elsewhere, where they would not be seen."""
_PRINTS: Final = "prim::Print"
"""Writes what it is given, pixels too, to the standard output."""

_FOREIGN_CLASS: Final = re.compile(rb"torch\.classes\.(?!quantized\.)\w*")
"""Classes in C++, which rebuild themselves from what a file holds."""
_MAX_INFLATED_BYTES: Final = 256 * 2**20
"""Of records that are compressed: texts, not weights."""

_RECORDS: Final = re.compile(
    r"data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|models/model\.json|data/sample_inputs/model\.pt|extra/.*|archive_format|archive_version|byteorder|version|\.data/\w+"
)
_OPERATOR: Final = re.compile(
    rf"torch\.ops\.aten\.(?!(?:{'|'.join(_FILE_OPERATORS)})\b)\w+(\.\w+)?|torch\.sym_\w+|math\.[a-z]\w*"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
)
_NAME: Final = re.compile(r"[\w.\-+:/\[\]',]*", re.ASCII)
"""Nothing that could call, quote or end a line in the Python that torch makes of a graph."""
_EXPRESSION_WORDS: Final = frozenset(
    {
        "Symbol", "Integer", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Mod", "PythonMod", "FloorDiv", "CleanDiv",
        "CeilDiv", "CeilToInt", "FloorToInt", "TruncToInt", "RoundToInt", "IntTrueDiv", "FloatTrueDiv", "ToFloat",
        "PowByNatural", "FloatPow", "Where", "Identity", "positive", "integer", "nonnegative", "True", "False",
    }
)  # fmt: skip
_EXPRESSION: Final = re.compile(r"[\w\s()'\"+\-*/%<>=,]|(?<=\d)\.|\.(?=\d)", re.ASCII)
_CONTAINERS: Final = frozenset({None, "builtins.tuple", "builtins.list", "builtins.dict"})
_UNREAD: Final = frozenset({"metadata", "guards_code"})
"""Parts of a program that are not used: where it came from, and Python that checks shapes, which is left out."""

_DTYPES: Final = {
    torch.float32: np.float32, torch.float16: np.float16, torch.float64: np.float64, torch.uint8: np.uint8,
    torch.int8: np.int8, torch.int32: np.int32, torch.int64: np.int64, torch.bool: np.bool_,
}  # fmt: skip


def load_script(file: Path) -> tuple[Any, Ports | None]:
    """A TorchScript file as a module on the CPU, with its tensors if the file says which it has.

    Raises:
        BadManifest: it is no TorchScript file, or does more than compute; nothing in it was run.
    """
    records = _records(file)
    try:
        reader = torch._C.PyTorchFileReader(str(file))
        _look_at_code(reader, records)
        with warnings.catch_warnings():
            # torch advises its own successor for new files; these are the files that people have.
            warnings.simplefilter("ignore", DeprecationWarning)
            module = torch.jit.load(str(file), map_location="cpu")
        graph = module.forward.graph.copy()
        extra = f"extra/{PORTS_FILE}"
        ports = reader.get_record(extra) if extra in records else None
    except _Refusal as refusal:
        raise _refused(file, str(refusal)) from refusal
    except Exception as error:
        raise BadManifest(f"{file.name} is not a TorchScript file: {type(error).__name__}") from error
    torch._C._jit_pass_inline(graph)
    for kind in sorted(set(_node_kinds(graph.nodes()))):
        namespace, _, name = kind.partition("::")
        if (
            kind in (*_BYPASSES, _PRINTS)
            or namespace not in _NAMESPACES
            or (namespace == "aten" and name in _FILE_OPERATORS)
        ):
            raise _refused(file, f"it calls {kind}")
    return module, None if ports is None else ports_from_json(file.name, ports)


def _look_at_code(reader: Any, records: Iterable[str]) -> None:
    """Raises _Refusal for what would be run while a TorchScript file is loaded."""
    for record in records:
        if record.startswith("code/") and b"__setstate__" in reader.get_record(record):
            raise _Refusal("it has code to be run while it is loaded (__setstate__)")
        objects = reader.get_record(record) if record.endswith(".pkl") and not record.startswith("code/") else b""
        if strange := _FOREIGN_CLASS.search(objects):
            raise _Refusal(f"it holds an object of {strange[0].decode()}")


def load_program(file: Path) -> tuple[Any, Ports]:
    """An exported program as a module on the CPU, with its tensors.

    Raises:
        BadManifest: it is none, or does more than compute; nothing in it was run.
    """
    records = _records(file)
    if strange := sorted(record for record in records if not _RECORDS.fullmatch(record)):
        raise _refused(file, f"it holds {strange[0]!r}")
    reader = torch._C.PyTorchFileReader(str(file))
    try:
        _look_into(reader, set(records))
    except _Refusal as refusal:
        raise _refused(file, str(refusal)) from refusal
    except Exception as error:
        raise BadManifest(f"{file.name} is not an exported program: {type(error).__name__}") from error
    try:
        # What torch.export.load does beyond this is to try older formats, which are not looked into.
        from torch.export.pt2_archive._package import load_pt2

        program = load_pt2(str(file)).exported_programs["model"]
    except Exception as error:
        raise BadManifest(
            f"{file.name} cannot be loaded by torch {torch.__version__}: {type(error).__name__}"
        ) from error
    return program.module(check_guards=False), _program_ports(file, program)


def ports_from_json(name: str, text: bytes) -> Ports:
    """`{"inputs": [{"name", "dtype", "shape"}], "outputs": […]}`, shapes without batch axis, -1 for an open axis.

    Raises:
        BadManifest: it is not of that form.
    """
    try:
        said = json.loads(text)
        inputs, outputs = (
            tuple(
                TensorSpec(str(each["name"]), np.dtype(each["dtype"]), tuple(map(int, each["shape"])))
                for each in said[side]
            )
            for side in ("inputs", "outputs")
        )
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise BadManifest(f"{PORTS_FILE} in {name} does not say which tensors it has: {error}") from error
    return inputs, outputs


class _Refusal(Exception):
    """What was found in the file."""


def _refused(file: Path, why: str) -> BadManifest:
    return BadManifest(f"{file.name} is refused: {why}; nothing of it was run", details={"file": file.name, "why": why})


def _records(file: Path) -> list[str]:
    try:
        with zipfile.ZipFile(file) as archive:
            inflated = sum(each.file_size for each in archive.infolist() if each.compress_type != zipfile.ZIP_STORED)
        records = list(torch._C.PyTorchFileReader(str(file)).get_all_records())
    except Exception as error:
        raise BadManifest(f"{file.name} is not a file that torch.jit.save or torch.export.save wrote") from error
    if inflated > _MAX_INFLATED_BYTES:
        raise _refused(file, f"its compressed records unpack to {inflated >> 20} MiB of {_MAX_INFLATED_BYTES >> 20}")
    return records


def _node_kinds(nodes: Iterable[Any]) -> Iterator[str]:
    for node in nodes:
        yield node.kind()
        for block in node.blocks():
            yield from _node_kinds(block.nodes())


def _look_into(reader: Any, records: set[str]) -> None:
    """Raises _Refusal for whatever is not a tensor or a call of an operator."""
    for folder in ("weights", "constants"):
        config = json.loads(reader.get_record(f"data/{folder}/model_{folder}_config.json"))
        for name, about in config["config"].items():
            if about["use_pickle"] or f"data/{folder}/{about['path_name']}" not in records:
                raise _Refusal(f"{folder} {name!r} are pickled")
            _look_at_names(name, about)
    samples = reader.get_record("data/sample_inputs/model.pt")
    if samples:
        try:
            torch.load(io.BytesIO(samples), weights_only=True)
        except Exception as error:
            raise _Refusal("its sample inputs are more than tensors") from error
    program = json.loads(reader.get_record("models/model.json"))
    for target in _targets(program):
        if not isinstance(target, str) or not _OPERATOR.fullmatch(target):
            raise _Refusal(f"it calls {str(target)[:80]!r}")
    _look_at_names("", program)


def _targets(value: Any) -> Iterator[Any]:
    """What every node calls."""
    if isinstance(value, dict):
        if "target" in value and "inputs" in value:
            yield value["target"]
        for inner in value.values():
            yield from _targets(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _targets(inner)


def _look_at_names(key: str, value: Any) -> None:
    """Every text of a program by what it is used for: expressions are evaluated, names become Python."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if not _NAME.fullmatch(name):
                raise _Refusal(f"it has the name {name[:80]!r}")
            if name not in _UNREAD:
                _look_at_names(name, inner)
    elif isinstance(value, list):
        for inner in value:
            _look_at_names(key, inner)
    elif isinstance(value, str):
        if key == "expr_str":
            _look_at_expression(value)
        elif key in ("in_spec", "out_spec"):
            _look_at_containers(json.loads(value) if value else [])
        elif not _NAME.fullmatch(value):
            raise _Refusal(f"it has the name {value[:80]!r}")


def _look_at_expression(text: str) -> None:
    words = re.findall(r"[A-Za-z_]\w*", text)
    strange = [word for word in words if word not in _EXPRESSION_WORDS and not re.fullmatch(r"[a-z]+\d+", word)]
    if strange or len(_EXPRESSION.findall(text)) != len(text):
        raise _Refusal(f"it has the expression {text[:80]!r}")


def _look_at_containers(value: Any) -> None:
    if isinstance(value, dict):
        if set(value) - {"type", "context", "children_spec"} or value.get("type") not in _CONTAINERS:
            raise _Refusal(f"its inputs or outputs are {str(value.get('type'))[:80]!r}")
        for inner in value.get("children_spec", ()):
            _look_at_containers(inner)
        context = value.get("context")
        if isinstance(context, str) and not _NAME.fullmatch(context.replace('"', "").replace(" ", "")):
            raise _Refusal(f"its inputs or outputs have the keys {context[:80]!r}")
    elif isinstance(value, list):
        for inner in value:
            _look_at_containers(inner)


def _program_ports(file: Path, program: Any) -> Ports:
    """Tensors by the names that they have in the program.

    Raises:
        BadManifest: no open batch axis, or an element type that is not served.
    """
    values = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
    sides = program.graph_signature.user_inputs, program.graph_signature.user_outputs
    inputs, outputs = (tuple(_port(file, name, values[name]) for name in side) for side in sides)
    return inputs, outputs


def _port(file: Path, name: str, value: Any) -> TensorSpec:
    if value.dtype not in _DTYPES:
        raise BadManifest(f"tensor {name!r} of {file.name} has element type {value.dtype}, which is not served")
    if not value.shape or isinstance(value.shape[0], int):
        raise BadManifest(
            f"tensor {name!r} of {file.name} has shape {list(value.shape)}: axis 0 must be a dynamic batch axis"
        )
    return TensorSpec(
        name, np.dtype(_DTYPES[value.dtype]), tuple(n if isinstance(n, int) else -1 for n in value.shape[1:])
    )
