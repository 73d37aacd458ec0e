"""`isocenter simulate`: what a load would meet on a machine that is not here."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from isocenter.cli.options import AsJson

if TYPE_CHECKING:
    from isocenter.engine.simulator import Machine, Report

_LOADS = (0.5, 0.8, 1.0, 1.5, 2.0, 4.0)


def simulate(
    curve: Annotated[
        str,
        typer.Option(
            metavar="N:MS,...", help="Milliseconds of a run by batch size, as `isocenter check` measures them."
        ),
    ],
    instances: Annotated[int, typer.Option(min=1, metavar="N", help="Instances side by side, one to a GPU.")] = 1,
    clients: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Callers who ask again when they were answered.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=1e-3, max=1e9, metavar="R", help="Requests a second by callers who do not wait.")
    ] = None,
    timeout_ms: Annotated[
        float, typer.Option(min=0.001, max=1e9, metavar="MS", help="What each caller gives.")
    ] = 10_000.0,
    seconds: Annotated[float, typer.Option(min=0.001, max=1e9, metavar="S", help="Simulated time.")] = 60.0,
    delay_ms: Annotated[
        float, typer.Option(min=0.0, max=1e9, metavar="MS", help="max_queue_delay_ms of the model.")
    ] = 2.0,
    spread: Annotated[float, typer.Option(min=0.0, max=1.0, help="How much runs of one size differ (sigma).")] = 0.05,
    seed: Annotated[int, typer.Option(metavar="N", help="Another seed, another day.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Run the engine's own queue, batching and admission against a cost curve, on a simulated clock.

    With --clients a closed loop, with --rate an open one; with neither, open loops from half to four times of what the
    curve can do at most. Decoding and the network are not in it: it tells what the model's side can give.
    """
    from isocenter.cli import console
    from isocenter.engine import simulator

    machine = simulator.Machine(curve_of(curve), instances=instances, max_queue_delay_s=delay_ms / 1e3, spread=spread)
    most = ceiling_per_s(machine)
    timeout_s = timeout_ms / 1e3
    rates = [rate] if rate is not None else [] if clients is not None else [factor * most for factor in _LOADS]
    asked = seconds * max(rates, default=most) + (clients or 0)
    if not asked <= _MOST_REQUESTS:  # nan is neither less nor more
        raise typer.BadParameter(
            f"that would be {asked:.3g} requests, and {_MOST_REQUESTS:,} at most are simulated: fewer --seconds"
        )
    found: list[tuple[str, Report]] = []
    if clients is not None:
        report = simulator.simulate_clients(clients, machine, seconds=seconds, timeout_s=timeout_s, seed=seed)
        found.append((f"{clients} clients", report))
    for each in rates:
        load = simulator.poisson(each, seconds=seconds, timeout_s=timeout_s, seed=seed)
        found.append((f"{each:.4g}/s", simulator.simulate(load, machine, seed=seed)))
    facts = [_facts(load, report) for load, report in found]
    if as_json:
        console.write_json({"ceiling_per_s": round(most, 3), "loads": facts})
        return
    rows = console.table(*_COLUMNS, right=_COLUMNS[1:])
    for each_load in facts:
        rows.add_row(*_row(each_load))
    console.out().print(rows)
    console.out().print(f"At most {most:.4g} items/s: {instances} x the best batch of the curve.")


_MOST_REQUESTS = 20_000_000
_COLUMNS = (
    "load", "offered", "goodput/s", "shed", "late", "p50 ms", "p95 ms", "p99 ms", "mean batch", "busy",
)  # fmt: skip


def curve_of(text: str) -> dict[int, float]:
    """`1:10,4:16` to seconds by batch size.

    >>> curve_of("1:10,4:16")
    {1: 0.01, 4: 0.016}
    """
    found: dict[int, float] = {}
    for pair in text.split(","):
        size, colon, ms = pair.partition(":")
        try:
            number, seconds = int(size), float(ms) / 1e3
        except ValueError:
            number, seconds = 0, 0.0
        if not colon or number < 1 or not 0 < seconds < 1e6 or number in found:
            raise typer.BadParameter(f"{pair!r} is not <batch size>:<milliseconds>, as in 1:10,4:16,16:40")
        found[number] = seconds
    if 1 not in found:
        raise typer.BadParameter("the curve needs the time of a lone item, as in 1:10,4:16,16:40")
    return found


def ceiling_per_s(machine: "Machine") -> float:
    """What the curve allows at most, if every run had its best size."""
    return machine.instances * max(size / run_s for size, run_s in machine.curve_s.items())


def _facts(load: str, report: "Report") -> dict[str, Any]:
    from isocenter.measure.percentiles import Percentiles

    times = Percentiles.of(report.latencies_s) if report.latencies_s else None
    return {
        "load": load,
        "offered": report.offered,
        "answered": report.answered,
        "shed": report.shed,
        "late": report.late + report.expired,
        "goodput_per_s": round(report.goodput_per_s, 3),
        "p50_ms": round(times.p50 * 1e3, 3) if times else None,
        "p95_ms": round(times.p95 * 1e3, 3) if times else None,
        "p99_ms": round(times.p99 * 1e3, 3) if times else None,
        "mean_batch": round(report.mean_batch, 2),
        "busy": round(report.utilisation, 4),
    }


def _row(facts: dict[str, Any]) -> list[str]:
    def share(count: int) -> str:
        return f"{100 * count / facts['offered']:.1f} %" if facts["offered"] else ""

    def ms(name: str) -> str:
        return f"{facts[name]:.4g}" if facts[name] is not None else ""

    return [
        facts["load"],
        str(facts["offered"]),
        f"{facts['goodput_per_s']:.4g}",
        share(facts["shed"]),
        share(facts["late"]),
        ms("p50_ms"),
        ms("p95_ms"),
        ms("p99_ms"),
        f"{facts['mean_batch']:.1f}",
        f"{100 * facts['busy']:.0f} %",
    ]
