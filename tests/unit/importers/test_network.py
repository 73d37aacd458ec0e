"""How long an item is measured: enough runs of a quick model, few of a slow one, no size that takes too long."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

from isocenter.core.clock import ManualClock
from isocenter.core.tensor import Tensors, TensorSpec
from isocenter.importers.network import Order, measured
from isocenter.networks.registry import NETWORKS


class Slow:
    """A session whose runs take so long an item, by a clock that only it turns."""

    def __init__(self, per_item_s: float) -> None:
        self.clock = ManualClock()
        self.sizes: list[int] = []
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()
        self.proof = ""
        self._per_item_s = per_item_s

    def run(self, batch: Tensors) -> Tensors:
        self.sizes.append(len(batch["image"]))
        self.clock.advance(self._per_item_s * len(batch["image"]))
        return {}

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("per_item_s", "runs"),
    [(0.01, {1: 16, 2: 16, 4: 16}), (0.3, {1: 5, 2: 4, 4: 4}), (4.0, {1: 4, 2: 3, 4: 2}), (9.0, {1: 3, 2: 2})],
    ids=["quick", "middling", "slow", "four would take too long"],
)
def test_runs_are_as_many_as_it_takes(per_item_s: float, runs: dict[int, int]) -> None:
    session = Slow(per_item_s)
    entry = NETWORKS["slice-resnet"]
    order = Order(entry=entry, to="onnx", name="x", version=1, labels=("a",), item_shape=(3, 32, 32), max_batch_size=4)
    found = measured(session, "image", order, now_s=session.clock.now_s)
    assert found == pytest.approx({size: size * per_item_s for size in runs})
    assert {size: session.sizes.count(size) for size in runs} == runs
