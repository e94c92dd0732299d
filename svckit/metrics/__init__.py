"""Metrics: what each service counts, and where Prometheus reads it.

`definitions` says what there is, `instruments` counts, `exposition` writes, `endpoint` answers.
"""

from svckit.metrics.instruments import NOBODY, Counter, Gauge, Histogram, Metrics

__all__ = ["NOBODY", "Counter", "Gauge", "Histogram", "Metrics"]
