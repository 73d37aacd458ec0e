"""What the routes answer, as types: the source of `/docs` and of the shapes shown in the manual."""

from pydantic import BaseModel, ConfigDict, Field


class Shape(BaseModel):
    """A JSON object with exactly these keys."""

    model_config = ConfigDict(extra="forbid")


class WarningShape(Shape):
    """Something that was handled and that a reader should know."""

    code: str = Field(examples=["windowed"])
    message: str = Field(examples=["16-bit samples from 12 to 3071 were mapped to 0..255"])


class PredictionShape(Shape):
    """The answer to one image."""

    prediction: str | int = Field(description="The label with the highest probability.", examples=["Glioma"])
    confidence: float = Field(description="Its probability, 0 to 1.", examples=[0.93])
    latency_ms: float = Field(description="From the arrival of the request to this answer.", examples=[11.7])
    probabilities: dict[str, float] = Field(description="One probability a label.")
    model: str
    version: int
    request_id: str = Field(description="As sent in X-Request-ID, or made here.")
    timings_ms: dict[str, float] = Field(description="Where the time went, stage by stage.")
    warnings: list[WarningShape] = Field(description="Everything that was done to the image on the way.")


class ErrorShape(Shape):
    """Why there is no answer."""

    code: str = Field(description="Stable; programs may rely on it.", examples=["too_many_pixels"])
    message: str = Field(description="One sentence with the measured value and the limit.")
    details: dict[str, object]


class ProblemShape(Shape):
    """The body of every answer that is not 2xx."""

    error: ErrorShape


class ModelHealthShape(Shape):
    """One served version."""

    model: str
    version: int
    state: str
    queued: int


class HealthShape(Shape):
    """`ok`: every model answers. `degraded`: some do. `unavailable`: none does. `draining`: stopping."""

    status: str
    uptime_s: float
    server: str = Field(description="Version of Isocenter.")
    models: list[ModelHealthShape]


class ProbeShape(Shape):
    """The answer to a probe."""

    status: str


class ModelSummaryShape(Shape):
    """One served version, in short."""

    name: str
    version: int
    task: str
    title: str
    state: str


class ModelListShape(Shape):
    """All served versions."""

    models: list[ModelSummaryShape]


class InputShape(Shape):
    """What to send."""

    kind: str
    formats: list[str]
    tensor_shape: list[int] = Field(description="What the image becomes: channels, height, width.")
    accepts: dict[str, object]


class LimitsShape(Shape):
    """What is refused, and when a request is given up."""

    max_bytes: int
    max_pixels: int
    timeout_ms: float
    max_batch_size: int
    max_queue_size: int


class ModelShape(Shape):
    """Everything that a caller of one version may want to know."""

    name: str
    version: int
    versions: list[int]
    task: str
    title: str
    description: str
    license: str
    state: str
    digest: str = Field(description="sha256 of the weights that answer.")
    runtime: str = Field(description="What runs it here.")
    runtime_stated: str = Field(description="What its manifest says; `auto` where the choice is this machine's.")
    precision: str
    labels: list[str | int]
    input: InputShape
    limits: LimitsShape
    service_ms: dict[str, float] = Field(description="Median session run by batch size, measured at warm-up.")
