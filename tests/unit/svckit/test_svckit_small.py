"""Clock, ids, backoff, page tokens, trace context, spans as text, `eventually`."""

from __future__ import annotations

import asyncio
import itertools
import re
import sys
import time
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage, context, trace

from conveyor.common.v1 import trace_pb2
from svckit import ids, paging, service, tracecontext
from svckit.backoff import full_jitter
from svckit.clock import FakeClock, SystemClock
from svckit.errors import BY_REASON, InvalidField, LaneFull, ServiceError, invalid_field
from svckit.testing import eventually, memory_tracer, span_tree
from svckit.version import __version__

# Ids


def test_ids_sort_by_creation_and_never_repeat() -> None:
    made = [ids.new_ulid() for _ in range(5000)]
    assert made == sorted(set(made))
    assert {len(i) for i in made} == {26}


def test_ids_count_on_when_the_clock_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = ids.new_ulid()
    monkeypatch.setattr(time, "time_ns", lambda: 10**18)
    assert before < ids.new_ulid() < ids.new_ulid()


def test_ids_are_readable_by_the_library() -> None:
    from ulid import ULID

    parsed = ULID.from_str(ids.new_ulid())
    assert abs(parsed.timestamp - time.time()) < 60
    assert ids.new_id("run-").startswith("run-")


# Time


def test_the_system_clock_follows_the_wall_and_only_grows() -> None:
    clock = SystemClock()
    assert abs(clock.now_us() - time.time_ns() // 1000) < 1_000_000
    times = [clock.now_us() for _ in range(1000)]
    assert times == sorted(times)


async def test_the_fake_clock_wakes_sleepers_in_order() -> None:
    clock, woken = FakeClock(), list[tuple[str, int]]()
    start = clock.now_us()

    async def sleeper(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append((name, clock.now_us() - start))

    tasks = [asyncio.create_task(sleeper(n, s)) for n, s in (("b", 2), ("a", 1), ("c", 9))]
    await eventually(lambda: clock.sleepers == 3)
    clock.advance(5)
    await eventually(lambda: len(woken) == 2)
    assert [name for name, _ in woken] == ["a", "b"]
    assert clock.now_us() - start == 5_000_000
    tasks[2].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert clock.sleepers == 0


def test_pauses_grow_to_the_maximum_and_stay_below() -> None:
    for bound, pause in zip([1, 2, 4, 5, 5], full_jitter(1, 5), strict=False):
        assert 0 <= pause <= bound
    fourth = [next(itertools.islice(full_jitter(1, 5), 3, None)) for _ in range(200)]
    assert max(fourth) > 3


# Errors


def test_errors_say_their_reason_and_keep_the_pause() -> None:
    err = LaneFull("full", metadata={"cap": "1"})
    assert str(err) == "LANE_FULL: full"
    assert (err.retry_after, LaneFull("x", retry_after=9).retry_after) == (5.0, 9)
    assert BY_REASON["LANE_FULL"] is LaneFull
    bad = invalid_field("spec.session_key", "must not be empty")
    assert isinstance(bad, ServiceError)
    assert bad.message == "spec.session_key: must not be empty"
    assert bad.metadata == {"field": "spec.session_key"}


# Page tokens

SCALARS = st.one_of(st.text(max_size=10), st.integers(-(2**53), 2**53), st.booleans(), st.none())
FILTERS: Any = st.dictionaries(
    st.text(), st.one_of(SCALARS, st.lists(SCALARS, max_size=2)), max_size=2
)


@hypothesis.settings(max_examples=30)
@given(key=st.lists(SCALARS, max_size=4), filters=FILTERS)
def test_page_tokens_round_trip(key: list[Any], filters: Any) -> None:
    assert paging.decode(paging.encode(key, filters), filters) == tuple(key)


@hypothesis.settings(max_examples=30)
@given(token=st.text(min_size=1))
def test_any_other_text_is_refused(token: str) -> None:
    with pytest.raises(InvalidField) as caught:
        paging.decode(token, {})
    assert caught.value.metadata == {"field": "page_token"}


def test_a_token_belongs_to_its_filters() -> None:
    token = paging.encode(["x", 1], {"state": "open"})
    with pytest.raises(InvalidField, match="other filters"):
        paging.decode(token, {"state": "closed"})
    assert paging.decode("", {"state": "closed"}) is None


# Traces


def test_a_stored_context_is_parent_and_link() -> None:
    tracer, exporter = memory_tracer()
    with tracer.start_as_current_span("creator") as creator:
        kept = baggage.set_baggage("conveyor.run.id", "r1", baggage.set_baggage("secret", "s"))
        token = context.attach(trace.set_span_in_context(creator, kept))
        stored = tracecontext.current()
        context.detach(token)
    assert stored.baggage == "conveyor.run.id=r1"
    link = tracecontext.link_to(stored)
    assert link is not None
    tracer.start_span("work", context=tracecontext.parent_of(stored), links=[link]).end()
    assert span_tree(exporter) == "INTERNAL creator\n  INTERNAL work"
    assert len(tracecontext.trace_id_of(stored)) == 32
    assert baggage.get_baggage("conveyor.run.id", tracecontext.parent_of(stored)) == "r1"


@pytest.mark.parametrize("text", ["", "nonsense", "00-0-0-01"])
def test_no_stored_context_is_a_fresh_root(text: str) -> None:
    stored = trace_pb2.TraceContext(traceparent=text)
    assert tracecontext.link_to(stored) is None
    assert tracecontext.trace_id_of(stored) == ""
    tracer, exporter = memory_tracer()
    with tracer.start_as_current_span("ambient"):
        tracer.start_span("work", context=tracecontext.parent_of(stored)).end()
    assert span_tree(exporter) == "INTERNAL ambient\nINTERNAL work"
    assert tracecontext.current() == trace_pb2.TraceContext()


# eventually


async def test_eventually_returns_what_became_true() -> None:
    values = iter([0, "", 7])
    assert await eventually(lambda: next(values)) == 7


async def test_eventually_raises_the_last_problem() -> None:
    def never() -> bool:
        raise AssertionError("the reason")

    with pytest.raises(AssertionError, match="the reason"):
        await eventually(never, timeout=0.05)
    with pytest.raises(AssertionError, match="last: 0"):
        await eventually(lambda: 0, timeout=0.05)


@pytest.mark.parametrize("service", ["agent_svc", "gateway_svc"])
def test_revisions_of_a_database_are_one_chain(service: str) -> None:
    # Two of them once had one number: each was right alone, and no database opened with both.
    import re
    from pathlib import Path

    found = []
    for path in sorted(Path(service, "store", "migrations", "versions").glob("*.py")):
        text = path.read_text("utf-8")
        revision = re.search(r'^revision = "(.+)"', text, re.MULTILINE)
        down = re.search(r'^down_revision = (?:None|"(.+)")', text, re.MULTILINE)
        assert revision, path
        assert down, path
        assert path.name.startswith(f"{revision[1]}_")
        found.append((down[1] or "", revision[1]))
    assert [down for down, _ in found] == ["", *(revision for _, revision in found[:-1])]


def test_each_service_says_its_version(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gateway-svc", "--version"])
    with pytest.raises(SystemExit) as exited:
        service._parse("gateway")
    assert exited.value.code == 0
    assert capsys.readouterr().out == f"gateway-svc {__version__}\n"
    # As releases are numbered, so that programs can compare them.
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
