"""Predictions from what was measured."""

import pytest

from isocenter.engine.cost import CostTable

TABLE = CostTable({8: 0.8, 1: 0.2, 4: 0.5})


@pytest.mark.parametrize(
    ("items", "seconds"),
    [(0, 0.0), (1, 0.2), (2, 0.3), (4, 0.5), (6, 0.65), (8, 0.8), (9, 1.0), (20, 2.1)],
    ids=["none", "one", "between", "measured", "between", "largest", "one batch and one", "two batches and four"],
)
def test_service_time(items: int, seconds: float) -> None:
    assert TABLE.service_s(items) == pytest.approx(seconds)


def test_instances_share_the_backlog() -> None:
    assert TABLE.clear_s(16, instances=2) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("table", "pays"),
    [({1: 1.0, 8: 2.0}, True), ({1: 1.0, 8: 8.0}, False), ({1: 1.0, 8: 7.5}, False), ({1: 1.0}, True)],
    ids=["steep", "flat", "nearly flat", "one size tells nothing"],
)
def test_batching_pays_where_a_large_batch_is_cheaper(table: dict[int, float], pays: bool) -> None:
    assert CostTable(table).batching_pays is pays


def test_an_empty_table_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one batch size"):
        CostTable({})
