"""Checkpoints are read and never run; random weights are those of their seed."""

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from isocenter.core.errors import ImportRefused, MissingExtra  # noqa: E402
from isocenter.networks.weights import load_state, read_state, seeded, settle, unlike_items  # noqa: E402

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.zeros(2)}


class Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, nest: Path) -> None:
        self.nest = nest

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.nest,))


def same(found: dict[str, Any]) -> bool:
    return set(found) == set(TENSORS) and all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize(
    "content",
    [
        TENSORS,
        OrderedDict(TENSORS),
        {"state_dict": TENSORS, "epoch": 3, "best": 0.5},
        {"model": {f"module.{name}": tensor for name, tensor in TENSORS.items()}},
        {f"_orig_mod.model.{name}": tensor for name, tensor in TENSORS.items()},
    ],
    ids=["plain", "ordered", "of a training script", "of DataParallel", "of torch.compile and a wrapper"],
)
def test_tensors_are_found_where_training_scripts_leave_them(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pt")
    assert same(read_state(tmp_path / "weights.pt"))


def test_of_two_sets_of_weights_none_is_taken(tmp_path: Path) -> None:
    torch.save({"state_dict": TENSORS, "model": {"arch": "unet"}}, tmp_path / "one.pt")
    assert same(read_state(tmp_path / "one.pt"))
    torch.save({"model": TENSORS, "net": {name: tensor + 1 for name, tensor in TENSORS.items()}}, tmp_path / "two.pt")

    with pytest.raises(ImportRefused, match="holds weights under model and net"):
        read_state(tmp_path / "two.pt")


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda tensor: tensor.to(torch.int8), "torch.int8"),
        (lambda tensor: tensor.to(torch.complex64), "torch.complex64"),
        (lambda tensor: tensor.to_sparse(), "torch.sparse_coo"),
        (lambda tensor: tensor.to("meta"), "meta"),
    ],
    ids=["whole numbers of a quantised file", "complex", "sparse", "without values"],
)
def test_values_that_are_not_those_of_the_weights_are_refused(change: Any, kind: str) -> None:
    network = nn.Linear(3, 2)

    with pytest.raises(ImportRefused, match=f"weight is .*{kind}"):
        load_state(network, {"weight": change(torch.ones(2, 3)), "bias": torch.zeros(2)})
    load_state(network, {"weight": torch.ones(2, 3, dtype=torch.float16), "bias": torch.zeros(2)})


def test_safetensors_are_read_where_the_library_is(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.torch")
    library.save_file(TENSORS, tmp_path / "weights.safetensors")
    assert same(read_state(tmp_path / "weights.safetensors"))


def test_without_that_library_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match="pip install"):
        read_state(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("form", ["zip", "legacy", "bare", "inside"])
def test_a_pickle_with_code_is_refused_and_nothing_of_it_runs(form: str, tmp_path: Path) -> None:
    nest, file = tmp_path / "canary", tmp_path / "weights.pt"
    content = Canary(nest) if form != "inside" else {"state_dict": TENSORS, "optimizer": Canary(nest)}
    if form == "bare":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form != "legacy")
    with pytest.raises(ImportRefused, match="nothing of it was run"):
        read_state(file)
    assert not nest.exists()


def test_the_canary_sings_where_it_is_let(tmp_path: Path) -> None:
    torch.save(Canary(tmp_path / "canary"), tmp_path / "weights.pt")
    torch.load(tmp_path / "weights.pt", weights_only=False)
    assert (tmp_path / "canary").exists()


def test_no_variable_of_the_environment_opens_the_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save(Canary(tmp_path / "canary"), tmp_path / "weights.pt")
    with pytest.raises(ImportRefused):
        read_state(tmp_path / "weights.pt")
    assert not (tmp_path / "canary").exists()


def zip_of_nothing(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme", "nothing")


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda file: None, "no checkpoint at"),
        (lambda file: file.write_bytes(b""), "refused|not a checkpoint"),
        (lambda file: file.write_bytes(b"\x80\x02garbage"), "refused|not a checkpoint"),
        (zip_of_nothing, "not a checkpoint"),
        (lambda file: torch.save(torch.zeros(2), file), "holds no tensors by name, but Tensor"),
        (lambda file: torch.save({}, file), "holds no tensors by name"),
        (lambda file: torch.save(TENSORS | {"epoch": 3}, file), "'epoch' is none"),
    ],
    ids=["nothing", "empty", "garbage", "another zip", "one tensor", "no tensor", "a number among them"],
)
def test_what_is_no_checkpoint_is_said(write: Any, said: str, tmp_path: Path) -> None:
    write(tmp_path / "weights.pt")
    with pytest.raises(ImportRefused, match=said):
        read_state(tmp_path / "weights.pt")


class Net(nn.Module):
    """As small as it can be and still be settled."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def forward(self, image: Any) -> Any:
        return self.head(self.body(image).mean((2, 3)))


def drawn(seed: int) -> Net:
    with seeded(seed):
        network = Net()
    settle(network, unlike_items((3, 16, 16), seed=seed), seed=seed)
    return network


def test_the_same_seed_gives_the_same_weights_and_another_one_others() -> None:
    one, two, other = drawn(1).state_dict(), drawn(1).state_dict(), drawn(2).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])


def test_drawing_leaves_the_generator_of_others_alone() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    drawn(1)
    assert torch.equal(torch.rand(3), expected)


def test_settled_outputs_differ_from_item_to_item_and_class_to_class() -> None:
    network = drawn(1).eval()
    with torch.inference_mode():
        outputs = network(unlike_items((3, 16, 16), seed=1))
    assert outputs.std(0).tolist() == pytest.approx([1.5] * 4, rel=1e-4)
    assert outputs.mean(0).tolist() == pytest.approx([0.0] * 4, abs=1e-4)


def test_settling_gives_modes_and_momenta_back() -> None:
    network = drawn(1)
    assert network.training
    assert network.body[1].momentum == 0.1
