"""An instance that was stopped has left nothing behind, its thread neither."""

import asyncio
import threading

from isocenter.core.clock import ManualClock
from isocenter.engine.instance import Instance
from isocenter.runtimes.synthetic import SyntheticSession
from patience import PATIENCE_S


async def test_to_stop_lasts_until_the_thread_is_gone() -> None:
    told, let_go = asyncio.Event(), threading.Event()

    class Lingering(Instance):
        def _end(self, closed: bool) -> None:
            super()._end(closed)
            told.set()

        def _work(self) -> None:
            super()._work()
            let_go.wait(PATIENCE_S)

    instance = Lingering(SyntheticSession(), name="lingers", max_batch_size=1, clock=ManualClock())
    instance.start()
    stopping = asyncio.create_task(instance.stop(PATIENCE_S))
    await told.wait()
    for _ in range(20):
        await asyncio.sleep(0)

    assert not stopping.done()
    let_go.set()
    assert await stopping
    assert not [thread for thread in threading.enumerate() if thread.name == "lingers"]
