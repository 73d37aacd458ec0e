"""What the measuring scripts make of what they saw."""

import doctest
import importlib
from typing import Any

import pytest

from bare_model import Way, best
from contenders import our_name
from generators import Kept, Open, Row, judge
from open_loop import GAVE_UP, LEFT
from overload import HEADS, Plan, Seen, rows
from package_model import WEIGHT, Packaging, manifest
from peer_pages import Window, best_peer, headline, main_table, ratio
from soak import Look, minutes_of, slope_per_min, verdicts
from tables import RESULTS


@pytest.mark.parametrize("module", ["tables", "open_loop", "contenders", "package_model", "peers", "soak"])
def test_the_examples_in_a_script_hold(module: str) -> None:
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted > 0
    assert found.failed == 0


def good(latency_s: float, outcome: int = 200, due_s: float = 0.0) -> Row:
    return Row(due_s, latency_s, outcome, False)


CALLS = [
    *(good(0.2), good(0.9), good(1.1)),
    *(good(0.001, 429), good(0.003, 503)),
    *(good(1.0, 504), good(10.0, GAVE_UP), good(0.1, 500), good(0.1, 0)),
    *(good(0.05, LEFT), Row(0.0, 0.1, 422, True)),
]


def test_what_was_offered_is_counted_once_and_leavers_and_broken_files_not_at_all() -> None:
    kept = judge(Open(2.0, CALLS, 0.0), deadline_s=1.0)

    assert kept.offered == 9
    assert (kept.in_time, kept.late, kept.expired, kept.gave_up, kept.failed, kept.refused) == (2, 1, 1, 1, 2, 2)
    assert kept.goodput_per_s == 1.0


def test_of_the_admitted_everything_not_answered_in_time_is_missed() -> None:
    kept = judge(Open(2.0, CALLS, 0.0), deadline_s=1.0)

    assert kept.admitted == 7
    assert kept.missed_share == pytest.approx(5 / 7)
    assert kept.refusal_ms is not None
    assert kept.refusal_ms.p99 == pytest.approx(3.0)


def test_a_server_that_only_refuses_has_kept_what_it_promised() -> None:
    assert judge(Open(1.0, [good(0.001, 429)], 0.0), 1.0).missed_share == 0.0
    assert isinstance(judge(Open(1.0, [], 0.0), 1.0), Kept)


def test_rounds_are_pooled_and_goodput_is_held_against_capacity_and_against_once() -> None:
    def seen(factor: float, in_time: int) -> Seen:
        return Seen("a", factor, 10.0, 10.0 * factor, Open(1.0, [good(0.1)] * in_time, 0.0), 9.0)

    made = rows([seen(1.0, 8), seen(1.0, 10), seen(2.0, 6), seen(2.0, 6)], Plan(1.0, factors=(1.0, 2.0, 4.0)))

    assert [row[1] for row in made] == ["1x", "2x"]
    cells = dict(zip(HEADS, made[1], strict=True))
    assert cells["goodput/s"] == 6.0
    assert cells["of capacity"] == "60.0 %"
    assert cells["of its goodput at 1x"] == "66.7 %"


def window(server: str, turn: int, per_s: float, *, ours: bool = False, **more: Any) -> Window:
    kit = {"rps": per_s, "p95_ms": 10.0, "cpu_ms_req": 2.0, "ok": 5, "error": 0, "refused": 0, "agree": "16/16", **more}
    return Window(server, ours, turn, 8, 40.0, kit)


def test_ratios_are_taken_inside_a_round() -> None:
    windows = [window("mine", turn, per_s, ours=True) for turn, per_s in enumerate((20.0, 60.0, 33.0))]
    windows += [window("theirs", turn, per_s) for turn, per_s in enumerate((10.0, 30.0, 11.0))]

    assert ratio(windows, "mine", "theirs", 8, "rps") == 2.0
    assert ratio(windows, "mine", "nobody", 8, "rps") is None


