"""`POST /v1/models/{model}:reload`: take over what has changed in a model's folder."""

import ipaddress
from typing import Any, Literal, Protocol, TypeAlias

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from isocenter.api.http.problems import problem_response
from isocenter.api.http.schemas import ProblemShape

ReloadFrom: TypeAlias = Literal["loopback", "anywhere", "nowhere"]


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
    try:
        return request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False
