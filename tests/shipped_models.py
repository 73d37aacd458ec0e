"""The models that come with the project, each served alone."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conftest import ROOT
from isocenter import SyncService

SHIPPED = ROOT / "models"


@contextmanager
def served_alone(name: str) -> Iterator[SyncService]:
    """A service that has this model and no other."""
    with tempfile.TemporaryDirectory() as models:
        (Path(models) / name).symlink_to(SHIPPED / name)
        with SyncService(models) as service:
            yield service
