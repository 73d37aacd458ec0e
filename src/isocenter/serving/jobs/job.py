"""One job, and the states that it goes through."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

State: TypeAlias = Literal["queued", "running", "done", "failed", "cancelled"]

STATES: Final[tuple[State, ...]] = ("queued", "running", "done", "failed", "cancelled")
NEXT: Final[Mapping[State, frozenset[State]]] = {
    "queued": frozenset({"running", "cancelled"}),
    # Back to queued: who ran it died, or stopped in order.
    "running": frozenset({"done", "failed", "cancelled", "queued"}),
    "done": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}
"""What may follow a state. What has ended stays as it is."""
ENDED: Final[frozenset[State]] = frozenset(state for state, following in NEXT.items() if not following)

COLUMNS: Final = (
    "id, key, kind, state, priority, created_at, started_at, finished_at, stage, share, attempts, asked, summary, "
    "error, files, revision"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as it stood when it was read. Times are seconds since 1970, UTC."""

    id: str
    key: str | None
    """What its sender calls it: the same key is the same job."""
    kind: str
    state: State
    priority: int
    """Smaller is sooner."""
    created_at: float
    started_at: float | None = None
    """When the attempt began that runs, or that ended it."""
    finished_at: float | None = None
    stage: str = ""
    share: float = 0.0
    """Of the work, 0 to 1."""
    attempts: int = 0
    """How often it was begun."""
    asked: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """What is asked, as JSON has it. It may name files: never log it."""
    summary: Mapping[str, Any] | None = field(default=None, repr=False)
    error: Mapping[str, Any] | None = None
    """`code`, `message` and `details` of a failed one."""
    files: Mapping[str, int] = field(default_factory=dict)
    """Names and bytes of its results."""
    revision: int = 0
    """Grows with every change."""

    @property
    def ended(self) -> bool:
        """Whether nothing more happens to it."""
        return self.state in ENDED


def job_of(row: tuple[Any, ...]) -> Job:
    """A row of `COLUMNS` as a job."""
    (job_id, key, kind, state, priority, created_at, started_at, finished_at, stage, share, attempts, *rest) = row
    asked, summary, error, files, revision = rest
    return Job(
        id=job_id,
        key=key,
        kind=kind,
        state=state,
        priority=priority,
        created_at=created_at,
        started_at=started_at,
        finished_at=finished_at,
        stage=stage,
        share=share,
        attempts=attempts,
        asked=json.loads(asked),
        summary=None if summary is None else json.loads(summary),
        error=None if error is None else json.loads(error),
        files=json.loads(files),
        revision=revision,
    )
