"""Why a run is where it is: every reason, and their order."""

from __future__ import annotations

from scheduler_svc.domain import explain, reserving, settling
from scheduler_svc.domain.estimates import estimate
from scheduler_svc.domain.explain import (
    BackingOff,
    BehindRun,
    Collecting,
    Ended,
    Executing,
    LaneBusy,
    NoWorker,
    Reason,
    Stopping,
    WaitingForChildren,
    WaitingForLimit,
)
from scheduler_svc.domain.leasing import Leased
from scheduler_svc.domain.limits import ProviderRates
from scheduler_svc.domain.records import SECOND, Failure, QueueMode, Wait, WaitKind
from tests.rules import World


def why(world: World, run_id: str, *, asked_for: bool = False) -> list[Reason]:
    return explain.explain(world.k, world.run(run_id), world.now, asked_for=asked_for)


def kinds(reasons: list[Reason]) -> list[type]:
    return [type(reason.kind) for reason in reasons]


def test_a_run_that_executes() -> None:
    world = World()
    run_id = world.message("s")
    [leased] = world.lease()
    world.pass_time(3)
    [reason] = why(world, run_id)
    assert reason.kind == Executing(leased.lease)
    assert reason.text == "It has been executing turn 1 for 3.0 s."


def test_a_run_behind_others_of_its_session_and_of_its_lane() -> None:
    world = World()
    first = world.message("s", "c")
    world.lease()
    second, third = world.message("s", "c"), world.message("s", "c")
    [behind, busy] = why(world, third)
    assert isinstance(behind.kind, BehindRun)
    assert (behind.kind.run.run_id, behind.kind.ahead, behind.kind.wait) == (first, 2, None)
    assert behind.text == (
        "An earlier message of the session is being worked on; 2 are ahead in all."
    )
    assert isinstance(busy.kind, LaneBusy)
    assert [holder.run_id for holder in busy.kind.holders] == [first]
    # When nobody holds the lane it is the one directly ahead.
    world.complete(first, 1)
    [behind, busy] = why(world, third)
    assert isinstance(behind.kind, BehindRun)
    assert (behind.kind.run.run_id, behind.kind.ahead) == (second, 1)
    assert behind.text == "An earlier message of the session goes first."
    # The slot is free, but goes to the run ahead first.
    assert (
        busy.text
        == "The free slots of lane main go to others first; 1 other run will start before."
    )


def test_a_run_behind_one_that_waits_for_sub_agents() -> None:
    world = World()
    first = world.message("s")
    [leased] = world.lease()
    world.child(leased)
    world.child(leased)
    world.wait(leased)
    [reason] = why(world, world.message("s"))
    assert isinstance(reason.kind, BehindRun)
    assert reason.kind.run.run_id == first
    assert reason.kind.wait is not None
    assert reason.text == "An earlier message of the session waits for 2 sub-agents."


def test_a_run_that_waits_for_a_slot_of_its_lane() -> None:
    world = World(limit=2)
    holders = [world.message(f"busy-{n}", f"b{n}") for n in range(2)]
    world.lease(1)
    world.pass_time(1)
    world.lease(1)
    world.message("own", "c")
    world.message("x", "other")
    last = world.message("also-own", "c")
    [reason] = why(world, last)
    assert isinstance(reason.kind, LaneBusy)
    assert [holder.run_id for holder in reason.kind.holders] == holders, "longest first"
    assert (reason.kind.lane, reason.kind.limit, reason.kind.running) == ("main", 2, 2)
    assert (reason.kind.own_ahead, reason.kind.others_ahead, reason.kind.customers_ahead) == (
        1,
        1,
        1,
    )
    assert reason.text == "All 2 slots of lane main are taken; 2 other runs will start before."


def test_who_goes_first_is_counted_when_the_line_is_long() -> None:
    world = World()
    for n in range(explain.LOOKED_AT + 50):
        world.message(f"s{n}", f"c{n}")
    mine = [world.message(f"m{n}", "me") for n in range(3)]
    [reason] = why(world, mine[-1])
    assert isinstance(reason.kind, LaneBusy)
    assert reason.kind.own_ahead == 2
    assert reason.kind.others_ahead == reason.kind.customers_ahead == explain.LOOKED_AT + 50


def test_a_paused_lane() -> None:
    world = World(limit=0)
    [reason] = why(world, world.message("s"), asked_for=True)
    assert isinstance(reason.kind, LaneBusy)
    assert reason.kind.limit == 0
    assert reason.text == "The lane main is paused."


def test_nobody_asks_for_work() -> None:
    world = World()
    world.k.last_polls.clear()
    run_id = world.message("s")
    [reason] = why(world, run_id)
    assert reason.kind == NoWorker("agent", 0)
    assert reason.text == (
        "A slot is free, but no worker of queue agent asks for work (none has since the start)."
    )
    world.lease(0)
    asked = world.now
    world.pass_time(12)
    [reason] = why(world, run_id)
    assert reason.kind == NoWorker("agent", asked)
    assert "(the last one did 12.0 s ago)" in reason.text
    assert estimate(world.k, world.run(run_id), world.now).start == world.now
    world.pass_time(60)
    gone = estimate(world.k, world.run(run_id), world.now)
    assert (gone.position, gone.start) == (1, 0), "who knows when a worker comes"
    [reason] = why(world, run_id, asked_for=True)
    assert reason.text == "A slot is free; it starts at once."


