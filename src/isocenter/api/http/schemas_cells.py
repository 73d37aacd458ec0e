"""What the routes for images of cells answer, as types."""

from typing import Literal

from pydantic import Field

from isocenter.api.http.schemas import ErrorShape, Shape, WarningShape


class PointShape(Shape):
    """Pixels from the top left corner of the image; whole numbers are corners of pixels."""

    x: float
    y: float


class SizeShape(Shape):
    """Pixels."""

    width: int
    height: int


class RingShape(Shape):
    """One closed line, its first point not repeated at the end."""

    id: str = Field(examples=["polygon_1"])
    type: Literal["external", "internal"] = Field(description="An outline, or a hole.")
    parent_ids: list[str] | None = Field(
        default=None, alias="parentIds", description="Of a hole: the outline that it lies in."
    )
    label: int = Field(description="The object's number in the label image; an object may be in pieces.")
    points: list[PointShape]
    area: float = Field(description="Pixels inside the line, those of holes included.")
    confidence: float = Field(description="Mean probability of the object's pixels, 0 to 1.")


class ObjectShape(Shape):
    """What was measured of one object. Micrometres are null where the size of a pixel is not known."""

    label: int
    confidence: float
    area_px: int
    area_um2: float | None
    perimeter_px: float
    perimeter_um: float | None
    eccentricity: float = Field(description="Of the ellipse with the same second moments: 0 is a circle, 1 a line.")
    mean_intensity: dict[str, float] = Field(description="By channel, in the values of the image.")
    centroid_px: tuple[float, float] = Field(description="x and y.")
    centroid_um: tuple[float, float] | None


class SegmentationShape(Shape):
    """The objects of one image."""

    image_size: SizeShape
    count: int = Field(description="Objects.")
    name: str = Field(description="What an object is called.", examples=["cell"])
    shown: int = Field(description="Number of the channel that an overlay is drawn on, of those that are no colours.")
    polygons: list[RingShape]
    objects: list[ObjectShape]
    threshold: float
    detect_holes: bool
    pixel_size_um: PointShape | None
    batch_size: int = Field(description="Items in the largest batch that a part of the image was run in.")
    model: str
    version: int
    latency_ms: float = Field(description="From the arrival of the request to this answer.")
    request_id: str = Field(description="As sent in X-Request-ID, or made here.")
    timings_ms: dict[str, float] = Field(description="Where the time went, stage by stage.")
    warnings: list[WarningShape] = Field(description="Everything that was done to the image on the way.")
    fallback: str | None = Field(default=None, description="What answered in place of the model's own runtime.")


class V1ImageShape(Shape):
    """What both of the routes below `/api/v1` say of an image."""

    success: Literal[True]
    polygons: list[RingShape]
    model_used: str
    threshold_used: float
    processing_time: float = Field(description="Seconds from the arrival of the request to this answer.")
    inference_time: float = Field(description="Seconds of that from the first window to the last.")
    image_size: SizeShape
    batch_size_used: int
    warning: str | None = Field(default=None, description="Only where nothing was found.")
    version: int
    timings_ms: dict[str, float]
    warnings: list[WarningShape]


class V1SegmentShape(V1ImageShape):
    """The answer of `/api/v1/segment`."""

    request_id: str


class V1ResultShape(V1ImageShape):
    """One image of a batch that was answered."""

    filename: str = Field(description="As it was sent.")
    batch_index: int


class V1FailureShape(Shape):
    """One image of a batch that was not answered."""

    filename: str
    batch_index: int
    success: Literal[False]
    error: str = Field(description="One sentence with the measured value and the limit.")
    code: str
    details: dict[str, object]
    polygons: list[RingShape] = Field(max_length=0)
    model_used: str
    threshold_used: float


class V1BatchShape(Shape):
    """The answer of `/api/v1/batch-segment`, in the order of the files."""

    success: Literal[True]
    batch_size: int
    successful_count: int
    failed_count: int
    total_polygons: int
    model_used: str
    threshold_used: float
    processing_time: float
    results: list[V1ResultShape | V1FailureShape]
    request_id: str


class V1ProblemShape(Shape):
    """The body of every answer of the two routes that is not 2xx."""

    success: Literal[False]
    detail: str = Field(description="The message of the error once more.")
    error: ErrorShape


class V1ModelShape(Shape):
    """One model that segments images."""

    name: str
    description: str
    parameters: int | None = Field(description="Values of its weights; null where its file does not say.")
    input_size: list[int] = Field(description="Height and width of what it runs on; empty if it takes any.")
    available: bool
    batch_limit: int = Field(description="Images that one call of `/api/v1/batch-segment` may hold.")
    version: int


class V1ModelsShape(Shape):
    """The answer of `/api/v1/models`."""

    models: list[V1ModelShape]


class V1DeviceShape(Shape):
    """Where the models run."""

    gpu_available: bool
    devices: list[str] = Field(examples=[["cpu"]])


class V1HealthShape(Shape):
    """The answer of `/api/v1/health`."""

    status: str = Field(description="healthy, degraded (some models answer), draining or unavailable.")
    timestamp: str
    service: str
    version: str
    models_loaded: int
    models_failed: list[str] = Field(description="Models that take no requests now.")
    gpu_available: bool
    device: V1DeviceShape


class V1StatusShape(Shape):
    """The answer of `/api/v1/status`."""

    status: Literal["idle", "processing"]
    is_processing: bool
    current_model: str | None = Field(description="The model for which most items wait; null if none do.")
    queue_length: int = Field(description="Items that wait for an instance.")
    available: bool = Field(description="Whether requests are taken: a busy server takes them too.")
    timestamp: str
