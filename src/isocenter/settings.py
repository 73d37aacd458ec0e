"""Every setting of the server, composed here from the parts that obey them, read once from ISOCENTER_* variables."""

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from isocenter.core.errors import BadSettings
from isocenter.serving.budget import FORM_OVERHEAD_BYTES

PREFIX = "ISOCENTER_"
DELIMITER = "__"


class Group(BaseModel):
    """A group of settings; unknown names are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class HttpSettings(Group):
    """The HTTP door."""

    # Sockets take an empty address for every address: a variable that was left empty would open the server to all.
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """Address to listen on. 0.0.0.0 opens the server to the network: it has no authentication of its own yet."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on; 0 lets the system choose."""
    backlog: Annotated[int, Field(ge=1)] = 2048
    """Connections that may wait to be accepted."""
    keep_alive_s: Annotated[float, Field(gt=0)] = 75.0
    """How long an idle connection is kept."""
    reload_from: Literal["loopback", "anywhere", "nowhere"] = "loopback"
    """Where `POST /v1/models/{model}:reload` is taken from. Behind a proxy on this machine, everybody looks local."""
    max_connections: Annotated[int, Field(ge=1)] = 4096
    """Connections that are served at a time; on more, requests are told `overloaded` and the connection is closed."""


class LimitSettings(Group):
    """What an image may cost, checked before it is decoded."""

    max_bytes: Annotated[int, Field(ge=1)] = 32 * 2**20
    """Largest request body."""
    max_pixels: Annotated[int, Field(ge=1)] = 64_000_000
    """Largest image, in pixels, as its header announces it."""
    max_volume_bytes: Annotated[int, Field(ge=1)] = 4 * 2**30
    """Bytes that all volumes in progress may hold at their peaks, as predicted before each is started. One that is over
    it alone is refused with `volume_too_large`, one that is too many with `overloaded`. With several front ends, each
    has its share."""
    max_inflight_bytes: Annotated[int, Field(ge=1)] = 512 * 2**20
    """Bytes of all request bodies that are held at a time; over it, requests are shed with `overloaded` before they are
    read. With several front ends, each has its share."""


def _folders(given: object) -> object:
    """A list of folders, or one text with the system's separator between them, as PATH."""
    return tuple(folder for folder in given.split(os.pathsep) if folder) if isinstance(given, str) else given


class ScanSettings(Group):
    """What a scan may be, and where callers may name one on the server's own disk."""

    roots: Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_folders)] = ()
    """Folders below which `scan_path` may lead, with `:` between them. Links are followed first, and have to lead below
    one of them. None: `scan_path` is refused. Whoever reaches the server can have every scan below them answered."""
    max_bytes: Annotated[int, Field(ge=1)] = 400 * 2**20
    """Of one scan, all its files together, sent or on the disk. What is sent counts in `LIMITS__MAX_INFLIGHT_BYTES`
    too, and may not be more than that."""
    max_unpacked_bytes: Annotated[int, Field(ge=1)] = 2 * 2**30
    """Of all entries of an archive together, or of a compressed file."""
    max_files: Annotated[int, Field(ge=1, le=5_000)] = 5_000
    """In a folder, an archive or a form."""
    max_voxels: Annotated[int, Field(ge=1)] = 256_000_000
    """Of one volume, as its header announces it."""


class DecodeSettings(Group):
    """The pool that decodes and preprocesses."""

    threads: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = "auto"
    """Decode threads; auto takes the usable cores in one process, and one in each front end. Pictures that are quickly
    decoded leave one of several threads to others."""
    max_waiting: Annotated[int, Field(ge=1)] = 512
    """Images that may wait to be decoded; more are shed with `overloaded`."""
    here_max_pixels: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """JPEG files up to so many pixels, and others that take as long, up to 256 KiB, are decoded on the event loop:
    cheaper, and nothing else happens in that process meanwhile. auto: 400,000 (about 2 ms) in front ends and on one or
    two cores, else none."""


