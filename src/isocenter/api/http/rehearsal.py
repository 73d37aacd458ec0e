"""A golden image through the whole application, so that no caller pays for what is done only once."""

import asyncio
from collections.abc import MutableMapping, Sequence
from typing import Any, Final

from starlette.types import ASGIApp

from isocenter.core.errors import IsocenterError, SetupError
from isocenter.imaging.codecs.dicom_rehearsal import rehearse_dicom
from isocenter.repository import integrity
from isocenter.repository.load import ServedModel

_TIMES: Final = 8
_BUSY: Final = (429, 503, 504)
# Not the model's own timeout: nobody waits, and a machine that is busy at this moment is no reason not to start.
_TIMEOUT_MS: Final = 600_000


async def rehearse(http: ASGIApp, models: Sequence[ServedModel], *, strict: bool = True) -> None:
    """Send each model's first golden image a few times; not `strict`, where others are being served already.

    A model without golden images has been run by its warm-up, and is not asked. If there are any of volumes, a small
    made DICOM series is read, and a segmentation of it written.

    Raises:
        SetupError: one was not answered; or what is installed does not read or write DICOM as it should.
    """
    if any(model.manifest.input.kind == "volume3d" for model in models):
        try:
            await asyncio.to_thread(rehearse_dicom)
        except IsocenterError as error:
            raise SetupError(f"DICOM cannot be read and written here: {error.message}") from error
    for model in models:
        await _rehearse(http, model, strict=strict)


async def _rehearse(http: ASGIApp, model: ServedModel, *, strict: bool) -> None:
    if not (image := next((case.image for case in integrity.golden_cases(model.folder) if case.image), b"")):
        return
    statuses = await asyncio.gather(*(_ask(http, model, image) for _ in range(_TIMES)))
    accepted = {200} if strict else {200, *_BUSY}
    if wrong := [status for status in statuses if status not in accepted]:
        raise SetupError(f"{model.name}: its own golden image was answered with {wrong}; is a limit below it?")


async def _ask(http: ASGIApp, model: ServedModel, image: bytes) -> int:
    boundary = "rehearsal"
    body = b'--%b\r\nContent-Disposition: form-data; name="image"\r\n\r\n%b\r\n--%b--\r\n' % (
        boundary.encode(),
        image,
        boundary.encode(),
    )
    statuses: list[int] = []
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/predict",
        "raw_path": b"/predict",
        "root_path": "",
        "query_string": f"model={model.name}&version={model.version}".encode(),
        "headers": [
            (b"content-type", f"multipart/form-data; boundary={boundary}".encode()),
            (b"x-timeout-ms", b"%d" % _TIMEOUT_MS),
        ],
        "client": None,
        "server": None,
    }

    async def receive() -> dict[str, object]:
        return next(messages, {"type": "http.disconnect"})

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await http(scope, receive, send)
    return statuses[0]
