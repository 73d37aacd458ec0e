"""An answer as it goes to the wire: status, headers and body, encoded once."""

from collections.abc import Sequence
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_JSON: Final = (b"content-type", b"application/json")


class Answer(Response):
    """JSON, if it says nothing else, as two messages. A framework's response would encode each header anew."""

    def __init__(
        self, body: bytes, status: int = 200, headers: Sequence[tuple[bytes, bytes]] = (), *, media_type: str = ""
    ) -> None:
        # The base is not asked to set itself up: these are all its attributes.
        self.status_code = status
        self.body = body
        self.background = None
        kind = (b"content-type", media_type.encode("ascii")) if media_type else _JSON
        self.raw_headers = [(b"content-length", b"%d" % len(body)), kind, *headers]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body})
