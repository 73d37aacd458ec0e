"""Tables of a closed loop over this server and its peers: medians over rounds, ratios inside a round."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tables import Cell, percent, table


@dataclass(frozen=True)
class Window:
    """One server at one number of connections in one round, and the bare model right before and after."""

    server: str
    ours: bool
    turn: int
    connections: int
    bare_per_s: float
    kit: dict[str, Any]
    """What the kit measured: rps, p50_ms, p95_ms, longest_ms, cpu_ms_req, pss_mb, start_s, agree, error, refused ..."""

    @property
    def of_bare(self) -> float:
        """Requests a second over the bare model's items a second."""
        return float(self.kit["rps"]) / self.bare_per_s


HEADS = (
    "server",
    "connections",
    "requests/s",
    "of the bare model",
    "P50 ms",
    "P95 ms",
    "longest wait ms",
    "n",
    "CPU ms/request",
    "PSS MB",
    "start s",
    "agree",
    "failed",
)


def main_table(windows: Sequence[Window]) -> str:
    """One row a server and number of connections."""
    rows: list[list[Cell]] = []
    for server in _servers(windows):
        for connections in _levels(windows):
            mine = [one for one in windows if (one.server, one.connections) == (server, connections)]
            if not mine:
                continue
            rows.append(
                [
                    server,
                    connections,
                    _median(mine, "rps"),
                    percent(statistics.median(one.of_bare for one in mine)),
                    *(_median(mine, key) for key in ("p50_ms", "p95_ms", "longest_ms")),
                    sum(int(one.kit["ok"]) for one in mine),
                    _median(mine, "cpu_ms_req"),
                    max(int(one.kit.get("pss_mb") or 0) for one in mine),
                    _median(mine, "start_s"),
                    str(mine[0].kit["agree"]),
                    sum(int(one.kit["error"]) + int(one.kit["refused"]) for one in mine),
                ]
            )
    return table(HEADS, rows)


def ratio_table(windows: Sequence[Window], name: str) -> str:
    """One of our settings against every other server: ratios inside a round, then the median over the rounds."""
    levels = _levels(windows)
    heads = [f"{name} against"]
    for words in ("requests/s", "P95", "CPU a request"):
        heads += [f"{words}, {connections} c." for connections in levels]
    rows: list[list[Cell]] = []
    for other in _servers(windows):
        if other == name:
            continue
        cells: list[Cell] = [other]
        for key in ("rps", "p95_ms", "cpu_ms_req"):
            cells += [_times(ratio(windows, name, other, connections, key)) for connections in levels]
        rows.append(cells)
    return table(heads, rows)


def ratio(windows: Sequence[Window], name: str, other: str, connections: int, key: str) -> float | None:
    """The median over rounds of ours over theirs; None where they never met."""
    by_turn: dict[int, dict[str, float]] = {}
    for one in windows:
        if one.connections == connections and one.kit.get(key):
            by_turn.setdefault(one.turn, {})[one.server] = float(one.kit[key])
    met = [turn[name] / turn[other] for turn in by_turn.values() if name in turn and other in turn]
    return statistics.median(met) if met else None


def headline(windows: Sequence[Window], name: str) -> str:
    """The sentences that a reader looks for first."""
    lines = []
    peers = [server for server in _servers(windows) if not any(w.ours for w in windows if w.server == server)]
    for connections in _levels(windows):
        mine = [one for one in windows if (one.server, one.connections) == (name, connections)]
        if not mine:
            continue
        words = (
            f"- {connections} connections: {percent(statistics.median(one.of_bare for one in mine))} of the bare model"
        )
        best, most = best_peer(windows, peers, connections, lambda one: float(one.kit["rps"]))
        if best:
            times = ratio(windows, name, best, connections, "rps")
            of_bare = statistics.median(
                one.of_bare for one in windows if (one.server, one.connections) == (best, connections)
            )
            words += (
                f"; the most answers of the peers: {best}, {most:.1f}/s ({percent(of_bare)} of the bare model), "
                f"to which ours are {_times(times)}"
            )
        if plain := [peer for peer in peers if peer == "naive-async"]:
            cpu = ratio(windows, name, plain[0], connections, "cpu_ms_req")
            words += f"; CPU time a request {percent(cpu)} of plain FastAPI's ({plain[0]})"
        lines.append(f"{words}.")
    return "\n".join(lines)


def best_peer(
    windows: Sequence[Window], peers: Sequence[str], connections: int, figure: Callable[[Window], float]
) -> tuple[str, float]:
    """The peer with the largest median of a figure, and that median; an empty name if there is none."""
    medians = {}
    for peer in peers:
        mine = [figure(one) for one in windows if (one.server, one.connections) == (peer, connections)]
        if mine:
            medians[peer] = statistics.median(mine)
    if not medians:
        return "", 0.0
    name = max(medians, key=medians.__getitem__)
    return name, medians[name]


def quiet(windows: Sequence[Window]) -> str:
    """How undisturbed the machine was."""
    other = max((float(one.kit.get("other_load_pct") or 0.0) for one in windows), default=0.0)
    stolen = max((float(one.kit.get("steal_pct") or 0.0) for one in windows), default=0.0)
    bare = [one.bare_per_s for one in windows]
    spread = max(bare) / min(bare) - 1.0 if bare else 0.0
    return (
        f"Beside the server and the generator, other work took at most {other:.1f} % of the machine in any window, and "
        f"{stolen:.1f} % was stolen by the host; the bare model's windows differ by {spread:.0%} from slowest to "
        "fastest."
    )


def _servers(windows: Sequence[Window]) -> list[str]:
    # Ours first, then as they were measured in the first round.
    names = dict.fromkeys(one.server for one in sorted(windows, key=lambda one: (not one.ours, one.turn)))
    return list(names)


def _levels(windows: Sequence[Window]) -> list[int]:
    return sorted({one.connections for one in windows})


def _median(windows: Sequence[Window], key: str) -> float | None:
    values = [float(one.kit[key]) for one in windows if one.kit.get(key) is not None]
    return statistics.median(values) if values else None


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"
