"""Helpers for tests: services in process, scripted neighbours, faults, spans, a fake provider."""

from svckit.testing.eventually import eventually
from svckit.testing.faults import FaultInjector
from svckit.testing.inprocess import InProcess, free_port, in_process
from svckit.testing.scripted import ScriptedServicer, scripted_server
from svckit.testing.spans import memory_tracer, span_tree

__all__ = [
    "FaultInjector",
    "InProcess",
    "ScriptedServicer",
    "eventually",
    "free_port",
    "in_process",
    "memory_tracer",
    "scripted_server",
    "span_tree",
]
# `svckit.testing.fake_openai.FakeOpenAI` is left out: it imports a web server.
