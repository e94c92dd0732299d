"""Sends spans to a collector over OTLP/gRPC, cheaply, and puts up with one that is away.

The exporter of OpenTelemetry does the sending: addresses, headers, certificates, compression,
trying again. Two things are ours. What is sent is put together by `svckit.wire`, in a third to a
half of the time. And a collector that is away, slow or refuses costs spans and nothing else: no
more than `MOST_WAITING` wait, others are counted and given up, and the log has a line when that
begins and one when it is over.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import grpc
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult

from svckit import wire
from svckit.logging import get_logger

MOST_WAITING = 16_384
"""Spans that wait to be sent; a few seconds of a busy service, and some tens of megabytes."""
MOST_WAITING_WITH_CONTENTS = 2_048
"""The same where contents are captured: of such spans one may have a hundred kilobytes."""
BATCH = 256
"""Spans sent together: few enough that filling them in does not hold up the event loop."""
MOST_BYTES = 3_000_000
"""Of one message: a collector refuses those above four megabytes, with all the spans in them."""
TIMEOUT_SECONDS = 5.0
PAUSE_MILLISECONDS = 1000.0
"""How long a span waits for others at most: a person who looks at a trace waits as long."""

_log = get_logger("svckit.telemetry")

_EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"

# They tell of every attempt and every batch; we tell of every outage.
for _library in (
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.sdk._shared_internal",
):
    logging.getLogger(_library).setLevel(logging.CRITICAL)


class Sender(BatchSpanProcessor):
    """Collects ended spans and sends them from a thread of its own. Ending a span never waits."""

    def __init__(self, endpoint: str, service: str, *, contents: bool = False) -> None:
        self._exporter = _Exporter(endpoint, service)
        self._most = MOST_WAITING_WITH_CONTENTS if contents else MOST_WAITING
        super().__init__(
            self._exporter,
            # As the library reads them from the environment, but for the defaults.
            max_queue_size=self._most + BATCH,
            max_export_batch_size=BATCH,
            schedule_delay_millis=_pause(),
        )

    @property
    def dropped(self) -> int:
        """Spans that were given up so far."""
        return self._exporter.dropped

    def on_end(self, span: ReadableSpan) -> None:
        """Take an ended span, or give it up when too many wait."""
        exporter = self._exporter
        if exporter.taken - exporter.done >= self._most:
            exporter.give_up(1)
            return
        exporter.taken += 1
        super().on_end(span)


def _pause() -> float:
    asked = os.environ.get("OTEL_BSP_SCHEDULE_DELAY", "")
    return float(asked) if asked.isdecimal() and int(asked) else PAUSE_MILLISECONDS


class _Exporter(OTLPSpanExporter):
    def __init__(self, endpoint: str, service: str) -> None:
        insecure = not endpoint.startswith("https://")
        super().__init__(endpoint=endpoint, insecure=insecure, timeout=TIMEOUT_SECONDS)
        self._service = service
        self._answers = True
        self._made = b""
        # Taken by the processor; taken and sent or given up; given up.
        self.taken = self.done = self.dropped = 0

    def give_up(self, spans: int) -> None:
        """Count spans that are not sent."""
        self.dropped += spans

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch, or give it up. Called from the processor's thread alone."""
        try:
            self._made, told = wire.request_of(spans, self._service)
            if len(spans) > 1 and len(self._made) > MOST_BYTES:
                return self._in_halves(spans)
            result = super().export(spans)
        except Exception as err:
            _log.error("spans were not sent", exc_info=err)
            result, told = SpanExportResult.FAILURE, 0
        self._made = b""
        self.done += len(spans)
        answers = result is SpanExportResult.SUCCESS
        self.give_up(len(spans) - told if answers else len(spans))
        if answers is not self._answers:
            self._answers = answers
            if answers:
                _log.warning("the collector takes spans again", dropped=self.dropped)
            else:
                _log.warning("the collector takes no spans; those of now are given up")
        return result

    def _in_halves(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        half = len(spans) // 2
        results = {self.export(spans[:half]), self.export(spans[half:])}
        answers = results == {SpanExportResult.SUCCESS}
        return SpanExportResult.SUCCESS if answers else SpanExportResult.FAILURE

    # Two places of the library, of this version and of those before: what is sent, and by what.

    def _translate_data(self, data: Sequence[ReadableSpan]) -> Any:
        # Asked for at every attempt.
        return self._made

    def _initialize_channel_and_stub(self) -> None:
        super()._initialize_channel_and_stub()  # type: ignore[no-untyped-call]
        channel: Any = self._channel
        self._client: Any = _Client(channel)


class _Client:
    """The library's stub, for messages that are bytes already."""

    def __init__(self, channel: grpc.Channel) -> None:
        answer = trace_service_pb2.ExportTraceServiceResponse.FromString
        self.Export: Any = channel.unary_unary(_EXPORT, response_deserializer=answer)
