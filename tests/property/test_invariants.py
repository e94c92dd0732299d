"""The invariants of the scheduler, under random commands, faults and restarts, on every store.

The machine drives the real engine, one group of commands at a time, on a fake clock. It plays a
gateway (messages, cancellations, limits), workers (leases, every way to end a turn, silence) and
fate (time passes, the process dies before or after a commit, the store refuses a write). After
every step it looks at memory and at the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from conveyor.common.v1 import content_pb2
from conveyor.events.v1 import event_pb2
from conveyor.scheduler.v1 import run_pb2
from scheduler_svc.domain import (
    accounting,
    admission,
    leasing,
    reserving,
    settling,
    steering,
    turns,
    waiting,
)
from scheduler_svc.domain.kernel import Config, Kernel
from scheduler_svc.domain.leasing import Leased
from scheduler_svc.domain.limits import Outcome as LimitOutcome
from scheduler_svc.domain.limits import ProviderRates
from scheduler_svc.domain.records import (
    SECOND,
    TERMINAL,
    AnnounceMode,
    Caps,
    Failure,
    NewRun,
    QueueMode,
    ResumeReason,
    RetryPolicy,
    Run,
    RunState,
    Usage,
    Wait,
    WaitKind,
)
from scheduler_svc.engine import Engine, _Command, _Poll
from scheduler_svc.store.base import (
    Batch,
    EventQuery,
    LaneStore,
    RunQuery,
    StoredRun,
)
from scheduler_svc.store.memory import MemoryStore
from scheduler_svc.store.postgres import PostgresStore
from scheduler_svc.store.sqlite import SqliteStore
from svckit.clock import FakeClock
from svckit.errors import (
    LeaseLost,
    RequestIdReused,
    ServiceError,
    StoreUnavailable,
)
from svckit.postgres import PostgresAddress
from svckit.testing.postgres import PostgresServer
from tests.history import History, assert_holds, of_store

SESSIONS = ["a", "b", "c"]
MESSAGE = content_pb2.Message(
    message_id="m", role=content_pb2.ROLE_USER, parts=[content_pb2.ContentPart(text="x")]
).SerializeToString()
RESULT = run_pb2.RunResult(reply=content_pb2.Message.FromString(MESSAGE)).SerializeToString()
LEASE_TTL = 10 * SECOND
# More examples for a longer search: PROPERTY_SCALE=20 pytest tests/property
SCALE = int(os.environ.get("PROPERTY_SCALE", "1"))


class Faulty:
    """A store that refuses commits when told to."""

    def __init__(self, inner: LaneStore) -> None:
        self._inner = inner
        self.refuse = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def commit(self, batch: Batch) -> None:
        if self.refuse and batch.events:
            self.refuse -= 1
            raise StoreUnavailable("full")
        await self._inner.commit(batch)


class Machine(RuleBasedStateMachine):
    # What the store holds is in a file or a server.
    outlives_its_object = False

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.tmp = tempfile.TemporaryDirectory()
        self.clock = FakeClock()
        self.ids = itertools.count(1)
        self.held: dict[str, Leased] = {}  # leases that a worker believes to hold
        self.old: list[tuple[str, int]] = []  # leases that were ended or lost
        self.kept: dict[str, Leased] = {}  # leases that the worker keeps while their run waits
        self.before: dict[str, Leased] = {}  # those that the turn under way went on from
        self.accepted: dict[str, str] = {}  # request id -> run id
        self.started: dict[str, list[int]] = {}  # session -> orders of first leases
        self.cancelled: set[str] = set()  # roots that were cancelled
        self.admitted: dict[str, set[str]] = {}  # cancelled roots -> their runs at that time
        self.last_accepted: dict[str, int] = {}  # session -> order of the newest message
        self.inputs: dict[str, list[str]] = {}  # run -> requests that it answers, in order
        self.told: dict[str, dict[int, list[str]]] = {}  # parent -> turn -> children told
        self.incarnation = 1
        self.lowered: set[str] = set()
        self.store: Faulty

    def do(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    @initialize(main=st.integers(1, 3), sub=st.integers(1, 3))
    def start(self, main: int, sub: int) -> None:
        self.config = Config(
            lanes={"main": main, "subagent": sub},
            lease_ttl=LEASE_TTL,
            max_depth=3,
            max_children=3,
            max_descendants=8,
            providers={"p": ProviderRates(requests_per_minute=120)},
        )
        self.store = Faulty(self.make_store())
        self.do(self._open())

    def make_store(self) -> LaneStore:
        return MemoryStore()

    async def _open(self) -> None:
        self.engine = Engine(self.store, self.config, self.clock)  # type: ignore[arg-type]
        await self.engine.start()

    @property
    def k(self) -> Kernel:
        return self.engine._kernel

    def submit(self, apply: Any, **needs: Any) -> Any:
        """Applies one command as a group of its own."""

        async def work() -> Any:
            future: asyncio.Future[Any] = self.loop.create_future()
            command = _Command(
                apply,
                future,
                needs.get("requests", ()),
                needs.get("runs", ()),
                needs.get("sessions", ()),
                (),
                needs.get("questions", ()),
            )
            try:
                await self.engine._turn([command])
            except StoreUnavailable as err:
                await self.engine._recover([command], err)
            return await future

        return self.do(work())

    def quietly(self, apply: Any, **needs: Any) -> Any:
        """As `submit`; a refusal by the rules is an answer too."""
        try:
            return self.submit(apply, **needs)
        except StoreUnavailable:
            return None
        except ServiceError as err:
            return err

    # -- The gateway ------------------------------------------------------------------------------

    def new(self, session: str, request_id: str, **more: Any) -> NewRun:
        payload = run_pb2.Run(spec=run_pb2.RunSpec(session_key=session, queue="agent"))
        entry = payload.inputs.add(request_id=request_id)
        return NewRun(
            run_id=f"r{next(self.ids):04}",
            request_id=request_id,
            body_hash=b"h",
            session_key=session,
            customer_key=session,
            queue="agent",
            lane=more.pop("lane", "main"),
            preferred_worker=more.pop("preferred_worker", ""),
            retry=RetryPolicy(max_attempts=2, initial_backoff=2 * SECOND),
            delivers_later=True,
            lane_cap=more.pop("lane_cap", 6),
            payload=payload.SerializeToString(),
            payload_input=entry.SerializeToString(),
            message=MESSAGE,
            **more,
        )

    def enqueue(self, new: NewRun, parent: tuple[str, int] | None = None, call: str = "") -> Any:
        def apply(k: Kernel, now: int) -> Any:
            return admission.enqueue(k, new, now, parent_lease=parent, tool_call_id=call)

        found = self.quietly(
            apply,
            requests=[new.request_id],
            sessions=[new.session_key] if new.session_key else [],
            runs=[parent[0]] if parent else [],
        )
        if isinstance(found, admission.Accepted):
            self.accepted[new.request_id] = found.run_id
            if found.deduplicated or found.outcome is admission.Outcome.STEERED:
                return found
            run = self.k.runs[found.run_id]
            if found.outcome is admission.Outcome.COLLECTED:
                assert not run.turn, "the messages of a run that was leased are fixed"
                assert run.ready_time <= run.create_time + 5 * SECOND
                self.inputs[run.run_id].append(new.request_id)
            else:
                self.inputs[run.run_id] = [new.request_id]
                last = self.last_accepted.get(run.session_key, 0)
                assert run.order > last, "places in the order are given out as accepted"
                self.last_accepted[run.session_key] = run.order
        return found

    @rule(
        session=st.sampled_from(SESSIONS),
        steer=st.booleans(),
        timeout=st.booleans(),
        tokens=st.sampled_from([None, None, 15, 45]),
        worker=st.sampled_from(["", "", "w", "x"]),
    )
    def message(
        self, session: str, steer: bool, timeout: bool, tokens: int | None, worker: str = ""
    ) -> None:
        more: dict[str, Any] = {"caps": Caps(max_tokens=tokens, reply_reserve=0.2)}
        more["preferred_worker"] = worker
        if timeout:
            more |= {"wall_timeout": 60 * SECOND, "run_timeout": 30 * SECOND}
        mode = QueueMode.STEER if steer else QueueMode.FOLLOWUP
        self.enqueue(self.new(session, f"q{next(self.ids)}", mode=mode, **more))

    @rule(
        session=st.sampled_from(SESSIONS),
        debounce=st.sampled_from([0, 1, 4]),
        spec=st.sampled_from("xxxy"),
        count=st.integers(1, 3),
    )
    def messages_to_collect(self, session: str, debounce: int, spec: str, count: int) -> None:
        for _ in range(count):
            more = {"mode": QueueMode.COLLECT, "debounce": debounce * SECOND, "spec": spec}
            self.enqueue(self.new(session, f"q{next(self.ids)}", **more))

    @rule(session=st.sampled_from(SESSIONS))
    def interrupt(self, session: str) -> None:
        known = self.k.sessions.get(session)
        holder = known.holder if known else ""
        new = self.new(session, f"q{next(self.ids)}", mode=QueueMode.INTERRUPT)
        found = self.enqueue(new)
        if not isinstance(found, admission.Accepted):
            return
        assert (found.outcome is admission.Outcome.INTERRUPTED) == bool(holder)
        assert holder not in self.k.runs or self.k.runs[holder].stopping
        session_now = self.k.sessions[session]
        jumping = [run_id for _, run_id in session_now.fresh if self.k.runs[run_id].jumps]
        assert jumping == [run_id for _, run_id in session_now.fresh[: len(jumping)]]
        assert jumping[-1] == new.run_id, "interrupts keep their order"

    @rule(session=st.sampled_from(SESSIONS), jump=st.booleans())
    def a_message_that_drops_others(self, session: str, jump: bool) -> None:
        known = self.k.sessions.get(session)
        holder = self.k.runs.get(known.holder) if known else None
        waiting = [run_id for _, run_id in known.fresh] if known else []
        steered = len(holder.steered) if holder else 0
        mode = QueueMode.INTERRUPT if jump else QueueMode.FOLLOWUP
        new = self.new(session, f"q{next(self.ids)}", mode=mode, lane_cap=3, drop_oldest=True)
        found = self.enqueue(new)
        if isinstance(found, admission.Accepted):
            gone = [run_id for run_id in waiting if run_id not in self.k.runs]
            assert len(gone) == max(0, len(waiting) + steered - 2)
            assert sorted(gone) == sorted(waiting)[: len(gone)], (
                "ids are in the order of acceptance"
            )
        elif found is not None:
            assert len(waiting) + steered >= 3
            assert len(waiting) < len(waiting) + steered - 2

    @precondition(lambda self: self.accepted)
    @rule(data=st.data(), other=st.booleans())
    def repeat_a_request(self, data: st.DataObject, other: bool) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.accepted)))
        if not request_id.startswith("q"):
            return
        new = self.new("a", request_id)
        if other:
            new = msgspec.structs.replace(new, body_hash=b"other")
        found = self.enqueue(new)
        if other:
            assert found is None or isinstance(found, RequestIdReused)
        elif isinstance(found, admission.Accepted):
            assert found.deduplicated

    @precondition(lambda self: self.k.runs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        run_id = data.draw(st.sampled_from(sorted(self.k.runs)))

        def apply(k: Kernel, now: int) -> int:
            return settling.cancel(k, k.runs[run_id], "stop", "request", now)

        flow = self.k.runs[run_id].flow_id
        if isinstance(self.quietly(apply), int) and flow == run_id:
            self.cancelled.add(run_id)
            self.admitted[run_id] = {stored.run.run_id for stored in self.flow(run_id)}

    def flow(self, flow_id: str) -> list[StoredRun]:
        query = RunQuery(flow_id=flow_id)
        found: list[StoredRun] = self.do(
            self.store.list_runs(query, before=0, after=0, limit=10_000)
        )
        return found

    @precondition(lambda self: self.k.runs)
    @rule(data=st.data())
    def steer_a_run(self, data: st.DataObject) -> None:
        run_id = data.draw(st.sampled_from(sorted(self.k.runs)))
        request_id = f"s{next(self.ids)}"
        self.quietly(
            lambda k, now: (
                steering.steer(k, run_id, request_id, b"h", b"", MESSAGE, now, most=3) and None
            ),
            requests=[request_id],
        )

    @rule(lane=st.sampled_from(["main", "subagent"]), limit=st.integers(0, 3))
    def change_a_limit(self, lane: str, limit: int) -> None:
        def apply(k: Kernel, now: int) -> None:
            k.lanes[lane].limit = limit
            k.changes.lanes[lane] = limit

        if self.k.lanes[lane].running > limit:
            self.lowered.add(lane)
        self.quietly(apply)

    # -- Workers ----------------------------------------------------------------------------------

    @rule(most=st.integers(0, 4), compare=st.booleans(), lost=st.booleans())
    def lease(self, most: int, compare: bool = False, lost: bool = False) -> None:
        """A poll. `compare` says which leases are held, `lost` loses the answer."""
        held = {(item.run.run_id, item.lease.token) for item in self.in_hand}

        async def work() -> list[Leased] | None:
            poll = _Poll("agent", "w", self.incarnation, most)
            future: asyncio.Future[None] = self.loop.create_future()

            def apply(k: Kernel, now: int) -> None:
                leasing.greet(k, "agent", "w", self.incarnation, now)
                if compare:
                    leasing.give_back_all_but(k, "agent", "w", held, now)
                self.engine._polls.append(poll)

            command = _Command(apply, future, (), (), (), ())
            try:
                await self.engine._turn([command])
            except StoreUnavailable as err:
                await self.engine._recover([command], err)
                with contextlib.suppress(StoreUnavailable):
                    await poll.future
                with contextlib.suppress(StoreUnavailable):
                    await future
                return None
            self.engine._forget(poll)
            return await poll.future if poll.assigned else []

        leased = self.do(work())
        if leased is None:
            return
        for item in leased:
            run = item.run
            assert run.state is RunState.RUNNING
            if not lost:
                self.held[run.run_id] = item
                self.goes_on_from(item)
            else:
                self.held.pop(run.run_id, None)
            self.saw(item)
        fresh = [item for item in leased if item.run.kept is None]
        assert len(fresh) <= most
        if len(leased) < most or not most:
            # Work conserving: what is ready and may go to the worker got a slot, or none was free.
            for session in self.k.sessions.values():
                ready = self.k.runs.get(session.ready)
                if ready is not None and (most or ready.kept) and self.takes(ready, "w"):
                    assert self.k.lanes[ready.lane].free == 0

    def saw(self, item: Leased) -> None:
        """Somebody was leased a run: what holds of every lease, whoever got it."""
        run = item.run
        if (run.turn, run.attempt) == (1, 1) and not run.jumps:
            orders = self.started.setdefault(run.session_key, [])
            if not orders or orders[-1] != run.order:
                assert not orders or run.order > orders[-1], "order of a session"
                orders.append(run.order)
        if item.resumption:
            turns_told = self.told.setdefault(run.run_id, {})
            told = turns_told.setdefault(run.turn, item.resumption.told)
            assert told == item.resumption.told, "the same for every attempt of a turn"
            others = [c for turn, cs in turns_told.items() if turn != run.turn for c in cs]
            assert not set(others) & set(told), "each end is told in exactly one turn"
            self.resumed(item)
            wait = item.resumption.wait
            if item.resumption.reason is ResumeReason.CHILDREN_SETTLED and wait.run_ids:  # type: ignore[union-attr]
                assert told, "a wait is satisfied by what no earlier turn was told"

    @property
    def in_hand(self) -> list[Leased]:
        """What the worker knows of: the leases under which it works, and those that it keeps."""
        return [*self.held.values(), *self.kept.values()]

    def takes(self, run: Run, worker: str) -> bool:
        """The rule in other words than the kernel's."""
        if run.kept is not None:
            return run.kept.worker == worker
        if run.preferred_worker in ("", worker):
            return True
        called = self.k.last_calls.get(("agent", run.preferred_worker), self.k.start_time)
        return self.clock.now_us() - called >= 30 * SECOND

    def goes_on_from(self, item: Leased) -> None:
        """The kept lease is good for events until the turn ends; of another attempt it was lost."""
        before = self.kept.pop(item.run.run_id, None)
        if before is None:
            return
        if item.run.kept is None:
            self.old.append((item.run.run_id, before.lease.token))
        else:
            assert (item.run.turn, item.run.attempt) == (before.run.turn + 1, 1)
            assert item.run.kept.token == before.lease.token
            self.before[item.run.run_id] = before

    @rule(most=st.integers(0, 4))
    def another_worker_asks(self, most: int) -> None:
        """It gives back at once what it gets: never what somebody keeps or may still come for."""

        def apply(k: Kernel, now: int) -> list[Leased]:
            ready = {
                s.ready: self.takes(k.runs[s.ready], "x") for s in k.sessions.values() if s.ready
            }
            leasing.greet(k, "agent", "x", 1, now)
            got = leasing.lease_ready(k, "agent", "x", 1, most, now)
            leasing.give_back_all_but(k, "agent", "x", set(), now)
            assert all(ready[item.run.run_id] for item in got)
            return got

        found = self.quietly(apply)
        assert found is None or len(found) <= most
        for item in found or ():
            self.saw(item)

    def resumed(self, item: Leased) -> None:
        """A turn but the first was leased: a subclass may look at what it starts with."""

    def pick(self, data: st.DataObject) -> Leased:
        return self.held[data.draw(st.sampled_from(sorted(self.held)))]

    def end(self, item: Leased, apply: Any) -> Any:
        """Ends a turn under a lease that may have been lost meanwhile."""
        run_id, token = item.run.run_id, item.lease.token
        alive = run_id in self.k.runs and self.k.runs[run_id].lease is not None
        newest = alive and self.k.runs[run_id].lease.token == token  # type: ignore[union-attr]
        found = self.quietly(apply, runs=[run_id])
        if found is None:
            return None
        if isinstance(found, Run) and found.lease is not None:
            assert found.stopping, "it would be kept, but has to stop first"
            return found
        if not isinstance(found, ServiceError) or isinstance(found, LeaseLost):
            assert newest == (not isinstance(found, LeaseLost)), "only the newest lease writes"
            del self.held[run_id]
            before = self.before.pop(run_id, None)
            if before is not None:
                self.old.append((run_id, before.lease.token))
            if isinstance(found, Run) and found.kept is not None:
                self.kept[run_id] = item
            else:
                self.old.append((run_id, token))
        return found

    @precondition(lambda self: self.kept)
    @rule(data=st.data(), how=st.sampled_from(["append", "fail", "retry", "release", "complete"]))
    def a_kept_lease_writes(self, data: st.DataObject, how: str) -> None:
        self.write_under(self.kept[data.draw(st.sampled_from(sorted(self.kept)))], how)

    def write_under(self, item: Leased, how: str) -> None:
        run_id, token = item.run.run_id, item.lease.token
        run = self.k.runs.get(run_id)
        good = run is not None and run.kept is not None and run.kept.token == token
        executes = run is not None and run.lease is not None

        def apply(k: Kernel, now: int) -> Any:
            if how == "append":
                turns.append(k, run_id, token, [], now)
                return True
            if how == "release":
                return leasing.copy(turns.release(k, run_id, token, "kr", now))
            if how == "complete":
                return self.completed(k, item, "kc", now)
            return leasing.copy(
                turns.fail(
                    k, run_id, token, "kf", failure=Failure("TURN_FAILED", "no"),
                    retryable=how == "retry", retry_after=0, taken=[], now=now,
                )
            )  # fmt: skip

        found = self.quietly(apply, runs=[run_id])
        if found is None:
            return
        lost = isinstance(found, LeaseLost)
        assert lost == (not good or how == "complete")
        if not good or (not lost and how != "append"):
            del self.kept[run_id]
            self.old.append((run_id, token))
            assert not (good and executes) or found.lease is None, "it ends the turn on its way"

    def completed(self, k: Kernel, item: Leased, digest: str, now: int) -> Run:
        return leasing.copy(
            turns.complete(
                k,
                item.run.run_id,
                item.lease.token,
                digest,
                result=RESULT,
                reply=MESSAGE,
                mode=AnnounceMode.ALL,
                taken=[],
                steered_is_next_prompt=False,
                now=now,
            )
        )

    @precondition(lambda self: self.held)
    @rule(data=st.data(), count=st.integers(1, 3))
    def spawn(self, data: st.DataObject, count: int) -> None:
        item = self.pick(data)
        for index in range(count):
            call = f"{item.run.turn}.1.{index}"
            new = self.new("", f"{item.run.run_id}/{call}", lane="subagent")
            found = self.enqueue(new, (item.run.run_id, item.lease.token), call)
            if isinstance(found, admission.Accepted) and not found.deduplicated:
                parent = self.k.runs[item.run.run_id]
                assert not parent.stopping
                assert self.k.runs[new.run_id].depth <= 3

    @precondition(lambda self: self.held)
    @rule(data=st.data(), used=st.integers(0, 10), fate=st.sampled_from([None, *LimitOutcome]))
    def call_a_model(self, data: st.DataObject, used: int, fate: LimitOutcome | None) -> None:
        """Reserved before, and told after; a call that has to wait, or is refused, is not made."""
        item = self.pick(data)
        run_id, token, call = item.run.run_id, item.lease.token, f"m{next(self.ids)}"

        def reserve(k: Kernel, now: int) -> reserving.Grant:
            return reserving.reserve(
                k,
                leasing.leased_run(k, run_id, token),
                call,
                provider_id="p",
                credential_id="",
                model="m",
                tokens=10,
                cost=0,
                now=now,
            )

        grant = self.quietly(reserve, runs=[run_id])
        if not isinstance(grant, reserving.Grant):
            return
        if grant.delay > SECOND:
            self.wait_for_a_grant(item, call)
        elif fate is not None:
            self.report(run_id, call, used if fate is LimitOutcome.ANSWERED else 0, fate)

    def wait_for_a_grant(self, item: Leased, call: str) -> None:
        self.end(
            item,
            lambda k, now: leasing.copy(
                turns.suspend(
                    k,
                    item.run.run_id,
                    item.lease.token,
                    f"w{item.lease.token}",
                    wait=Wait(kind=WaitKind.LIMIT, name="x", reservation=call),
                    hold_lane=True,
                    interim=b"",
                    taken=[],
                    now=now,
                )
            ),
        )

    def report(self, run_id: str, call: str, used: int, fate: LimitOutcome) -> None:
        def apply(k: Kernel, now: int) -> bool:
            usage = Usage(model_calls=1, output_tokens=used) if used else Usage()
            accounting.report(k, run_id, f"report/{call}", b"", usage, "", "p:m", now)
            reserving.settle(k, call, k.limits.key("p", "", "m"), fate, used, SECOND, now)
            return True

        line, above = [], run_id
        while above:  # the run and its ancestors, live or not
            line.append(above)
            above = self.do(self.store.get_runs([above]))[above].run.parent_id
        self.submit_until_done(apply, requests=[f"report/{call}"], runs=line)

    def submit_until_done(self, apply: Any, **needs: Any) -> None:
        while self.quietly(apply, **needs) is None:
            pass

    @precondition(lambda self: self.held)
    @rule(data=st.data(), each=st.booleans(), take=st.booleans())
    def complete(self, data: st.DataObject, each: bool, take: bool) -> None:
        item = self.pick(data)
        run = self.k.runs.get(item.run.run_id)
        had_children = bool(run and (run.live or run.untold))
        taken = list(run.steered) if run and take else []
        found = self.end(
            item,
            lambda k, now: leasing.copy(
                turns.complete(
                    k,
                    item.run.run_id,
                    item.lease.token,
                    f"c{item.lease.token}",
                    result=RESULT,
                    reply=MESSAGE,
                    mode=AnnounceMode.EACH if each else AnnounceMode.ALL,
                    taken=taken,
                    steered_is_next_prompt=False,
                    now=now,
                )
            ),
        )
        if isinstance(found, Run) and had_children:
            assert found.state is not RunState.SUCCEEDED, "a waiting run is never completed"

    @precondition(lambda self: self.held)
    @rule(
        data=st.data(),
        hold=st.booleans(),
        each=st.booleans(),
        after=st.sampled_from([0, 5]),
        timeout=st.sampled_from([0, 20]),
        limit=st.booleans(),
        keep=st.booleans(),
    )
    def suspend(
        self,
        data: st.DataObject,
        hold: bool,
        each: bool,
        after: int,
        timeout: int,
        limit: bool,
        keep: bool = False,
    ) -> None:
        item = self.pick(data)

        def apply(k: Kernel, now: int) -> Run:
            wait = Wait(
                kind=WaitKind.CHILDREN, mode=AnnounceMode.EACH if each else AnnounceMode.ALL
            )
            if limit:
                wait = Wait(kind=WaitKind.LIMIT, name="x", expire_time=now + 5 * SECOND)
            if after and hold and not item.run.depth:
                wait.yield_time = now + after * SECOND
            if timeout:
                wait.expire_time = now + timeout * SECOND
            return leasing.copy(
                turns.suspend(
                    k,
                    item.run.run_id,
                    item.lease.token,
                    f"u{item.lease.token}",
                    wait=wait,
                    hold_lane=hold or limit,
                    interim=MESSAGE,
                    taken=[],
                    now=now,
                    keep=keep,
                )
            )

        self.end(item, apply)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), retryable=st.booleans())
    def fail(self, data: st.DataObject, retryable: bool) -> None:
        item = self.pick(data)
        self.end(
            item,
            lambda k, now: leasing.copy(
                turns.fail(
                    k,
                    item.run.run_id,
                    item.lease.token,
                    f"f{item.lease.token}",
                    failure=Failure("TURN_FAILED", "no"),
                    retryable=retryable,
                    retry_after=0,
                    taken=[],
                    now=now,
                )
            ),
        )

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        item = self.pick(data)
        self.end(
            item,
            lambda k, now: leasing.copy(
                turns.release(k, item.run.run_id, item.lease.token, f"r{item.lease.token}", now)
            ),
        )

    @precondition(lambda self: self.old)
    @rule(data=st.data())
    def an_old_lease_writes(self, data: st.DataObject) -> None:
        run_id, token = data.draw(st.sampled_from(self.old))
        found = self.quietly(lambda k, now: turns.append(k, run_id, token, [], now), runs=[run_id])
        assert found is None or isinstance(found, LeaseLost)

    @rule()
    def the_worker_restarts(self) -> None:
        self.incarnation += 1

        def greet(k: Kernel, now: int) -> bool:
            leasing.greet(k, "agent", "w", self.incarnation, now)
            return True

        while self.quietly(greet) is None:  # a worker calls until it is answered
            pass
        gone = [*self.in_hand, *self.before.values()]
        self.old += [(i.run.run_id, i.lease.token) for i in gone]
        for leases in (self.held, self.kept, self.before):
            leases.clear()

    # -- Fate -------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1, 3, 11, 40]), extend=st.booleans())
    def time_passes(self, seconds: int, extend: bool) -> None:
        for _ in range(seconds):
            self.clock.advance(1)
            leases = [(i.run.run_id, i.lease.token) for i in self.in_hand]

            def apply(k: Kernel, now: int, leases: Any = leases) -> None:
                if extend and leases:
                    leasing.extend(k, "w", self.incarnation, leases, now)

            self.quietly(apply)

    @rule()
    def the_scheduler_dies(self) -> None:
        if self.outlives_its_object:
            self.do(self.store.close())
            self.store = Faulty(self.make_store())
        self.do(self._open())

    @rule()
    def the_store_refuses_a_commit(self) -> None:
        self.store.refuse = 1

    # -- What must hold ---------------------------------------------------------------------------

    @invariant()
    def one_executing_run_per_session(self) -> None:
        if not hasattr(self, "store"):
            return
        executing = [run for run in self.k.runs.values() if run.lease is not None]
        assert len(executing) == len({run.session_key for run in executing})
        leased = {run_id for run_ids in self.k.leased.values() for run_id in run_ids}
        assert leased == {run.run_id for run in self.k.runs.values() if run.held is not None}

    @invariant()
    def a_kept_lease_holds_no_slot(self) -> None:
        if not hasattr(self, "store"):
            return
        for run in self.k.runs.values():
            if run.kept is not None and run.lease is None:
                assert run.state in (RunState.SUSPENDED, RunState.QUEUED, RunState.CANCELLING)
            if run.wait is not None:
                assert run.wait.lease_worker == (run.kept.worker if run.kept else "")
            if run.stopping and run.kept is not None:
                assert run.state is RunState.CANCELLING

    @invariant()
    def lanes_keep_their_limits(self) -> None:
        if not hasattr(self, "store"):
            return
        for lane in self.k.lanes.values():
            running = sum(
                run.lane == lane.name and run.lease is not None for run in self.k.runs.values()
            )
            assert running == lane.running
            suspended = sum(
                run.lane == lane.name and run.state is RunState.SUSPENDED
                for run in self.k.runs.values()
            )
            assert suspended == lane.suspended
            if running <= lane.limit:
                self.lowered.discard(lane.name)
            assert running <= lane.limit or lane.name in self.lowered

    @invariant()
    def sessions_are_in_line(self) -> None:
        if not hasattr(self, "store"):
            return
        for key, session in self.k.sessions.items():
            assert session.unfinished == sum(r.session_key == key for r in self.k.runs.values())
            holders = [
                r.run_id for r in self.k.runs.values() if r.session_key == key and r.holds_lane
            ]
            assert holders == ([session.holder] if session.holder else [])
            standing = [r for _, r in session.fresh] + session.returning
            assert len(standing) == len(set(standing))
            for run in self.k.runs.values():
                if run.session_key == key and run.state is RunState.QUEUED:
                    assert run.holds_lane or run.run_id in standing

    @invariant()
    def what_is_ready_waits_for_a_slot_only(self) -> None:
        """With `lease`, which looks at free slots: work is conserved."""
        if not hasattr(self, "store"):
            return
        now = self.clock.now_us()
        for key, session in self.k.sessions.items():
            runs = [r for r in self.k.runs.values() if r.session_key == key]
            waiting_runs = [r for r in runs if r.state is RunState.QUEUED and not r.turn]
            first = [r for r in runs if r.holds_lane]
            first = first or sorted((r for r in waiting_runs if r.jumps), key=lambda r: r.order)
            first = first or [self.k.runs[run_id] for run_id in session.returning[:1]]
            first = first or sorted(waiting_runs, key=lambda r: r.order)
            ready = first[:1] if first and first[0].state is RunState.QUEUED else []
            assert session.ready == "".join(r.run_id for r in ready if r.ready_time <= now)
        standing = sum(lane.waiting for lane in self.k.lanes.values())
        assert standing == sum(bool(session.ready) for session in self.k.sessions.values())

    @invariant()
    def no_satisfied_wait_goes_on(self) -> None:
        if not hasattr(self, "store"):
            return
        for run in self.k.runs.values():
            assert (run.state is RunState.SUSPENDED) == (run.wait is not None)
            if run.wait is not None:
                assert not waiting.satisfied(run, run.wait)

    @invariant()
    def trees_close_from_the_leaves(self) -> None:
        if not hasattr(self, "store"):
            return
        runs = self.do(self.store.list_runs(RunQuery(), before=0, after=0, limit=10_000))
        by_id = {stored.run.run_id: stored.run for stored in runs}
        for run in by_id.values():
            parent = by_id.get(run.parent_id)
            if parent is None:
                continue
            assert run.depth == parent.depth + 1
            if not run.terminal:
                assert not parent.terminal, "a terminal run has no live descendant"
                assert run.run_id in parent.live
            else:
                assert run.run_id in parent.untold + parent.told
                if parent.state is RunState.SUCCEEDED:
                    assert run.run_id in parent.told, "every end is told before the run succeeds"
        for run_id in self.cancelled:
            assert {r.run_id for r in by_id.values() if r.flow_id == run_id} == self.admitted[
                run_id
            ], "no child is admitted to a cancelled tree"
            for run in by_id.values():
                if run.flow_id == run_id and not run.terminal:
                    assert run.state is RunState.CANCELLING, "nothing of a cancelled tree goes on"
                    assert run.held or run.live, "it waits for a worker or a descendant only"

    @invariant()
    def memory_is_what_the_store_says(self) -> None:
        if not hasattr(self, "store"):
            return
        snapshot = self.do(self.store.load())
        assert {r.run_id for r in snapshot.runs} == set(self.k.runs)
        for stored in snapshot.runs:
            run = self.k.runs[stored.run_id]
            assert _comparable(stored) == _comparable(run)
        assert snapshot.questions == list(self.k.questions)
        for key, (head, _) in snapshot.sessions.items():
            assert self.k.sessions[key].head == head

    @invariant()
    def a_run_answers_the_messages_that_it_was_given(self) -> None:
        if hasattr(self, "store"):
            self.check_inputs(list(self.k.runs))

    def check_inputs(self, run_ids: list[str]) -> None:
        for run_id, stored in self.do(self.store.get_runs(run_ids)).items():
            inputs = [e.request_id for e in run_pb2.Run.FromString(stored.payload).inputs]
            # What was steered and fell back is not noted here.
            assert inputs == self.inputs.get(run_id, inputs[:1])
            if stored.run.collected is not None:
                assert stored.run.collected.messages == len(inputs)

    @invariant()
    def budgets_are_kept(self) -> None:
        """Every call of this machine is reserved, and none uses more than that."""
        if not hasattr(self, "store"):
            return
        for run in self.k.runs.values():
            cap = run.caps.max_tokens
            held, _ = self.k.limits.held(run.run_id)
            assert held >= 0
            assert cap is None or run.tree_usage.tokens + held <= cap

    @invariant()
    def sequences_have_no_gap(self) -> None:
        if not hasattr(self, "store"):
            return
        rows = self.do(self.store.events(EventQuery(), 100_000))
        seen: dict[str, int] = {}
        position = 0
        for row in rows:
            assert row.position > position
            position = row.position
            assert row.sequence == seen.get(row.session_key, 0) + 1
            seen[row.session_key] = row.sequence
        for key, head in seen.items():
            query = EventQuery(session_key=key, after_sequence=head // 2)
            resumed = self.do(self.store.events(query, 100_000))
            assert [row.sequence for row in resumed] == list(range(head // 2 + 1, head + 1))

    @invariant()
    def a_run_is_reported_as_ended_once_and_then_no_more(self) -> None:
        if not hasattr(self, "store"):
            return
        query = EventQuery(kinds=frozenset({"run_state_changed"}))
        states: dict[str, RunState] = {}
        for row in self.do(self.store.events(query, 100_000)):
            change = event_pb2.Event.FromString(row.data).run_state_changed
            before = states.get(row.run_id, RunState.UNSPECIFIED)
            assert before not in TERMINAL, "a run that was reported as ended goes on"
            assert before == change.previous_state
            states[row.run_id] = RunState(change.state)
        for run_id, run in self.k.runs.items():
            assert states[run_id] is run.state

    # -- The end: faults stop, and everything ends ----------------------------------------------

    def teardown(self) -> None:
        try:
            if hasattr(self, "store"):
                self._finish()
        finally:
            with contextlib.suppress(Exception):
                self.do(self.store.close())
            self.loop.close()
            self.tmp.cleanup()

    def _finish(self) -> None:
        self.store.refuse = 0
        for lane in ("main", "subagent"):  # with every limit at one, any tree completes
            self.change_a_limit(lane, 1)
        self.the_worker_restarts()
        for _ in range(2000):
            if not self.k.runs:
                break
            self.lease(4)
            for item in list(self.held.values()):
                self.end(
                    item,
                    lambda k, now, item=item: self.completed(k, item, f"e{item.lease.token}", now),
                )
            self.clock.advance(1)
            self.quietly(lambda k, now: None)
        assert not self.k.runs, "every accepted run ends once faults stop"
        runs = self.do(self.store.list_runs(RunQuery(), before=0, after=0, limit=10_000))
        ended = {stored.run.run_id: stored.run.state for stored in runs}
        assert all(state in TERMINAL for state in ended.values())
        for run_id in self.accepted.values():
            assert run_id in ended, "nothing accepted is lost"
        self.check_inputs(list(ended))
        history: History = self.do(of_store(self.store))
        history.accepted, history.finished = self.accepted, True
        history.exact = False  # time passes without a scheduler
        assert_holds(history)
        assert all(not lane.running and not lane.waiting for lane in self.k.lanes.values())


def _comparable(run: Run) -> Any:
    data = msgspec.json.decode(msgspec.json.encode(run))
    data.pop("ready_since", None)  # when it became ready is not worth a write
    if data.get("lease"):
        data["lease"].pop("expire_time")  # extensions are not stored
        # What a restart leaves out of the executing time is stored with the next commit.
        data["lease"].pop("lease_time")
        data.pop("executed", None)
    if data.get("kept"):
        data["kept"].pop("expire_time")
    return data


class SqliteMachine(Machine):
    outlives_its_object = True

    def make_store(self) -> LaneStore:
        return SqliteStore(Path(self.tmp.name) / "s.db")


class PostgresMachine(Machine):
    outlives_its_object = True
    server: PostgresServer

    def __init__(self) -> None:
        super().__init__()
        self._database = self.server.database()
        self._url = self._database.__enter__()

    def make_store(self) -> LaneStore:
        return PostgresStore(PostgresAddress.parse(self._url), leads=3600)

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            self._database.__exit__(None, None, None)


_SLOW_IS_FINE = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


# A search takes what it takes; the bound only ends one that hangs.
@pytest.mark.timeout(900)
def test_invariants_on_memory() -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=90 * SCALE,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=_SLOW_IS_FINE,
        ),
    )


@pytest.mark.timeout(900)
def test_invariants_on_sqlite() -> None:
    run_state_machine_as_test(
        SqliteMachine,
        settings=settings(
            max_examples=30 * SCALE,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=_SLOW_IS_FINE,
        ),
    )


@pytest.mark.timeout(900)
def test_invariants_on_postgres(postgres: PostgresServer) -> None:
    machine = type("OnThisServer", (PostgresMachine,), {"server": postgres})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=6 * SCALE,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=_SLOW_IS_FINE,
        ),
    )
