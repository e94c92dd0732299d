"""`http.md`: every path of the gateway, from its router."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

from fastapi.routing import APIRoute

from docgen import NOTE
from gateway_svc.http.routes import _LATER, build_router
from svckit.metrics import Metrics

INTRO = """# HTTP

The gateway listens on `[gateway] http`, by default `127.0.0.1:8080`. Each path is one call of
[`GatewayService`](rpcs.md#gatewayservice), where its meaning, scope and errors are described; examples
are in [call it from anything](../how-to/call-it-from-anything.md).

- **Bodies and answers** are the proto JSON of the call's messages with their field names as they are in the
  contract (64-bit numbers are strings). A message body may be just `{"text": "…"}`. `POST` and `DELETE`
  bodies may be empty where nothing is needed.
- **Lists** take filters as query parameters named like the fields, repeated for several; enums may be
  short: `?states=running&states=queued&page_size=20`. The next page is `?page_token=` with `next_page_token`
  and the same filter.
- **Idempotency.** `Idempotency-Key` (or `request_id` in the body) makes repeating safe: the same key and body
  do it once. Without one each request is a new one.
- **Session keys** in paths are percent-encoded where they hold `/`, `?`, `#` or `%`.
- **Question ids** hold a `/`, which may stand in the path as it is, or as `%2F`.
- **Events** (`…/events`) are server-sent events, one `WatchSessionResponse` each, named after its kind:
  `event`, `delta`, `lane_position`, `progress`, and `failure` with an error before the stream ends. The id is a
  resume token; `Last-Event-ID`, which browsers send by themselves, or `?resume_token=` goes on after it.
  `?from_now=1` leaves out what was, `?include_descendants=1` adds the sub-agents, `?payloads=` chooses.
- **Errors** are `{"error": {"reason", "message", "metadata", "fields"}}` with the HTTP status and reason of the
  [table](errors.md), and `Retry-After` where repeating helps. `trace_id` is the trace of the request, `trace_url`
  the page that shows it, where `[telemetry] ui_url` is set.
- **Who calls.** `Authorization: Bearer <token>` on every path but `/`, `/healthz`, `/readyz` and `/hooks/…`, once
  [tokens](../how-to/tokens-and-tls.md) are configured; without one 401, with too small a scope 403. A token is never
  part of an address.
- **From where.** A `Host` or `Origin` header of another site, or a `Sec-Fetch-Site` header without an `Origin` that
  names another one, is refused with `FOREIGN_ORIGIN`, so that a web page elsewhere cannot use your browser;
  `[gateway] allowed_origins` adds sites. Bodies are at most 2 MiB.

| Method | Path | Call |
|---|---|---|
| `GET` | `/` | The console |
| `GET` | `/healthz` | Does the process live |
| `GET` | `/readyz` | Can it do its work; 503 and the parts that are not well if not |
| `GET` | `/metrics` | [Metrics](metrics.md) of the gateway in the Prometheus text format |
"""


_BESIDE = {"/hooks/{name}": "Signed call of a [hook](../how-to/webhooks.md)"}


def render() -> str:
    """The document."""
    unused: Any = Mock()  # the routes are only listed
    router = build_router(unused, Metrics())
    later = {(method, path) for method, path, _, _ in _LATER}
    features = {(method, path): feature for method, path, feature, _ in _LATER}
    rows = []
    for route in router.routes:
        if not isinstance(route, APIRoute):
            continue
        for method in sorted(route.methods or ()):
            shown = route.path.replace("{rest:path}", "…").replace(":path}", "}")
            if (method, route.path) in later:
                call = f"`{features[method, route.path]}`, not yet"
            elif route.path in _BESIDE:
                call = _BESIDE[route.path]
            else:
                words = route.endpoint.__name__.split("_")
                call = f"`{''.join(word.capitalize() for word in words)}`"
            rows.append((shown, method, call))
    text = "".join(f"| `{method}` | `{path}` | {call} |\n" for path, method, call in rows)
    return NOTE + INTRO + text