class LinkSettings(Group):
    """What lies between the front ends and the engine process."""

    arena_mib: Annotated[int, Field(ge=1, le=1_048_576)] = 512
    """Shared memory of each front end for pixels on their way to the models, at most; used as needed. When it is full,
    requests are shed with `overloaded`."""


class JobSettings(Group):
    """Work that is put in now and fetched later."""

    folder: Annotated[Path | None, BeforeValidator(lambda given: given or None)] = None
    """Where jobs, what was sent for them and their results are kept; jobs are off without it. On a local disk."""
    retention_s: Annotated[float, Field(gt=0)] = 7 * 86_400.0
    """How long a job and its results are kept after it has ended; then they are deleted."""
    at_once: Annotated[int, Field(ge=1, le=64)] = 1
    """Jobs that run at a time."""
    max_queued: Annotated[int, Field(ge=1)] = 10_000
    """Jobs that may wait; on more, new ones are told `overloaded`."""
    max_disk_bytes: Annotated[int, Field(ge=1)] = 32 * 2**30
    """What was sent and the results may take together; over it, new jobs are told `overloaded`."""


class DrainSettings(Group):
    """How the server stops."""

    bound_s: Annotated[float, Field(gt=0)] = 20.0
    """Requests that are in are finished within this time; then the process ends."""
    linger_s: Annotated[float, Field(ge=0)] = 1.0
    """How long new requests are still told 503 with Retry-After, so that balancers notice, before the door is gone."""


class Settings(BaseSettings):
    """All settings. `ISOCENTER_HTTP__PORT=9000` sets `http.port`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter=DELIMITER,
        frozen=True,
        extra="forbid",
        nested_model_default_partial_update=True,
    )

    models: Path = Path("models")
    """The model repository."""
    default_model: str | None = None
    """The model that answers if a request names none and several are served."""
    frontends: Annotated[int, Field(ge=0, le=256)] = 0
    """HTTP processes beside the engine; 0 runs everything in one process."""
    hang_after_s: Annotated[float, Field(ge=1)] = 30.0
    """With front ends: a process that gives no sign of life for so long is ended, and another one started."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level of a log line."""
    http: HttpSettings = HttpSettings()
    limits: LimitSettings = LimitSettings()
    scans: ScanSettings = ScanSettings()
    decode: DecodeSettings = DecodeSettings()
    link: LinkSettings = LinkSettings()
    jobs: JobSettings = JobSettings()
    drain: DrainSettings = DrainSettings()


def load_settings(**given: Any) -> Settings:
    """Read the settings; what is given here wins over the environment. Groups may be given as partial mappings.

    Raises:
        BadSettings: an unknown ISOCENTER_* variable, or a value out of range.
    """
    unknown = [name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known_variables()]
    if unknown:
        near = difflib.get_close_matches(unknown[0].upper(), known_variables(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise BadSettings(f"unknown settings: {', '.join(sorted(unknown))}{hint}")
    try:
        settings = Settings(**given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = DELIMITER.join(str(part) for part in first["loc"]).upper()
        raise BadSettings(f"{PREFIX}{where}: {first['msg']} (got {first.get('input')!r})") from error
    except SettingsError as error:
        whole = {
            f"{PREFIX}{name}".upper() for name, field in Settings.model_fields.items() if _group(field) is not None
        }
        named = ", ".join(sorted(name for name in os.environ if name.upper() in whole))
        raise BadSettings(f"{named}: a group that is set as a whole is a JSON object") from error
    inflight, largest = settings.limits.max_inflight_bytes, settings.limits.max_bytes + FORM_OVERHEAD_BYTES
    if inflight < largest:
        raise BadSettings(f"{PREFIX}LIMITS__MAX_INFLIGHT_BYTES: {inflight} is below one largest body of {largest}")
    return settings


def known_variables() -> list[str]:
    """Every environment variable that is read."""
    names = []
    for name, field in Settings.model_fields.items():
        if (group := _group(field)) is not None:
            names += [f"{PREFIX}{name}{DELIMITER}{inner}".upper() for inner in group.model_fields]
        names.append(f"{PREFIX}{name}".upper())
    return names


def _group(field: FieldInfo) -> type[Group] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Group) else None
