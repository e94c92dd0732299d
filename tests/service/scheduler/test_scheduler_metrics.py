"""What the scheduler counts and shows, as Prometheus reads it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from conveyor.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_svc.counts import REASONS_TO_WAIT, SLICE, Standing
from svckit.errors import TurnFailed
from svckit.metrics import Histogram, Metrics
from svckit.metrics.definitions import LANE_WAITING
from svckit.testing import eventually
from tests.metric_names import figures

from .conftest import Driver, driver, settings


@pytest.fixture
async def counted(tmp_path: Path) -> AsyncIterator[Driver]:
    config = settings(
        tmp_path,
        "memory",
        CONVEYOR_METRICS__SCHEDULER="127.0.0.1:0",
        CONVEYOR_LANES__MAIN__LIMIT="1",
        CONVEYOR_RUNS__BACKOFF__INITIAL_SECONDS="30",
        CONVEYOR_RUNS__LEASE_SECONDS="1",
    )
    async with driver(config) as found:
        yield found


async def lane(s: Driver, name: str = "main") -> dict[str, float]:
    """Return why runs of a lane wait, without what nobody waits for."""
    found = await figures(s.metrics)
    series = 'conveyor_lane_waiting{{lane="{}",reason="{}"}}'
    waiting = {reason: found[series.format(name, reason)] for reason in REASONS_TO_WAIT}
    return {reason: count for reason, count in waiting.items() if count}


async def test_why_runs_wait_is_shown_by_lane(counted: Driver) -> None:
    s = counted
    assert await lane(s) == {}
    await s.send("a")
    await s.send("a")
    await s.send("b")
    assert await lane(s) == {"worker": 2, "session": 1}
    first = await s.lease_one()
    assert await lane(s) == {"slot": 1, "session": 1}
    found = await figures(s.metrics)
    assert found['conveyor_lane_running{lane="main"}'] == 1
    assert found['conveyor_lane_limit{lane="main"}'] == 1
    assert found['conveyor_lane_oldest_wait_seconds{lane="main"}'] > 0
    assert found['conveyor_lane_oldest_wait_seconds{lane="acp"}'] == 0
    assert found['conveyor_workers{queue="agent"}'] == 1
    assert found["conveyor_scheduler_serving"] == 1

    children = await s.spawn(first, "one", "two")
    await s.wait_for_children(first, *children)
    assert await lane(s) == {"children": 1, "worker": 1, "session": 1}
    assert await lane(s, "subagent") == {"worker": 2}
    await s.scheduler.UpdateLane(pb.UpdateLaneRequest(name="subagent", limit=0))
    assert await lane(s, "subagent") == {"paused": 2}
    await s.scheduler.CancelRun(pb.CancelRunRequest(run_id=first.run.run_id))
    assert await lane(s, "subagent") == {}


async def test_a_pause_after_a_failure_is_a_reason_of_its_own(counted: Driver) -> None:
    await counted.send("a")
    leased = await counted.lease_one()
    await counted.fail(leased, TurnFailed("broken", metadata={"cause": "task"}), retryable=True)
    assert await lane(counted) == {"backoff": 1}
    found = await figures(counted.metrics)
    assert found['conveyor_turn_seconds_count{end="queued",lane="main"}'] == 1


async def test_what_was_committed_is_counted(counted: Driver) -> None:
    s = counted
    found = await figures(s.metrics)
    for series in (
        'conveyor_runs_accepted_total{lane="main"}',
        'conveyor_leases_lost_total{lane="main"}',
        'conveyor_attempts_total{kind="repeated",lane="main"}',
        'conveyor_announcements_total{lane="main"}',
        "conveyor_commits_failed_total",
    ):
        assert found[series] == 0, series  # there before it grows
    await s.send("a")
    parent = await s.lease_one()
    [child] = await s.spawn(parent, "one")
    leased = await s.lease_one()
    assert leased.run.run_id == child
    await s.complete(leased)
    found = await figures(s.metrics)
    assert found['conveyor_announcements_pending{lane="main"}'] == 1
    await s.wait_for_children(parent, child)
    again = await s.lease_one()
    await s.fail(again, TurnFailed("broken", metadata={"cause": "task"}))
    assert await s.state(parent.run.run_id) == "FAILED"

    found = await figures(s.metrics)
    expected = {
        'conveyor_runs_accepted_total{lane="main"}': 1,
        'conveyor_runs_accepted_total{lane="subagent"}': 1,
        'conveyor_runs_ended_total{lane="subagent",reason="",state="succeeded"}': 1,
        'conveyor_runs_ended_total{lane="main",reason="TURN_FAILED",state="failed"}': 1,
        'conveyor_attempts_total{kind="first",lane="main"}': 2,
        'conveyor_announcements_total{lane="main"}': 1,
        'conveyor_announcements_pending{lane="main"}': 0,
        'conveyor_turn_seconds_count{end="succeeded",lane="subagent"}': 1,
        'conveyor_turn_seconds_count{end="failed",lane="main"}': 1,
        'conveyor_wait_seconds_count{lane="main",layer="global"}': 2,
        'conveyor_wait_seconds_count{lane="main",layer="session"}': 2,
        'conveyor_leases_lost_total{lane="main"}': 0,
    }
    assert {series: found[series] for series in expected} == expected
    assert found["conveyor_commit_seconds_count"] == found["conveyor_commit_commands_count"] > 5
    assert found["conveyor_events_total"] >= 10


async def test_a_lost_lease_is_counted_once(counted: Driver) -> None:
    await counted.send("a")
    await counted.lease_one()

    async def lost() -> bool:
        return (await figures(counted.metrics))['conveyor_leases_lost_total{lane="main"}'] == 1

    await eventually(lost)
    assert await lane(counted) == {"backoff": 1}


async def test_what_a_sender_was_told_is_compared_with_what_came(counted: Driver) -> None:
    assert await counted.lease() == []  # there is a worker
    accepted = await counted.send("a")
    assert accepted.estimate.HasField("start_time")
    await counted.lease_one()
    found = await figures(counted.metrics)
    told = {s: n for s, n in found.items() if s.startswith("conveyor_estimate_error_seconds_count")}
    assert sum(told.values()) == 1


async def test_watchers_are_counted_by_what_they_follow(counted: Driver) -> None:
    from conveyor.events.v1 import event_log_service_pb2 as events

    watch = counted.events.WatchEvents(events.WatchEventsRequest(session_key="a"))
    await watch.read()
    found = await figures(counted.metrics)
    assert found['conveyor_watchers{scope="session"}'] == 1
    assert found['conveyor_watchers{scope="all"}'] == 0
    assert found["conveyor_watcher_lag_events"] == 0
    watch.cancel()


async def test_a_standby_shows_no_lanes(counted: Driver) -> None:
    """Or the sum over all schedulers would count every slot twice."""
    counted.engine.leading = False
    found = await figures(counted.metrics)
    assert found["conveyor_scheduler_serving"] == 0
    assert not [series for series in found if series.startswith("conveyor_lane_")]
    counted.engine.leading = True


async def test_a_long_queue_is_looked_through_in_slices(counted: Driver) -> None:
    """Others get their turn in between, and a run that ends meanwhile is no trouble."""
    runs = counted.engine.kernel.runs
    await counted.send("a")
    [(run_id, run)] = runs.items()
    runs.update({f"{run_id}-{number}": run for number in range(2 * SLICE)})
    metrics = Metrics()
    looking = asyncio.create_task(Standing(counted.engine, metrics).look())
    await asyncio.sleep(0)
    assert not looking.done()
    for number in range(2 * SLICE):
        del runs[f"{run_id}-{number}"]
    await looking
    [waiting] = [i for i in metrics.instruments() if i.definition is LANE_WAITING]
    assert not isinstance(waiting, Histogram)
    assert waiting.values["main", "worker"] == 2 * SLICE + 1
