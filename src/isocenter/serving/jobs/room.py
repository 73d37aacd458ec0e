"""How many jobs may wait, and how much room their files may take."""

import sqlite3
from dataclasses import dataclass

from isocenter.core.errors import Overloaded


@dataclass(frozen=True, slots=True)
class Room:
    """The bounds of a file of jobs; None is none."""

    max_queued: int | None
    max_disk_bytes: int | None

    def check(self, db: sqlite3.Connection, more_bytes: int) -> None:
        """Refuse one more job with so many bytes.

        Raises:
            Overloaded: too many jobs wait, or their files take too much room.
        """
        if self.max_queued is not None:
            waiting = db.execute("SELECT count(*) FROM jobs WHERE state = 'queued'").fetchone()[0]
            if waiting >= self.max_queued:
                raise Overloaded(
                    f"{waiting} jobs wait, the limit is {self.max_queued}",
                    details={"where": "jobs", "waiting": waiting, "limit": self.max_queued},
                    retry_after_s=10.0,
                )
        if self.max_disk_bytes is not None:
            held = int(db.execute("SELECT total(input_bytes) + total(result_bytes) FROM jobs").fetchone()[0])
            if held + more_bytes > self.max_disk_bytes:
                raise Overloaded(
                    f"the files of jobs take {held} bytes, {more_bytes} more would exceed the limit of "
                    f"{self.max_disk_bytes}",
                    details={"where": "jobs_disk", "bytes": held + more_bytes, "limit": self.max_disk_bytes},
                    retry_after_s=60.0,
                )
