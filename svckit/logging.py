"""Structured logs: constant messages, everything that varies in fields.

Every line carries the service, the trace and span ids when there is a trace, and what was bound
with `bind`, for example the run id. Secrets, message texts and peers never go into a field.

Of exceptions the types, codes and places are told. Their texts, which may hold anything that
somebody wrote, are only there at the level `debug`.
"""

from __future__ import annotations

import errno
import logging
import sys
import traceback
from collections.abc import Iterator, MutableMapping
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
    whole = settings.log.level == "debug"
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        *([] if whole else [_first_line_of_asyncio]),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _service_and_trace(service),
    ]
    final: list[structlog.typing.Processor] = [
        structlog.processors.ExceptionRenderer(*([] if whole else [_without_texts])),
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            # The other one shows the values of variables.
            exception_formatter=structlog.dev.plain_traceback,
        )
        if people
        else structlog.processors.JSONRenderer(),
    ]
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


def where(error: BaseException) -> str:
    """Say where an exception comes from: as a traceback, with types and without texts."""
    return "\n".join(_lines_of(error, set()))


def _without_texts(exc_info: structlog.typing.ExcInfo) -> str:
    return where(exc_info[1])


def _lines_of(error: BaseException, seen: set[int]) -> Iterator[str]:
    seen.add(id(error))
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None and id(before) not in seen:
        yield from _lines_of(before, seen)
        yield "which led to:"
    for entry in traceback.format_tb(error.__traceback__):
        yield entry.rstrip()
    yield f"{type(error).__qualname__} {_code_of(error)}".rstrip()
    if isinstance(error, BaseExceptionGroup):
        for number, part in enumerate(error.exceptions, 1):
            yield f"part {number}:"
            yield from _lines_of(part, seen)


def _code_of(error: BaseException) -> str:
    """What the system or a database calls it, in words of its own such as `ENOSPC`: a full disk is
    nothing that operators should have to guess."""
    if isinstance(error, OSError):
        return errno.errorcode.get(error.errno or 0, "")
    names = (getattr(error, name, None) for name in ("sqlite_errorname", "sqlstate"))
    return next((name for name in names if isinstance(name, str)), "")


def _first_line_of_asyncio(_: Any, __: str, event: MutableMapping[str, Any]) -> Any:
    """The loop adds tasks and exceptions to its complaints, with their texts."""
    if event.get("logger") == "asyncio":
        event["event"] = str(event["event"]).partition("\n")[0]
    return event


# Until `setup` is called, for example in tests, structlog goes through the standard library, so
# that warnings and captured logs work and nothing is printed.
_route_structlog([structlog.contextvars.merge_contextvars, structlog.stdlib.add_log_level])
