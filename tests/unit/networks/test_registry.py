"""The list of networks: readable without torch, and true of what it names."""

import subprocess
import sys

import pytest

from isocenter.core.errors import MissingExtra
from isocenter.imaging.phantoms import CLASSES
from isocenter.networks.registry import NETWORKS, NetworkEntry
from isocenter.repository.manifest import MODEL_NAME


def test_the_list_costs_no_torch() -> None:
    code = "import sys, isocenter.networks.registry as r; print(len(r.NETWORKS), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == [str(len(NETWORKS)), "False"]


def test_without_torch_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=r'pip install "isocenter\[torch\]"'):
        NETWORKS["resnet50"].build()


@pytest.mark.parametrize("entry", NETWORKS.values(), ids=NETWORKS.keys())
def test_an_entry_is_consistent(entry: NetworkEntry) -> None:
    assert MODEL_NAME.fullmatch(entry.name)
    for shape in (entry.input_shape, entry.small_shape):
        assert shape[0] == entry.input_shape[0]
        assert len(shape) == len(entry.input_shape)
        assert all(side % entry.multiple == 0 for side in shape[1:])
    if entry.labels[0] in CLASSES:
        assert entry.labels == CLASSES


@pytest.mark.parametrize("entry", NETWORKS.values(), ids=NETWORKS.keys())
@pytest.mark.parametrize("classes", [None, 5])
def test_a_network_gives_what_its_entry_says(entry: NetworkEntry, classes: int | None) -> None:
    torch = pytest.importorskip("torch")
    with torch.device("meta"), torch.inference_mode():
        found = entry.build(classes).eval()(torch.empty(2, *entry.small_shape)).shape
    sides = entry.small_shape[1:] if entry.fully_convolutional else ()
    assert tuple(found) == (2, classes or len(entry.labels), *sides)
