"""The tracer provider of a process, and its end. The only import of the OpenTelemetry SDK."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from svckit.idtracing import IdTracerProvider
from svckit.settings import Settings

FLUSH_SECONDS = 3.0


@dataclass(frozen=True)
class Telemetry:
    """What a service traces with."""

    provider: TracerProvider | IdTracerProvider
    tracer: trace.Tracer

    @property
    def dropped(self) -> int:
        """Spans that were given up so far, since the collector was away or too slow."""
        return 0

    def shutdown(self) -> None:
        """Flush and stop. Blocks for at most `FLUSH_SECONDS`, also when the collector is gone."""
        worker = threading.Thread(target=self.provider.shutdown, name="telemetry", daemon=True)
        worker.start()
        worker.join(FLUSH_SECONDS)


def setup(
    service: str,
    settings: Settings,
    *,
    processors: tuple[SpanProcessor, ...] = (),
) -> Telemetry:
    """Build the provider of `service`.

    Spans have ids with or without an exporter, since logs, runs and announcements show them; they
    are recorded only for `processors`, or when `telemetry.otlp_endpoint` is set.

    The provider is never made OpenTelemetry's global one. Several libraries of ours (FastAPI, the
    SDKs of MCP, ACP and Anthropic) have tracers of their own, which would then record whole paths,
    queries and prompts, in traces of their own.
    """
    endpoint = settings.telemetry.otlp_endpoint
    provider: TracerProvider | IdTracerProvider
    if processors or endpoint:
        provider = _recording(service, endpoint, processors)
    else:
        provider = IdTracerProvider()
    return Telemetry(provider, provider.get_tracer("conveyor"))


def _recording(
    service: str, endpoint: str | None, processors: tuple[SpanProcessor, ...]
) -> TracerProvider:
    provider = TracerProvider(
        resource=Resource.create(
            {
                "service.name": service,
                "service.namespace": "conveyor",
                "service.instance.id": f"{service}-{os.getpid()}",
            }
        ),
        # The end of the process is ours to order: telemetry goes last, see `svckit.service`.
        shutdown_on_exit=False,
    )
    for processor in processors:
        provider.add_span_processor(processor)
    if endpoint:
        provider.add_span_processor(_otlp(endpoint))
    return provider


def _otlp(endpoint: str) -> SpanProcessor:
    # Imported here: it takes a good part of the time in which a service is to be healthy.
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    insecure = not endpoint.startswith("https://")
    return BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, insecure=insecure))
