"""`POST /v1/models/{model}:reload`: take over what has changed in a model's folder."""

import ipaddress
from typing import Any, Final, Literal, Protocol, TypeAlias
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from isocenter.api.http.problems import problem_response
from isocenter.api.http.schemas import ProblemShape

ReloadFrom: TypeAlias = Literal["loopback", "anywhere", "nowhere"]

# A proxy beside the server speaks from a loopback address for whoever it lets in.
_FORWARDED: Final = ("forwarded", "x-forwarded-for", "x-real-ip", "via")


class Reloads(Protocol):
    """Who does it, in this process or in another."""

    async def reload(self, name: str) -> dict[str, Any]:
        """Take over what has changed; the report as JSON."""
        ...


class VersionChangeShape(BaseModel):
    """What became of one version."""

    version: int
    what: str
    """unchanged, added, replaced or removed."""


class ReloadShape(BaseModel):
    """What a reload did."""

    model: str
    versions: list[VersionChangeShape]


def reload_routes(reloads: Reloads, allowed_from: ReloadFrom) -> APIRouter:
    """The route; without authentication, who may use it is told by the address he comes from."""
    router = APIRouter(prefix="/v1/models", tags=["models"])
    problems: dict[int | str, dict[str, Any]] = {status: {"model": ProblemShape} for status in (403, 404, 409)}

    @router.post("/{name}:reload", response_model=ReloadShape, responses=problems)
    async def reload_model(name: str, request: Request) -> Response | dict[str, Any]:
        """Load, prove and warm what is new in the model's folder, then swap; no request is lost.

        If a version is not what it claims to be, the answer is `reload_refused`, and the old one goes on answering.
        """
        if not _may(request, allowed_from):
            return problem_response("forbidden", "a reload is not possible from this address")
        return await reloads.reload(name)

    return router


def _may(request: Request, allowed_from: ReloadFrom) -> bool:
    if allowed_from != "loopback":
        return allowed_from == "anywhere"
    if request.client is None or any(name in request.headers for name in _FORWARDED):
        return False
    return _is_loopback(request.client.host) and _is_own_page(request)


def _is_own_page(request: Request) -> bool:
    """Not one of another site, which a browser on this machine would let send such a request too."""
    origin = request.headers.get("origin")
    try:
        return origin is None or urlsplit(origin).netloc == request.headers.get("host")
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