def test_the_best_peer_is_none_of_ours() -> None:
    windows = [window("mine", 0, 39.0, ours=True), window("naive-async", 0, 26.0), window("theirs", 0, 30.0)]

    assert best_peer(windows, ["naive-async", "theirs"], 8, lambda one: one.kit["rps"]) == ("theirs", 30.0)
    text = headline(windows, "mine")
    assert "97.5 % of the bare model" in text
    assert "theirs, 30.0/s" in text
    assert "1.30x" in text
    assert main_table(windows).splitlines()[2].startswith("| mine | 8 | 39.0 | 97.5 % |")


def test_the_bare_model_is_taken_at_its_best() -> None:
    off, on, hardly = Way(8, False, 2), Way(16, True, 2), Way(16, False, 2)

    assert best([(off, 100.0), (on, 120.0)]) == on
    assert best([(off, 100.0), (hardly, 100.5)]) == off


def looks(per_min_mb: float, files_per_min: float = 0.0) -> list[Look]:
    return [Look(10.0 * n, 10.0, 100 + per_min_mb * n / 6, int(20 + files_per_min * n / 6), 1) for n in range(60)]


@pytest.mark.parametrize(
    ("seen", "last_ms", "held"),
    [
        (looks(0.5), 30.0, [True, True, True, True]),
        (looks(1.5), 30.0, [False, True, True, True]),
        (looks(0.0, files_per_min=3), 30.0, [True, False, True, True]),
        (looks(0.0), 34.0, [True, True, False, True]),
    ],
    ids=["all well", "memory grows", "files stay open", "slower at the end"],
)
def test_a_soak_holds_or_says_what_does_not(seen: list[Look], last_ms: float, held: list[bool]) -> None:
    calls = [good((30.0 if due_s < 540 else last_ms) / 1e3, due_s=float(due_s)) for due_s in range(600)]

    found = verdicts(calls, seen, minutes_of(calls, seen, 600.0))

    assert [holds for _, _, holds in found] == held


def test_a_soak_counts_answers_that_should_not_be() -> None:
    calls = [good(0.03), good(0.03, 500), Row(0.0, 0.01, 422, True), good(0.01, 422)]

    wrong = verdicts(calls, looks(0.0), minutes_of(calls, [], 60.0))[-1]

    assert wrong[1] == "2 of 4: {'500': 1, '422': 1}"
    assert not wrong[2]


def test_memory_that_grew_before_it_settled_is_not_growth() -> None:
    early = [Look(at_s, 10.0, 100 + at_s, 20, 1) for at_s in range(0, 120, 5)]
    late = [Look(at_s, 10.0, 220.0, 20, 1) for at_s in range(120, 600, 5)]

    assert slope_per_min(late) == 0.0
    assert verdicts([good(0.03)], early + late, minutes_of([good(0.03)], [], 60.0))[0][2]


def test_a_manifest_says_what_it_was_told(tmp_path_factory: pytest.TempPathFactory) -> None:
    onnx = tmp_path_factory.mktemp("onnx") / "Tiny.onnx"
    onnx.write_bytes(b"weights")
    how = Packaging(labels=4, instances=2, threads=1, timeout_ms=500, weight=3, more={"batching.max_queue_size": 7})

    made = manifest(onnx, "image", [224, 224], "logits", how)

    assert made["name"] == "tiny"
    assert made["batching"]["preferred_batch_sizes"] == [1, 2, 4, 8, 16]
    assert made["batching"]["max_queue_size"] == 7
    assert made["instances"]["count"] == 2
    assert made["slo"] == {"timeout_ms": 500}
    *sections, key = WEIGHT.split(".")
    part = made
    for section in sections:
        part = part[section]
    assert part[key] == 3


def test_settings_side_by_side_have_names_and_one_alone_has_none() -> None:
    assert {our_name(0, [0]), our_name(2, [2])} == {"Isocenter"}
    assert our_name(0, [0, 2]) != our_name(2, [0, 2])
    assert RESULTS.name == "results"
