"""A file of torch is a program: one that does more than compute is refused, and nothing in it is run."""

import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isocenter.core.errors import BadManifest

pytest.importorskip("torch")

import torch

import torch_files
from isocenter.runtimes import torch_archive
from isocenter.runtimes.torch_archive import load_program, load_script, ports_from_json

INFINITE = b'{"inputs": [{"name": "x", "dtype": "float32", "shape": [1e999]}], "outputs": []}'


class Writes(torch.nn.Module):  # type: ignore[misc, unused-ignore]
    """Writes a file when it is run."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, "canary")
        return x


class Reads(torch.nn.Module):  # type: ignore[misc, unused-ignore]
    """Makes a file when it is run, and would map any other."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.from_file("canary", True, 4)


class Wakes(torch.nn.Module):  # type: ignore[misc, unused-ignore]
    """Writes a file when it is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.ones(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.weights

    def __getstate__(self) -> tuple[torch.Tensor, bool]:
        return self.weights, self.training

    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        self.weights = state[0]
        self.training = state[1]
        torch.save(self.weights, "canary")


for method in (Wakes.__getstate__, Wakes.__setstate__):
    torch.jit.export(method)


def scripted(file: Path, module: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module), str(file))
    return file


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return torch_files.write_program(tmp_path / "m.pt2", torch_files.classifier())


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in the current folder that must not come to be."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "canary"


class Planted:
    """What a pickle does to whoever loads it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (Path("canary"), "alive")


def changed(file: Path, change: Callable[[str, bytes], bytes], **more: bytes) -> Path:
    """The archive with every record changed, and more records."""
    with zipfile.ZipFile(file) as old:
        records = {name: old.read(name) for name in old.namelist()}
    root = next(iter(records)).partition("/")[0]
    out = file.with_name("changed.pt2")
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as new:
        for name, content in records.items():
            new.writestr(name, change(name.partition("/")[2], content))
        for name, content in more.items():
            new.writestr(f"{root}/{name}", content)
    return out


def in_program(change: Callable[[dict[str, Any]], None]) -> Callable[[str, bytes], bytes]:
    """A change of the program itself."""

    def apply(name: str, content: bytes) -> bytes:
        if name != "models/model.json":
            return content
        said = json.loads(content)
        change(said)
        return json.dumps(said).encode()

    return apply


@pytest.mark.parametrize("module", [Writes, Reads, Wakes])
def test_a_script_that_touches_files_is_refused(module: type[Any], tmp_path: Path, canary: Path) -> None:
    file = scripted(tmp_path / "m.pt", module())
    with pytest.raises(BadManifest, match=r"m\.pt is refused: .*; nothing of it was run"):
        load_script(file)
    assert not canary.exists()


def test_a_script_that_hides_it_in_a_function_of_a_function_is_refused(tmp_path: Path, canary: Path) -> None:
    class Deep(torch.nn.Module):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.inner = Writes()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.sum() > 0:
                x = self.inner(x)
            return x

    with pytest.raises(BadManifest, match="it calls aten::save"):
        load_script(scripted(tmp_path / "m.pt", Deep()))
    assert not canary.exists()


def test_a_script_that_prints_is_refused(tmp_path: Path) -> None:
    class Prints(torch.nn.Module):  # type: ignore[misc, unused-ignore]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            print(x)  # noqa: T201
            return x

    with pytest.raises(BadManifest, match="it calls prim::Print"):
        load_script(scripted(tmp_path / "m.pt", Prints()))


def test_a_damaged_script_is_refused(tmp_path: Path) -> None:
    file = torch_files.write_script(tmp_path / "m.pt", torch_files.classifier())
    with zipfile.ZipFile(file) as archive:
        code = next(each for each in archive.infolist() if each.filename.endswith(".py") and each.compress_type)
    content = bytearray(file.read_bytes())
    at = content.find(code.filename.encode()) + len(code.filename) + 64
    content[at : at + code.compress_size - 64] = b"\xff" * (code.compress_size - 64)
    file.write_bytes(content)

    with pytest.raises(BadManifest, match="is not a TorchScript file"):
        load_script(file)


def test_a_script_says_which_tensors_it_has(tmp_path: Path) -> None:
    _, ports = load_script(torch_files.write_script(tmp_path / "m.pt", torch_files.classifier()))
    assert ports is not None
    assert [spec.name for side in ports for spec in side] == ["image", "logits"]


def test_a_script_with_an_object_in_c_plus_plus_is_refused(tmp_path: Path) -> None:
    def change(name: str, content: bytes) -> bytes:
        return content + b"c__torch__.torch.classes.rpc.WorkerInfo\n" if name == "data.pkl" else content

    file = torch_files.write_script(tmp_path / "m.pt", torch_files.classifier())
    load_script(changed(file, lambda _, content: content))
    with pytest.raises(BadManifest, match=r"it holds an object of torch\.classes\.rpc"):
        load_script(changed(file, change))


def test_texts_that_unpack_to_too_much_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_archive, "_MAX_INFLATED_BYTES", 2**20)
    file = torch_files.write_script(tmp_path / "m.pt", torch_files.classifier())
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/code/more.py", b" " * 2**21)
    with pytest.raises(BadManifest, match="its compressed records unpack to 2 MiB of 1"):
        load_script(file)


