"""How a manifest says that channels are normalised, each by its own scheme of nnU-Net 2."""

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ZScore(_Data):
    """(x - mean) / std of the channel; with `masked`, of its foreground, and the rest stays as it is."""

    scheme: Literal["z_score"]
    masked: bool = False


class TrainingWindow(_Data):
    """Clipped to low..high, then (x - mean) / std: numbers of the training data, as of CT."""

    scheme: Literal["training_window"]
    low: _Finite
    high: _Finite
    mean: _Finite
    std: _Positive


class MinMax(_Data):
    """From its minimum and maximum to 0..1."""

    scheme: Literal["min_max"]


class Divide(_Data):
    """Divided by a number, as 255."""

    scheme: Literal["divide"]
    by: _Positive


class AsItIs(_Data):
    """Nothing."""

    scheme: Literal["none"]


Scheme: TypeAlias = Annotated[ZScore | TrainingWindow | MinMax | Divide | AsItIs, Field(discriminator="scheme")]


class NormalizeChannels(_Data):
    """Every channel by its own scheme."""

    kind: Literal["normalize_channels"]
    channels: Annotated[tuple[Scheme, ...], Field(min_length=1)]
