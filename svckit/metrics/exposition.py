"""Metrics as Prometheus asks for them. The text itself is written by `prometheus_client`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

from svckit.logging import get_logger
from svckit.metrics.definitions import Kind
from svckit.metrics.instruments import Histogram, Metrics, Shown

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_log = get_logger("svckit.metrics")


async def exposed(metrics: Metrics, accept: str = "") -> tuple[bytes, str]:
    """Return the text and its content type. `accept`: the header that says which form is wanted.

    To be awaited on the event loop that counts: the numbers are read there. They are written down
    in a thread, since that takes four times as long.
    """
    # Imported here: only who is asked needs it.
    from prometheus_client import CollectorRegistry, ProcessCollector
    from prometheus_client.exposition import choose_encoder

    await metrics.refresh()
    # A registry of its own: several services may live in one process.
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Read(list(_families(metrics))))
    ProcessCollector(registry=registry)
    encode, content_type = choose_encoder(accept)
    return await asyncio.to_thread(encode, registry), content_type


class _Read:
    """What was read, as a registry wants to be told."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _families(metrics: Metrics) -> Iterator[Metric]:
    for instrument in metrics.instruments():
        try:
            yield _family(instrument)
        except Exception as err:  # one that cannot be read hides no others
            name = instrument.definition.name
            _log.error("a metric could not be read", metric=name, exc_info=err)


def _family(instrument: Shown) -> Metric:
    from prometheus_client import core

    definition = instrument.definition
    name, text, labels = definition.name, definition.help, definition.labels
    if isinstance(instrument, Histogram):
        histogram = core.HistogramMetricFamily(name, text, labels=labels)
        bounds = [*(f"{bound:g}" for bound in definition.bounds), "+Inf"]
        for values, (counts, sums) in instrument.series.items():
            buckets = list(zip(bounds, map(float, accumulate(counts)), strict=True))
            histogram.add_metric(values, buckets, sums[0])
        return histogram
    family: core.CounterMetricFamily | core.GaugeMetricFamily
    if definition.kind is Kind.COUNTER:
        family = core.CounterMetricFamily(name, text, labels=labels)
    else:
        family = core.GaugeMetricFamily(name, text, labels=labels)
    for values, value in instrument.values.items():
        family.add_metric(values, value)
    return family
