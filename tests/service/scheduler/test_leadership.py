"""Several schedulers on one database: one leads, the others stand by and take over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry import trace

from conveyor.events.v1 import event_log_service_pb2 as events
from conveyor.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_svc import app, leadership
from scheduler_svc.engine import Engine
from scheduler_svc.leadership import Leadership
from scheduler_svc.store.base import SharedStore
from svckit.errors import NotLeader, ServiceError, StartError, StoreUnavailable
from svckit.grpc.client import call
from svckit.service import App, Context
from svckit.settings import Settings
from svckit.testing import eventually, in_process, memory_tracer
from svckit.testing.postgres import PostgresServer, postgres_server

from .conftest import Driver, settings

SERVICE = "conveyor.scheduler.v1.SchedulerService"


class Scheduler(Driver):
    """A candidate. `skew` moves its clock, as if it had been stopped meanwhile."""

    address: str
    leadership: Leadership
    skew: float = 0.0

    async def health(self, service: str = SERVICE) -> bool:
        stub: Any = health_pb2_grpc.HealthStub(self.channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def leads(self) -> bool:
        """Whether it says that it leads: to those who look, and to those who call."""
        try:
            await call(self.scheduler.ListLanes(pb.ListLanesRequest()))
        except NotLeader:
            return False
        return await self.health()


@asynccontextmanager
async def candidate(
    config: Settings, tracer: trace.Tracer | None = None
) -> AsyncIterator[Scheduler]:
    """A scheduler of several, with everything as in its process."""
    found = Scheduler.__new__(Scheduler)
    original = leadership.uptime
    kept: list[Leadership] = []

    class Watched(Leadership):
        def __init__(self, engine: Engine, store: SharedStore, **more: Any) -> None:
            super().__init__(engine, store, **more, now=lambda: original() + found.skew)
            kept.append(self)

    @asynccontextmanager
    async def build(context: Context) -> AsyncIterator[App]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(app, "Leadership", Watched)
            async with app.build(context) as built:
                yield built

    async with in_process(build, config, name="scheduler", tracer=tracer) as service:
        found.__init__(service.channel)  # type: ignore[misc]
        found.address = service.address
        [found.leadership] = kept
        yield found


@pytest.fixture
def config(tmp_path: Path, postgres_url: str) -> Settings:
    return settings(
        tmp_path,
        postgres_url,
        CONVEYOR_STORE__LEADER_LEASE_SECONDS="1",
        CONVEYOR_SERVICES__SCHEDULER="127.0.0.1:0",
    )


async def test_a_scheduler_alone_leads_when_it_is_ready(config: Settings) -> None:
    async with candidate(config) as one:
        assert await one.leads()
        assert (await one.send("a")).run.run_id


async def test_a_standby_is_alive_and_says_who_leads(config: Settings) -> None:
    async with candidate(config) as one, candidate(config) as two:
        assert await one.leads()
        assert not await two.leads()
        assert await two.health("")
        assert not await two.health()
        for rpc in (
            two.scheduler.EnqueueRuns(pb.EnqueueRunsRequest(items=[two.item("a", "x")])),
            two.scheduler.GetRun(pb.GetRunRequest(run_id="x")),
            two.events.ListEvents(events.ListEventsRequest(session_key="a")),
            two.lease(1, 5),
        ):
            with pytest.raises(NotLeader) as refused:
                await call(rpc)
            assert refused.value.metadata["leader"] == one.address
            assert int(refused.value.metadata["epoch"]) >= 1
        watch = two.events.WatchEvents(events.WatchEventsRequest(session_key="a"))
        with pytest.raises(Exception, match="does not lead"):
            await watch.read()


async def test_who_leaves_hands_over_at_once_and_live_turns_go_on(config: Settings) -> None:
    async with candidate(config) as one:
        await one.send("a", "first")
        await one.send("a", "second")
        turn = await one.lease_one()
        watch = one.events.WatchEvents(events.WatchEventsRequest(session_key="a"))
        polling = asyncio.ensure_future(call(one.lease(1, 30)))
        async with candidate(config) as two:
            assert not await two.leads()
            read = asyncio.ensure_future(drained(watch))
            await one.leadership.leave()
            await eventually(two.leads)
            assert "does not lead" in await read
            with pytest.raises(NotLeader):
                await polling
            with pytest.raises(NotLeader):
                await call(one.send("a", "too late"))
            assert not await one.health()
            [status] = await two.extend(turn)
            assert not status.lost
            assert status.lease.attempt == 1
            await two.complete(turn)
            following = await two.lease_one()
            assert following.run.inputs[0].message.parts[0].text == "second"
            assert following.lease.attempt == 1
            await two.log("a")  # without gaps


async def drained(watch: Any) -> str:
    """Read a watch to its end, and return what the end says."""
    try:
        async for _ in watch:
            pass
    except Exception as err:
        return str(err)
    return ""


async def test_a_leader_that_was_stopped_says_nothing_of_yesterday(config: Settings) -> None:
    """Time passed unnoticed: another one may lead already, so not even a read is answered."""
    async with candidate(config) as one:
        accepted = await one.send("a", "hello")
        one.skew += 60
        with pytest.raises(NotLeader) as refused:
            await call(one.run(accepted.run.run_id))
        assert refused.value.metadata["leader"] == ""
        # Nobody took the lead meanwhile: it goes on.
        await eventually(one.leads)
        assert (await one.run(accepted.run.run_id)).run_id == accepted.run.run_id


async def test_what_was_begun_before_a_leader_was_stopped_is_not_answered_after_it(
    config: Settings, postgres: PostgresServer, postgres_url: str
) -> None:
    async with candidate(config) as one:
        polling = asyncio.ensure_future(call(one.lease(1, 30)))
        await one.leads()
        take_the_lead(postgres, postgres_url)
        one.skew += 60
        with pytest.raises(NotLeader) as refused:
            await polling
        assert refused.value.metadata["leader"] in ("", "other:1")


def take_the_lead(postgres: PostgresServer, url: str) -> None:
    postgres.execute(
        "UPDATE scheduler.leader SET epoch = epoch + 1, holder = 'other', address = 'other:1', "
        "expire_time = clock_timestamp() + interval '2 seconds'",
        url,
    )


async def test_the_lead_that_another_one_took_is_noticed_by_the_first_write(
    config: Settings, postgres: PostgresServer, postgres_url: str
) -> None:
    async with candidate(config) as one:
        await one.send("a", "kept")
        take_the_lead(postgres, postgres_url)
        with pytest.raises((NotLeader, StoreUnavailable)):
            await call(one.send("a", "refused", request_id="again"))
        assert not await one.leads()
        await eventually(one.leads)  # the other one is gone
        again = await one.send("a", "refused", request_id="again")
        assert not again.deduplicated
        assert [e.sequence for e in await one.log("a")] == [1, 2, 3, 4]


async def test_schedulers_take_over_from_each_other_again_and_again(config: Settings) -> None:
    async with candidate(config) as one, candidate(config) as two, candidate(config) as three:
        nodes = [one, two, three]
        sent = []
        for number in range(4):

            async def leader() -> Scheduler | None:
                found = [node for node in nodes if await node.leads()]
                assert len(found) <= 1
                return found[0] if found else None

            active: Scheduler = await eventually(leader, timeout=20)
            sent.append((await active.send("a", str(number))).run.run_id)
            active.skew += 60
        active = await eventually(leader, timeout=20)
        for run_id in sent:
            leased = await active.lease_one()
            assert (leased.run.run_id, leased.lease.attempt) == (run_id, 1)
            await active.complete(leased)


async def test_who_takes_over_tells_of_nothing_twice_and_who_lost_the_lead_of_nothing_refused(
    config: Settings, postgres: PostgresServer, postgres_url: str
) -> None:
    tracer, exporter = memory_tracer()

    def told(*names: str) -> list[int]:
        made = [span.name for span in exporter.get_finished_spans()]
        return [made.count(name) for name in names]

    names = ("enqueue agent", "wait global lane main", "run.lost")
    async with candidate(config, tracer) as one:
        with tracer.start_as_current_span("request"):
            await one.send("a", "leased before")
            turn = await one.lease_one()
            await one.send("b", "waits")
            assert told(*names) == [2, 1, 0]
            take_the_lead(postgres, postgres_url)
            with pytest.raises((NotLeader, StoreUnavailable)):
                await call(one.send("c", "refused"))
            assert told(*names) == [2, 1, 0]
    async with candidate(config, tracer) as two:
        await eventually(two.leads, timeout=20)
        two.me.incarnation += 1  # its worker was killed meanwhile
        leased = {run.run.run_id: run for run in [*await two.lease(1, 5), *await two.lease(1, 5)]}
        assert leased[turn.run.run_id].lease.attempt == 2
        assert len(leased) == 2
    # The pause before the next attempt is a wait of its own.
    assert told(*names, "wait retry") == [2, 3, 1, 1]
    spans = {span.context.span_id for span in exporter.get_finished_spans() if span.context}
    assert len(spans) == len(exporter.get_finished_spans())


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


async def test_a_database_that_is_away_is_waited_for(
    tmp_path: Path, own_postgres: PostgresServer
) -> None:
    config = settings(
        tmp_path, own_postgres.create_database(), CONVEYOR_STORE__LEADER_LEASE_SECONDS="1"
    )
    async with candidate(config) as one:
        await one.send("a", "before")
        own_postgres.stop("immediate")

        async def refuses() -> bool:
            try:
                await call(one.scheduler.ListLanes(pb.ListLanesRequest()))
            except ServiceError as err:
                return isinstance(err, StoreUnavailable) and not one.leadership.leads
            return False

        await eventually(refuses, timeout=20)
        own_postgres.start()
        await eventually(one.leads, timeout=20)
        await one.send("a", "during", request_id="again")
        assert (await one.kinds("a")).count("message_completed") == 2


def test_one_of_several_has_to_know_which_one_it_is(tmp_path: Path) -> None:
    both = "127.0.0.1:1, 127.0.0.1:2"
    several = {"CONVEYOR_SERVICES__SCHEDULER": both}
    url = "postgresql://user@127.0.0.1:5432/conveyor"
    with pytest.raises(StartError, match=r"CONVEYOR_SCHEDULER__LISTEN=127\.0\.0\.1:1"):
        app.address_of(settings(tmp_path, url, **several))
    told = settings(tmp_path, url, CONVEYOR_SCHEDULER__LISTEN="127.0.0.1:2", **several)
    assert app.address_of(told) == "127.0.0.1:2"
    assert app.advertised(told, "127.0.0.1:2") == "127.0.0.1:2"
    with pytest.raises(StartError, match=r"store\.url"):
        app.address_of(settings(tmp_path, **several))
    with pytest.raises(StartError, match=r"runs\.lease_seconds"):
        app.address_of(settings(tmp_path, url, CONVEYOR_RUNS__LEASE_SECONDS="9", **several))
    behind = settings(tmp_path, url, CONVEYOR_SCHEDULER__ADVERTISE="host:2", **several)
    assert app.advertised(behind, "0.0.0.0:2") == "host:2"
