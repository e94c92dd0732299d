"""Spans of our own steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from opentelemetry import context as otel_context
from opentelemetry import trace

from svckit import conventions as c
from svckit.errors import ServiceError
from svckit.grpc.client import ERROR_CODES

_FAULTS = frozenset(code.name for code in ERROR_CODES)


@contextmanager
def step(
    tracer: trace.Tracer,
    name: str,
    attributes: c.Attributes,
    *,
    kind: trace.SpanKind = trace.SpanKind.INTERNAL,
    links: Sequence[trace.Link] = (),
    within: otel_context.Context | None = None,
    answers: type[ServiceError] | None = None,
) -> Iterator[trace.Span]:
    """A span for a block. A failure is named in it, never told in its own words.

    Failures of the kind `answers` are none of the step, unless they mean a fault of a server: they
    are told to whoever asked, as a field that is wrong is.
    """
    with tracer.start_as_current_span(
        name,
        context=within,
        kind=kind,
        attributes=attributes,
        links=links,
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield span
        except BaseException as error:
            span.set_attribute(c.ERROR_TYPE, c.error_type(error))
            if isinstance(error, Exception) and not _is_answer(error, answers):
                span.set_status(trace.StatusCode.ERROR, c.error_type(error))
            raise


def _is_answer(error: Exception, answers: type[ServiceError] | None) -> bool:
    return answers is not None and isinstance(error, answers) and error.grpc_code not in _FAULTS
