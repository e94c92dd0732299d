"""Structured logs: constant messages, everything that varies in fields.

Every line carries the service, the trace and span ids when there is a trace, and what was bound
with `bind`, for example the run id. Secrets, message texts and peers never go into a field.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog
from opentelemetry import trace

from svckit.settings import Settings

bind = structlog.contextvars.bound_contextvars
"""Context manager that adds fields to every line logged inside: `with bind(run_id=...):`."""


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return a logger; calls look like `log.info("lease lost", run_id=...)`."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def setup(service: str, settings: Settings) -> None:
    """Send all logs of the process to standard error, as JSON or for people."""
    people = settings.log.format == "console" or (
        settings.log.format == "auto" and sys.stderr.isatty()
    )
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _service_and_trace(service),
    ]
    final: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
        if people
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log.level.upper())
    # These tell every request and every poll, which is noise at our level of detail.
    for library in ("httpx", "httpx2", "httpcore", "uvicorn.access", "alembic"):
        logging.getLogger(library).setLevel(logging.WARNING)
    # It writes what tool servers said, which may be anything; their failures we report ourselves.
    logging.getLogger("mcp").setLevel(logging.CRITICAL)
    _route_structlog(shared)


def _route_structlog(shared: list[structlog.typing.Processor]) -> None:
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _service_and_trace(service: str) -> structlog.typing.Processor:
    def add(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event.setdefault("service", service)
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            event["trace_id"] = trace.format_trace_id(span.trace_id)
            event["span_id"] = trace.format_span_id(span.span_id)
        return event

    return add


# Until `setup` is called, for example in tests, structlog goes through the standard library, so
# that warnings and captured logs work and nothing is printed.
_route_structlog([structlog.contextvars.merge_contextvars, structlog.stdlib.add_log_level])
