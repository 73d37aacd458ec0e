"""What the door of /predict tells the decode pool."""

from types import SimpleNamespace
from typing import Any, cast

from isocenter.core.clock import ManualClock
from isocenter.core.deadline import Deadline
from isocenter.core.errors import Overloaded
from isocenter.core.events import RecordingObserver
from isocenter.imaging.limits import ImageLimits
from isocenter.repository.repository import Repository
from isocenter.serving.cpu_pool import CpuPool
from isocenter.serving.predict import Predict


class Models:
    """One model, whose engine refuses while `full`."""

    def __init__(self) -> None:
        self.full = False

    def resolve(self, *_: object, **__: object) -> Any:
        manifest = SimpleNamespace(task="classification")
        return SimpleNamespace(name="lungs", version=3, manifest=manifest, engine=SimpleNamespace(check=self._check))

    def _check(self, *_: object, **__: object) -> None:
        if self.full:
            raise Overloaded("not now")


async def test_the_pool_is_told_when_many_are_refused_and_when_no_more() -> None:
    clock, models = ManualClock(0.0), Models()
    pool = CpuPool(threads=1, max_waiting=9, clock=clock)
    predict = Predict(cast(Repository, models), pool, limits=ImageLimits(), clock=clock, observer=RecordingObserver())

    def come(callers: int) -> None:
        for _ in range(callers):
            try:
                predict.check(None, None, Deadline(1.0))
            except Overloaded:
                continue

    def many() -> bool:
        return pool.refusing

    models.full = True
    come(20)
    assert not many(), "a moment of it says little"
    come(30)
    assert many()
    models.full = False
    come(50)
    assert not many()

    for _ in range(100):  # who refuses them on one word of `check`
        predict.note_refused()
    assert many()
