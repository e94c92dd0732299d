"""Answers `GET /metrics` on an address of its own, on the service's own event loop.

Read in a thread of its own, as Prometheus' library would have it, the numbers would change
meanwhile; only writing them down is left to one. There is no token: the address is one that only
the metrics' collector reaches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from svckit.metrics.exposition import exposed
from svckit.metrics.instruments import Metrics

if TYPE_CHECKING:
    from svckit.web import WebServer

PATH = "/metrics"


class Endpoint:
    """An ASGI application."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        if scope["path"] != PATH:
            await _answer(send, 404, b"metrics are at /metrics\n")
        elif scope["method"] not in ("GET", "HEAD"):
            await _answer(send, 405, b"metrics are read with GET\n")
        else:
            accept = ",".join(
                value.decode("latin-1") for name, value in scope["headers"] if name == b"accept"
            )
            text, content_type = await exposed(self._metrics, accept)
            await _answer(send, 200, text, content_type)


async def _answer(
    send: Any, status: int, body: bytes, content_type: str = "text/plain; charset=utf-8"
) -> None:
    headers = [
        (b"content-type", content_type.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def serve(metrics: Metrics, address: str) -> WebServer:
    """Listen on `host:port`; the answer's `run` serves until its `stop`.

    Raises `PortInUse` or `StartError`.
    """
    # Imported here: a web server takes a good part of the time of a start.
    from svckit.web import WebServer, bind_http

    return WebServer(Endpoint(metrics), bind_http(address))
