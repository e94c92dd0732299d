"""The tracer provider of a process, and its end.

Whether a trace is recorded is decided where it begins; everybody else does as that one did, also
who records nothing himself. A collector that is away costs the spans and nothing else.
"""

from __future__ import annotations

import os
import secrets
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor

from svckit import conventions as c
from svckit.idtracing import IdTracerProvider
from svckit.recording import RecordingProvider
from svckit.settings import Settings
from svckit.settings_model import TelemetrySettings
from svckit.version import __version__

if TYPE_CHECKING:
    from svckit.otlp import Sender

FLUSH_SECONDS = 1.0
"""Less than whoever stops a service gives it: `conveyor up` gives the scheduler two seconds."""


@dataclass(frozen=True)
class Telemetry:
    """What a service traces with."""

    provider: RecordingProvider | IdTracerProvider
    tracer: trace.Tracer
    sender: Sender | None = None

    @property
    def dropped(self) -> int:
        """Spans that were given up so far, since the collector was away or too slow."""
        return self.sender.dropped if self.sender is not None else 0

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
    telemetry = settings.telemetry
    if not processors and not telemetry.otlp_endpoint:
        provider = IdTracerProvider(telemetry.sample_ratio)
        return Telemetry(provider, provider.get_tracer(c.TRACER))
    recording = _recording(service, telemetry)
    for processor in processors:
        recording.add_span_processor(processor)
    sender = None
    if telemetry.otlp_endpoint:
        sender = _sender(telemetry, service)
        recording.add_span_processor(sender)
    return Telemetry(recording, recording.get_tracer(c.TRACER), sender)


def _recording(service: str, telemetry: TelemetrySettings) -> RecordingProvider:
    return RecordingProvider(
        Resource.create(
            {
                c.SERVICE_NAME: service,
                c.SERVICE_NAMESPACE: "conveyor",
                # In containers, all of which have the same process ids, too.
                c.SERVICE_INSTANCE_ID: f"{service}-{os.getpid()}-{secrets.token_hex(4)}",
                c.SERVICE_VERSION: __version__,
            }
        ),
        telemetry.sample_ratio,
    )


def _sender(telemetry: TelemetrySettings, service: str) -> Sender:
    # Imported here: it takes a good part of the time in which a service is to be healthy.
    from svckit.otlp import Sender

    return Sender(telemetry.otlp_endpoint, service, contents=telemetry.capture_content)
