"""A server of Isocenter from Python: `Client` for plain programs, `AsyncClient` for those with an event loop.

It talks over the wire and knows nothing else of the server. Needs the extra `client` (httpx).
"""

from isocenter.client.answers import Cells, Health, Model, Prediction, Remark
from isocenter.client.asynchronous import AsyncClient
from isocenter.client.errors import NoConnection, NotAnAnswer, ServerRefused
from isocenter.client.patience import Patience
from isocenter.client.synchronous import Client

__all__ = [
    "AsyncClient",
    "Cells",
    "Client",
    "Health",
    "Model",
    "NoConnection",
    "NotAnAnswer",
    "Patience",
    "Prediction",
    "Remark",
    "ServerRefused",
]