@pytest.mark.parametrize(
    "text", [b"", b"[]", b'{"inputs": []}', b'{"inputs": [{"name": "x"}], "outputs": []}', b"[" * 99_999, INFINITE]
)
def test_a_script_that_says_it_wrongly_is_refused(text: bytes) -> None:
    with pytest.raises(BadManifest, match="does not say which tensors"):
        ports_from_json("m.pt", text)


@pytest.mark.parametrize("load", [load_script, load_program])
def test_a_pickle_is_not_loaded(load: Callable[[Path], Any], tmp_path: Path, canary: Path) -> None:
    (tmp_path / "m.pt2").write_bytes(pickle.dumps(Planted()))
    torch.save(Planted(), tmp_path / "saved.pt2")
    for name in ("m.pt2", "saved.pt2"):
        with pytest.raises(BadManifest):
            load(tmp_path / name)
    assert not canary.exists()


def test_a_program_keeps_the_names_of_its_tensors(program: Path) -> None:
    _, (inputs, outputs) = load_program(program)
    assert [(spec.name, spec.shape) for spec in (*inputs, *outputs)] == [("input", (3, 16, 16)), ("linear", (4,))]


def test_a_program_can_be_written_anew_unchanged(program: Path) -> None:
    """Or the refusals below would prove nothing."""
    load_program(changed(program, lambda _, content: content))


def first_node(program: dict[str, Any]) -> dict[str, Any]:
    node: dict[str, Any] = program["graph_module"]["graph"]["nodes"][0]
    return node


def _calls(target: str) -> Callable[[dict[str, Any]], None]:
    def change(program: dict[str, Any]) -> None:
        first_node(program)["target"] = target

    return change


def _size(expression: str) -> Callable[[dict[str, Any]], None]:
    def change(program: dict[str, Any]) -> None:
        sizes = program["graph_module"]["graph"]["tensor_values"]["input"]["sizes"]
        sizes[0]["as_expr"]["expr_str"] = expression

    return change


def _named(name: str) -> Callable[[dict[str, Any]], None]:
    def change(program: dict[str, Any]) -> None:
        graph = program["graph_module"]["graph"]
        graph["inputs"][-1]["as_tensor"]["name"] = name

    return change


def _spec(text: str) -> Callable[[dict[str, Any]], None]:
    def change(program: dict[str, Any]) -> None:
        program["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = text

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_calls("torch.os.system"), "it calls 'torch.os.system'"),
        (_calls("torch.ops.aten.save.default"), "it calls"),
        (_calls("torch.ops.aten.from_file.default"), "it calls"),
        (_calls("torch.ops.mylib.anything.default"), "it calls"),
        (_calls("_operator.methodcaller"), "it calls"),
        (_calls("torch.hub.load"), "it calls"),
        (_size("__import__('pathlib').Path('canary').touch()"), "it has the expression"),
        (_size("Symbol('s1').__class__"), "it has the expression"),
        (_size("eval('1')"), "it has the expression"),
        (_named("x=open('canary','w')"), "it has the name"),
        (_named("x\nimport os"), "it has the name"),
        (
            _spec('[1, {"type": "collections.OrderedDict", "context": "null", "children_spec": []}]'),
            "inputs or outputs",
        ),
        (_spec('[1, {"__enum__": true, "fqn": "os:system"}]'), "inputs or outputs"),
    ],
)
def test_a_program_that_does_more_than_compute_is_refused(
    change: Callable[[dict[str, Any]], None], says: str, program: Path, canary: Path
) -> None:
    with pytest.raises(BadManifest, match=rf"changed\.pt2 is refused: .*{says}.*nothing of it was run"):
        load_program(changed(program, in_program(change)))
    assert not canary.exists()


def test_guards_which_are_python_are_left_out(program: Path, canary: Path) -> None:
    def change(program: dict[str, Any]) -> None:
        program["guards_code"] = ["__import__('pathlib').Path('canary').touch()"]

    module, _ = load_program(changed(program, in_program(change)))
    module(torch.zeros(2, *torch_files.IMAGE))
    assert not canary.exists()


@pytest.mark.parametrize("folder", ["weights", "constants"])
def test_pickled_weights_are_refused(folder: str, program: Path, canary: Path) -> None:
    def change(name: str, content: bytes) -> bytes:
        if name != f"data/{folder}/model_{folder}_config.json":
            return content
        said = json.loads(content)
        said["config"]["w"] = {"path_name": "weight_0", "is_param": True, "use_pickle": True, "tensor_meta": None}
        return json.dumps(said).encode()

    with pytest.raises(BadManifest, match=f"refused: {folder} 'w' are pickled"):
        load_program(changed(program, change))
    assert not canary.exists()


def test_sample_inputs_that_are_more_than_tensors_are_refused(program: Path, canary: Path) -> None:
    pickled = io.BytesIO()
    torch.save(Planted(), pickled)

    def change(name: str, content: bytes) -> bytes:
        return pickled.getvalue() if name == "data/sample_inputs/model.pt" else content

    with pytest.raises(BadManifest, match="sample inputs are more than tensors"):
        load_program(changed(program, change))
    assert not canary.exists()


@pytest.mark.parametrize(
    "record",
    ["data/aotinductor/model/m.so", "data/weights/model.pt", "data/constants/opaque_obj_0", "models/other.json"],
)
def test_a_program_with_anything_else_in_it_is_refused(record: str, program: Path) -> None:
    with pytest.raises(BadManifest, match=f"refused: it holds '{record}'"):
        load_program(changed(program, lambda _, content: content, **{record: b"x"}))
