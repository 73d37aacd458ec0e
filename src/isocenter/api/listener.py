"""The address that is listened on."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from isocenter.core.errors import BadSettings


@contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """Bind before the models are loaded, so that a taken port is said at once; listen only when ready.

    Raises:
        BadSettings: it cannot be had.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted connections inherit it.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            listener.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise BadSettings(f"cannot listen on {host} port {port}: {reason}") from error
        yield listener
    finally:
        listener.close()


def address(listener: socket.socket) -> tuple[str, int, str]:
    """Host, port, and the URL that leads there."""
    host, port = listener.getsockname()[:2]
    return host, port, f"http://{f'[{host}]' if ':' in host else host}:{port}"