def test_a_pause_between_attempts_says_what_the_last_one_died_of() -> None:
    world = World(limit=1)
    run_id = world.message("s")
    [leased] = world.lease()
    failure = Failure("MODEL_UNAVAILABLE", "the provider does not answer")
    world.fail(leased, failure)
    world.message("other")
    world.lease()
    [reason, busy] = why(world, run_id)
    assert reason.kind == BackingOff(world.now + SECOND, 1, 3, failure)
    assert reason.text == "Attempt 1 of 3 failed; the next one starts in 1.0 s."
    assert isinstance(busy.kind, LaneBusy)
    world.pass_time(1)
    world.k.refresh(world.k.sessions["s"], world.now)
    assert kinds(why(world, run_id)) == [LaneBusy]


def test_a_run_that_collects_messages() -> None:
    world = World()
    run_id = world.message("s", mode=QueueMode.COLLECT, debounce=SECOND // 2)
    told = estimate(world.k, world.run(run_id), world.now)
    assert (told.position, told.start) == (1, world.now + SECOND // 2)
    [reason] = why(world, run_id)
    assert reason.kind == Collecting(world.now + SECOND // 2)
    assert reason.text == "It waits 0.5 s for further messages, to answer them together."


def test_a_run_that_waits_for_sub_agents() -> None:
    world = World()
    run_id = world.message("s")
    [leased] = world.lease()
    children = [world.child(leased) for _ in range(3)]
    world.wait(leased)
    [first, *_] = world.lease()
    world.complete(first.run.run_id, first.lease.token)
    [reason] = why(world, run_id)
    assert isinstance(reason.kind, WaitingForChildren)
    assert [ref.run_id for ref in reason.kind.live] == children[1:]
    assert (reason.kind.live_count, reason.kind.settled_count) == (2, 1)
    assert reason.kind.holds_lane
    assert reason.text == "It waits for 2 sub-agents; 1 other already done."
    # What comes next: others have taken the slot meanwhile.
    world.message("other")
    world.lease()
    assert kinds(why(world, run_id)) == [WaitingForChildren, LaneBusy]


def test_a_run_that_waits_for_a_limit() -> None:
    world = World()
    run_id = world.message("s")
    [leased] = world.lease()
    until = world.now + 7 * SECOND
    world.wait(leased, Wait(kind=WaitKind.LIMIT, name="max_sessions", expire_time=until))
    [reason] = why(world, run_id)
    assert reason.kind == WaitingForLimit("", "max_sessions", until)
    assert reason.text == "It waits for max sessions for 7.0 s more."


def test_a_run_that_waits_for_its_provider() -> None:
    world = World(providers={"openai": ProviderRates(requests_per_minute=6)})
    runs = [world.message("s"), world.message("other")]

    def call(leased: Leased) -> reserving.Grant:
        run = world.run(leased.run.run_id)
        return reserving.reserve(
            world.k,
            run,
            f"call-{run.run_id}",
            provider_id="openai",
            credential_id="key",
            model="m",
            tokens=0,
            cost=0,
            now=world.now,
        )

    for _ in runs:
        [leased] = world.lease()
        grant = call(leased)
        if grant.delay:
            world.wait(leased, Wait(kind=WaitKind.LIMIT, reservation=grant.reservation_id))
        else:
            world.complete(leased.run.run_id, leased.lease.token)
    [reason] = why(world, runs[1])
    assert isinstance(reason.kind, WaitingForLimit)
    assert (reason.kind.provider, reason.kind.limit) == ("openai", "requests_per_minute")
    assert reason.kind.until == world.now + 10_200_000
    assert reason.text == ("It waits for requests per minute of provider openai for 10.2 s more.")
    # It comes back then, before what waits behind it in its session.
    behind = world.message("other")
    told = estimate(world.k, world.run(behind), world.now)
    assert told.start == reason.kind.until + 5 * SECOND


def test_a_run_that_is_being_stopped_names_who_has_not_confirmed() -> None:
    world = World()
    run_id = world.message("s")
    [leased] = world.lease()
    child = world.child(leased)
    world.wait(leased)
    world.lease()
    settling.cancel(world.k, world.run(run_id), "changed my mind", "request", world.now)
    world.pass_time(2)
    [reason] = why(world, run_id)
    assert isinstance(reason.kind, Stopping)
    assert [ref.run_id for ref in reason.kind.unconfirmed] == [child]
    assert (reason.kind.reason, reason.kind.elapsed) == ("changed my mind", 2 * SECOND)
    assert reason.text == (
        "It is being stopped (changed my mind); 1 run of its tree has not confirmed after 2.0 s."
    )


def test_runs_that_ended() -> None:
    world = World()
    run_id = world.message("s")
    [leased] = world.lease()
    run = world.run(run_id)
    world.complete(run_id, leased.lease.token)
    [reason] = explain.explain(world.k, run, world.now, asked_for=False)
    assert reason == Reason(Ended(None), "It succeeded.")
    gone = world.run(world.message("s"))
    settling.cancel(world.k, gone, "no longer needed", "request", world.now)
    assert explain.ended(gone).text == "It was cancelled: no longer needed."
