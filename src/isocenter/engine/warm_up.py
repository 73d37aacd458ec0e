"""What runs cost, measured before the first request comes."""

import asyncio
import statistics
from collections.abc import Sequence

from isocenter.core.errors import IsocenterError
from isocenter.core.tensor import Tensors
from isocenter.engine.instance import Instance, RunFailed


async def measured_s(
    instances: Sequence[Instance], sizes: Sequence[int], item: Tensors, repeats: int
) -> dict[int, float]:
    """Seconds of a run by size: every size on every instance, all instances at once as under load.

    The sizes are run in rounds, of which the first is not counted, and each size's quickest run is taken: a neighbour
    who disturbs some of them would bend the curve, while one who slows everything down is learned from later runs.

    Raises:
        IsocenterError: a run failed.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_run_sizes(instance, sizes, item, repeats)) for instance in instances]
    except* IsocenterError as failed:
        raise failed.exceptions[0] from None
    found = [task.result() for task in tasks]
    return {size: statistics.median(runs[size] for runs in found) for size in sizes}


async def _run_sizes(instance: Instance, sizes: Sequence[int], item: Tensors, repeats: int) -> dict[int, float]:
    """The quickest run that counts, by batch size."""
    rounds = [{size: await _run_once(instance, [item] * size) for size in sizes} for _ in range(1 + repeats)]
    return {size: min(measured[size] for measured in rounds[1:] or rounds) for size in sizes}


async def _run_once(instance: Instance, items: list[Tensors]) -> float:
    outcome = await instance.run(items)
    if isinstance(outcome, RunFailed):
        raise outcome.error
    for answer in outcome.answers:
        if isinstance(answer, IsocenterError):
            raise answer
    return outcome.service_s
