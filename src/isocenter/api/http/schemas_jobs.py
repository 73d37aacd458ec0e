"""What the routes for jobs answer, as types."""

from pydantic import Field

from isocenter.api.http.schemas import ErrorShape, Shape


class JobResultShape(Shape):
    """One file of a result."""

    format: str = Field(examples=["nifti"])
    media_type: str
    file: str = Field(description="What it is called when it is saved.", examples=["mask.nii.gz"])
    bytes: int
    href: str


class JobShape(Shape):
    """One job. What was sent, and paths, are not in it. Times are UTC."""

    id: str
    state: str = Field(description="queued, running, done, failed or cancelled.")
    stage: str = Field(description="What it is at; waiting: it was refused for the moment, and is asked for again.")
    share: float = Field(description="How much of the stage is done, 0 to 1; 1 when it is done.")
    priority: int = Field(description="Smaller is sooner.")
    attempts: int = Field(description="How often it was begun: more than once after a crash.")
    created_at: str = Field(examples=["2026-01-31T09:30:00.125Z"])
    started_at: str | None
    finished_at: str | None
    expires_at: str | None = Field(description="When it is deleted with its results.")
    queued_s: float | None = Field(description="From its arrival to its last begin.")
    running_s: float | None = Field(description="From its last begin to its end.")
    timings_ms: dict[str, float] = Field(description="Where the time went, stage by stage.")
    model: str | None = Field(description="Which model answered, or was asked for.")
    version: int | None
    error: ErrorShape | None = Field(description="Why it failed, in the words of the route that answers at once.")
    results: list[JobResultShape]


class JobListShape(Shape):
    """The newest jobs, and how many there are of each state."""

    jobs: list[JobShape]
    counts: dict[str, int]
