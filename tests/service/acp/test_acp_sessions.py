"""What happens to sessions, moment by moment."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest

from acp_svc.domain import session as rules
from acp_svc.domain.permissions import PermissionMode
from acp_svc.domain.session import Opening, Session, State
from acp_svc.domain.settings import Changes
from acp_svc.live import Full
from acp_svc.store.sessions import Chosen
from conveyor.acp.v1 import session_pb2 as pb
from svckit.clock import FakeClock
from svckit.errors import (
    AcpBackendUnavailable,
    AcpCwdNotAllowed,
    AcpSessionInitFailed,
    AcpSessionNotFound,
    InvalidField,
    RequestIdReused,
    ShuttingDown,
)
from svckit.testing import eventually
from tests.service.acp.bench_sessions import Bench, House, bench, refusal


async def state(b: Bench, session_id: str) -> State:
    return (await b.sessions.find(session_id)).state


# Spawning


async def test_the_same_request_gives_the_same_session(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        first = await b.sessions.spawn(b.spec(label="a"), request_id="q")
        again = await b.sessions.spawn(b.spec(label="a"), request_id="q")
        assert again == first
        assert len(b.house.orders) == 1
        with pytest.raises(RequestIdReused):
            await b.sessions.spawn(b.spec(label="b"), request_id="q")
        assert first.spec.session_key == f"agent:held:acp:{first.session_id}"
        assert (first.spec.cwd, first.worker) == (str(b.root), "acp-0")


async def test_a_caller_that_gives_up_finds_the_session_when_it_asks_again(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        b.house.opens.clear()
        calls = [asyncio.create_task(b.sessions.spawn(b.spec(), request_id="q")) for _ in range(2)]
        await eventually(lambda: bool(b.house.orders))
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        b.house.opens.set()
        session = await b.sessions.spawn(b.spec(), request_id="q")
        assert session.state is State.READY
        assert len(b.house.orders) == 1


async def test_a_spawn_that_fails_stays_failed_for_its_request(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        b.house.fails = [
            AcpSessionInitFailed("no", metadata={"cause": "load", "lastWords": "words"})
        ]
        for _ in range(2):
            with pytest.raises(AcpSessionInitFailed) as caught:
                await b.sessions.spawn(b.spec(), request_id="q")
            assert caught.value.metadata == {"cause": "load", "lastWords": "words"}
        [failed] = await b.sessions.page(Chosen(tuple(State)), before="", limit=5)
        assert failed.state is State.FAILED
        with pytest.raises(AcpSessionNotFound):
            await b.sessions.open(failed.session_id)


async def test_a_run_opens_what_was_spawned_for_it(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        made = await b.sessions.create(b.spec(), request_id="q")
        assert (made.state, b.house.orders) == (State.STARTING, [])
        live = await b.sessions.open(made.session_id)
        assert (live.session.state, live.reopened) == (State.READY, None)
        assert live is await b.sessions.open(made.session_id)


# Directories


async def test_a_directory_outside_the_roots_is_refused_however_it_is_written(
    tmp_path: Path,
) -> None:
    async with bench(tmp_path) as b:
        (b.root / "link").symlink_to("/etc")
        (b.root / "in").mkdir()
        (b.root / "inner").symlink_to(b.root / "in")
        (tmp_path / "work-not").mkdir()
        outside = ["/etc", f"{b.root}/../", f"{b.root}/link", "work", ".", "~", f"{b.root}-not"]
        for cwd in (*outside, "/does/not/exist"):
            with pytest.raises(AcpCwdNotAllowed) as caught:
                await b.sessions.create(b.spec(cwd=cwd), request_id="q")
            assert caught.value.metadata == {"cwd": cwd}
        (b.root / "circle").symlink_to(b.root / "circle")
        for name in ("none", "\0", "circle", "circle/in", "x" * 300):
            cwd = f"{b.root}/{name}"
            with pytest.raises(InvalidField):
                await b.sessions.create(b.spec(cwd=cwd), request_id="q")
        # A link that stays inside is followed once, and the process starts where it led.
        made = await b.sessions.create(b.spec(cwd=f"{b.root}/inner/../in/."), request_id="q")
        assert made.spec.cwd == str(b.root / "in")
        made = await b.sessions.create(b.spec(cwd=f"{b.root}/inner"), request_id="i")
        assert made.spec.cwd == str(b.root / "in")


async def test_a_directory_that_became_a_link_since_is_not_started_in(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        (b.root / "deep" / "in").mkdir(parents=True)
        made = await b.sessions.create(b.spec(cwd=f"{b.root}/deep/in"), request_id="q")
        (tmp_path / "elsewhere" / "in").mkdir(parents=True)
        (b.root / "other" / "in").mkdir(parents=True)
        for elsewhere in (tmp_path / "elsewhere", b.root / "other"):
            (b.root / "deep").rename(b.root / f"kept-{elsewhere.name}")
            (b.root / "deep").symlink_to(elsewhere)
            with pytest.raises((AcpCwdNotAllowed, AcpSessionNotFound)):
                await b.sessions.open(made.session_id)
            (b.root / "deep").unlink()
            (b.root / f"kept-{elsewhere.name}").rename(b.root / "deep")
        assert b.house.orders == []


async def test_a_directory_that_becomes_a_link_while_the_process_starts(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        (b.root / "in").mkdir()
        made = await b.sessions.create(b.spec(cwd=f"{b.root}/in"), request_id="q")
        b.house.opens.clear()
        opening = asyncio.create_task(b.sessions.open(made.session_id))
        await eventually(lambda: bool(b.house.running))
        (b.root / "in").rmdir()
        (b.root / "in").symlink_to(tmp_path)
        b.house.opens.set()
        with pytest.raises(AcpCwdNotAllowed):
            await opening
        assert not b.house.running


# What a client may ask for


async def test_a_variable_that_is_no_longer_allowed_is_not_given_to_an_old_session(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path}/acp.db"
    async with bench(tmp_path, database_url=url, env_names=("OURS", "THEIRS")) as b:
        session_id = await b.spawned(env_names=["OURS", "THEIRS"])
        assert {"OURS", "THEIRS"} <= set(b.house.orders[-1].env_names)
    async with bench(tmp_path, database_url=url, env_names=("OURS",)) as b:
        await b.reaper.recover()
        await b.sessions.open(session_id)
        assert "OURS" in b.house.orders[-1].env_names
        assert "THEIRS" not in b.house.orders[-1].env_names


async def test_a_client_reads_no_variable_that_is_not_named_for_it(tmp_path: Path) -> None:
    async with bench(tmp_path, env_names=("PROXY",)) as b:
        with pytest.raises(InvalidField) as caught:
            await b.sessions.create(b.spec(env_names=["PROXY", "API_KEY"]), request_id="q")
        assert caught.value.metadata == {"field": "spec.env_names[1]"}
        await b.spawned(env_names=["PROXY"])
        assert b.house.orders[0].env_names == ("PROXY",)


async def test_a_session_of_a_harness_is_resumed_by_its_customer_and_only_once(
    tmp_path: Path,
) -> None:
    async with bench(tmp_path) as b:
        first = await b.spawned("1", customer_key="ann")
        await b.worked(first)
        upstream = (await b.sessions.find(first)).upstream_id
        with pytest.raises(InvalidField, match=first):
            await b.spawned("2", customer_key="ann", resume_id=upstream)
        await b.sessions.close(first)
        with pytest.raises(InvalidField, match="no session"):
            await b.spawned("3", customer_key="bob", resume_id=upstream)
        again = await b.spawned("4", customer_key="ann", resume_id=upstream)
        session = await b.sessions.find(again)
        assert (session.upstream_id, session.opening) == (upstream, Opening.LOADED)
        assert b.house.orders[-1].must_resume


async def test_what_a_session_left_behind_in_its_harness_is_for_no_other_customer(
    tmp_path: Path,
) -> None:
    async with bench(tmp_path) as b:
        session_id = await b.spawned("1", customer_key="ann")
        await b.worked(session_id, "r1")
        upstream = (await b.sessions.find(session_id)).upstream_id
        # A new conversation takes its place, and then not even the session is known any more.
        await b.sessions.configure(session_id, Changes(fresh=True))
        await b.worked(session_id, "r2")
        assert (await b.sessions.find(session_id)).upstream_id not in ("", upstream)
        with pytest.raises(InvalidField, match="names no session"):
            await b.spawned("2", customer_key="bob", resume_id=upstream)
        await b.sessions.close(session_id)
        b.clock.advance(400 * 86_400)
        await b.reaper.remove_old(b.clock.now_us())
        with pytest.raises(AcpSessionNotFound):
            await b.sessions.find(session_id)
        with pytest.raises(InvalidField, match="names no session"):
            await b.spawned("3", customer_key="bob", resume_id=upstream)
        await b.spawned("4", customer_key="ann", resume_id=upstream)


# Room


async def test_the_idlest_makes_room_and_comes_back(tmp_path: Path) -> None:
    async with bench(tmp_path, max_sessions=2) as b:
        first, second = await b.spawned("1"), await b.spawned("2")
        await b.worked(first)
        await b.worked(second)
        third = await b.spawned("3")
        assert await state(b, first) is State.PARKED
        assert await state(b, second) is State.READY
        live = await b.sessions.open(first)
        assert (live.reopened, b.house.orders[-1].upstream_id) == (Opening.LOADED, "up-1")
        assert [await state(b, s) for s in (second, third)] == [State.PARKED, State.READY]
        async with b.sessions.busy(live, "r") as live:
            assert live.reopened is Opening.LOADED
        async with b.sessions.busy(live, "r2") as live:
            assert live.reopened is None
        assert b.house.most == 2


async def test_when_all_are_at_work_nobody_waits_inside(tmp_path: Path) -> None:
    async with bench(tmp_path, max_sessions=1) as b:
        first = await b.spawned("1")
        made = await b.sessions.create(b.spec(), request_id="2")
        async with b.sessions.busy(await b.sessions.open(first), "r"):
            with pytest.raises(Full) as caught:
                await b.sessions.open(made.session_id)
            assert caught.value.metadata == {"sessions": "1", "maxSessions": "1"}
            assert caught.value.retry_after
            # A run comes again later; a caller that wants an answer now leaves nothing behind.
            assert await state(b, made.session_id) is State.STARTING
            with pytest.raises(Full):
                await b.sessions.spawn(b.spec(), request_id="3")
            assert len(await b.sessions.page(Chosen(), before="", limit=9)) == 2
        assert (await b.sessions.spawn(b.spec(), request_id="3")).state is State.READY


async def test_a_spawn_that_found_no_room_takes_nothing_from_its_repetition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(tmp_path, max_sessions=1) as b:
        first = await b.spawned("1")
        reached, go_on = asyncio.Event(), asyncio.Event()
        remove = b.store.remove_unopened

        async def late(session_id: str) -> None:
            reached.set()
            await go_on.wait()
            await remove(session_id)

        monkeypatch.setattr(b.store, "remove_unopened", late)
        live = await b.sessions.open(first)
        async with b.sessions.busy(live, "r"):
            refused = asyncio.create_task(b.sessions.spawn(b.spec(), request_id="2"))
            await reached.wait()
        # Room, and the same call again, before the refusal is cleared up.
        again = await b.sessions.spawn(b.spec(), request_id="2")
        go_on.set()
        with pytest.raises(Full):
            await refused
        assert await state(b, again.session_id) is State.READY


async def test_by_setting_a_spawn_is_refused_when_it_would_wait(tmp_path: Path) -> None:
    async with bench(tmp_path, max_sessions=1, when_full="reject") as b:
        first = await b.spawned("1")
        await b.sessions.create(b.spec(), request_id="2")
        async with b.sessions.busy(await b.sessions.open(first), "r"):
            with pytest.raises(Full):
                await b.sessions.create(b.spec(), request_id="3")


async def test_a_session_that_would_forget_is_not_parked_for_another(tmp_path: Path) -> None:
    async with bench(tmp_path, house=House(loads=False), max_sessions=1) as b:
        first = await b.spawned("1")
        await b.worked(first)
        with pytest.raises(Full):
            await b.spawned("2")
        assert await state(b, first) is State.READY


async def test_however_many_come_at_once_there_are_never_too_many(tmp_path: Path) -> None:
    async with bench(tmp_path, max_sessions=3) as b:
        ids = [(await b.sessions.create(b.spec(), request_id=str(i))).session_id for i in range(9)]

        async def work(session_id: str, run: str) -> None:
            while True:
                try:
                    async with b.sessions.busy(await b.sessions.open(session_id), run):
                        await asyncio.sleep(0)
                        return
                except Full:
                    await asyncio.sleep(0)

        await asyncio.gather(*(work(s, f"{s}{i}") for s in ids for i in range(3)))
        assert b.house.most == 3


# Turns


async def test_two_turns_of_a_session_never_overlap(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        live = await b.sessions.open(await b.spawned())
        inside: list[str] = []

        async def turn(run_id: str) -> None:
            async with b.sessions.busy(live, run_id):
                inside.append(run_id)
                assert len(inside) == 1
                await asyncio.sleep(0)
                assert (await b.sessions.find(live.session.session_id)).run_id == run_id
                inside.remove(run_id)

        await asyncio.gather(*(turn(f"r{i}") for i in range(5)))


async def test_a_turn_is_seen_from_outside(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        session_id = await b.spawned()
        async with b.sessions.busy(await b.sessions.open(session_id), "r") as live:
            assert await state(b, session_id) is State.BUSY
            await b.sessions.asking(live, 2)
            asking = await b.sessions.find(session_id)
            assert (asking.state, asking.open_questions) == (State.ASKING, 2)
            await b.sessions.asking(live, 0)
            assert await state(b, session_id) is State.BUSY
            assert await b.sessions.cancel_turn(session_id, "enough") == "r"
        assert b.scheduler.cancelled == ["r"]
        assert await state(b, session_id) is State.READY
        assert await b.sessions.cancel_turn(session_id, "enough") == ""


async def test_a_crash_at_work_can_be_opened_again_inside_the_turn(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        session_id = await b.spawned()
        async with b.sessions.busy(await b.sessions.open(session_id), "r") as live:
            await b.sessions.mark_sent(session_id, "r", "1")
            b.held(session_id).die()
            await eventually(lambda: not b.house.running)
            again = await b.sessions.open(session_id)
            assert again is not live
            assert (again.reopened, await state(b, session_id)) == (Opening.LOADED, State.BUSY)
        assert await state(b, session_id) is State.READY


async def test_a_crash_while_nobody_looks_is_said_and_mended_by_the_next_prompt(
    tmp_path: Path,
) -> None:
    async with bench(tmp_path) as b:
        session_id = await b.spawned()
        await b.worked(session_id)
        b.held(session_id).die()

        async def parked() -> bool:
            return await state(b, session_id) is State.PARKED

        await eventually(parked)
        trouble = (await b.sessions.find(session_id)).trouble
        assert trouble is not None
        assert trouble.reason == "ACP_BACKEND_UNAVAILABLE"
        assert trouble.metadata["lastWords"] == "the end"
        assert (await b.sessions.open(session_id)).reopened is Opening.LOADED
        assert (await b.sessions.find(session_id)).trouble is None


async def test_opening_again_that_fails_leaves_the_session_for_another_try(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        session_id = await b.spawned()
        await b.worked(session_id)
        await b.processes.park(b.processes.place(session_id), "test")
        b.house.fails = [AcpBackendUnavailable("away")]
        with pytest.raises(AcpBackendUnavailable):
            await b.sessions.open(session_id)
        assert await state(b, session_id) is State.PARKED
        assert (await b.sessions.open(session_id)).session.state is State.READY


async def test_a_session_for_one_turn_closes_after_it(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        session_id = await b.spawned(mode=pb.ACP_SESSION_MODE_ONESHOT)
        await b.worked(session_id)
        await eventually(lambda: not b.house.running)

        async def closed() -> bool:
            return await state(b, session_id) is State.CLOSED

        await eventually(closed)
        with pytest.raises(AcpSessionNotFound):
            await b.sessions.open(session_id)


async def test_the_newest_prompt_of_a_run_is_known_also_when_the_clock_was_set_back(
    tmp_path: Path,
) -> None:
    async with bench(tmp_path) as b:
        session_id = await b.spawned()
        await b.sessions.mark_sent(session_id, "r", "turn-9")
        await b.sessions.ended("r", "turn-9", b"old")
        b.clock.advance(-60)
        await b.sessions.mark_sent(session_id, "r", "turn-10")
        sent = await b.sessions.was_sent("r")
        assert sent is not None
        assert (sent.key, sent.ended) == ("turn-10", False)


async def test_a_prompt_that_was_sent_is_known_after_its_end(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        session_id = await b.spawned()
        assert await b.sessions.was_sent("r") is None
        await b.sessions.mark_sent(session_id, "r", "1")
        await b.sessions.mark_sent(session_id, "r", "1")
        sent = await b.sessions.was_sent("r")
        assert sent is not None
        assert (sent.key, sent.session_id, sent.ended) == ("1", session_id, False)
        b.clock.advance(1)
        await b.sessions.ended("r", "1", b"said")
        await b.sessions.mark_sent(session_id, "r", "2")
        newest = await b.sessions.was_sent("r")
        assert newest is not None
        assert (newest.key, newest.ended) == ("2", False)
        await b.sessions.close(session_id)
        with pytest.raises(AcpSessionNotFound):
            await b.sessions.mark_sent(session_id, "r", "3")


# Settings


async def test_settings_count_from_the_next_turn(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        session_id = await b.spawned()
        async with b.sessions.busy(await b.sessions.open(session_id), "r"):
            changed = await b.sessions.configure(
                session_id, Changes(harness_mode="plan", model="b", options={"effort": "high"})
            )
            assert b.held(session_id).told == []
            assert changed.spec.model == "b"
        held = b.held(session_id)
        async with b.sessions.busy(await b.sessions.open(session_id), "r2") as live:
            assert held.told == [("effort", "high"), ("model", "b"), ("mode", "plan")]
            assert live.session.harness_mode == "plan"
            assert live.session.options == {"effort": "high"}
        # And of one that waits, at once.
        shown = await b.sessions.configure(session_id, Changes(harness_mode="ask"))
        assert (shown.harness_mode, held.told[-1]) == ("ask", ("mode", "ask"))


async def test_a_setting_that_the_harness_refuses_changes_nothing(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        session_id = await b.spawned()
        before = await b.sessions.find(session_id)
        for wrong in (Changes(model="c"), Changes(harness_mode="x"), Changes(options={"x": "1"})):
            with pytest.raises(InvalidField):
                await b.sessions.configure(session_id, wrong)
        with pytest.raises(AcpCwdNotAllowed):
            await b.sessions.configure(session_id, Changes(cwd="/etc"))
        b.house.refuses = {"effort": refusal("settings.options[effort]")}
        with pytest.raises(InvalidField):
            await b.sessions.configure(
                session_id, Changes(label="l", model="b", options={"effort": "high"})
            )
        after = await b.sessions.find(session_id)
        assert (after.spec, after.wanted_options) == (before.spec, before.wanted_options)
        assert b.held(session_id).told == [("effort", "high")]
        # One that took a part of it before is not believed to be as it was.
        b.house.refuses = {"model": refusal("settings.model")}
        with pytest.raises(InvalidField):
            await b.sessions.configure(session_id, Changes(model="b", options={"effort": "high"}))
        assert (await b.sessions.find(session_id)).spec == before.spec
        first = b.held(session_id)
        await b.sessions.open(session_id)
        assert not first.alive


async def test_a_setting_refused_at_the_turn_is_withdrawn_after_one_failure(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        session_id = await b.spawned()
        live = await b.sessions.open(session_id)
        async with b.sessions.busy(live, "r"):
            await b.sessions.configure(session_id, Changes(options={"effort": "high"}))
        b.house.refuses = {"effort": refusal("settings.options[effort]")}
        with pytest.raises(InvalidField):
            async with b.sessions.busy(live, "r2"):
                pass
        async with b.sessions.busy(live, "r3"):
            assert (await b.sessions.find(session_id)).wanted_options == {}


async def test_permissions_that_need_another_sandbox_need_another_process(tmp_path: Path) -> None:
    async with bench(tmp_path, house=House(sandboxes=True)) as b:
        session_id = await b.spawned()
        await b.worked(session_id)
        first = b.held(session_id)
        await b.sessions.configure(session_id, Changes(permission_mode=PermissionMode.ASK))
        assert first.alive
        live = await b.sessions.open(session_id)
        assert not first.alive
        assert live.reopened is Opening.LOADED
        assert b.house.orders[-1].permission_mode is PermissionMode.ASK


async def test_another_directory_opens_a_new_conversation(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        session_id = await b.spawned()
        await b.worked(session_id)
        (b.root / "other").mkdir()
        await b.sessions.configure(session_id, Changes(cwd=f"{b.root}/other"))
        live = await b.sessions.open(session_id)
        assert (live.reopened, b.house.orders[-1].upstream_id) == (Opening.NEW, "")
        assert b.house.orders[-1].cwd == b.root / "other"


async def test_a_session_that_is_to_be_fresh_forgets_with_its_next_turn(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        session_id = await b.spawned()
        await b.sessions.configure(session_id, Changes(fresh=True))
        assert (await b.sessions.open(session_id)).reopened is None, "nothing was said yet"
        live = await b.sessions.open(session_id)
        async with b.sessions.busy(live, "r"):
            await b.sessions.mark_sent(session_id, "r", "k")
            await b.sessions.configure(session_id, Changes(fresh=True))
            assert b.held(session_id) is live.connection, "the turn at work keeps what it knows"
        live = await b.sessions.open(session_id)
        assert (live.reopened, b.house.orders[-1].upstream_id) == (Opening.NEW, "")
        assert (await b.sessions.open(session_id)) is live


async def test_before_it_opened_nothing_is_known_of_what_it_offers(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        made = await b.sessions.create(b.spec(), request_id="q")
        with pytest.raises(AcpSessionInitFailed) as caught:
            await b.sessions.configure(made.session_id, Changes(model="a"))
        assert caught.value.metadata["cause"] == "not_ready"
        await b.sessions.configure(made.session_id, Changes(label="name"))


# Ending


async def test_closing_cancels_what_runs_and_waits_for_it(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        session_id = await b.spawned()
        async with b.sessions.busy(await b.sessions.open(session_id), "r"):
            held = b.held(session_id)
            closing = asyncio.create_task(b.sessions.close(session_id))
            await eventually(lambda: b.scheduler.cancelled == ["r"])
            assert held.alive, "the turn has its time to end"
            with pytest.raises(AcpSessionNotFound):
                await b.sessions.open(session_id)
        closed = await closing
        assert (closed.state, closed.worker, closed.run_id) == (State.CLOSED, "", "")
        assert not held.alive
        assert await b.sessions.close(session_id) == closed
        for call in (
            b.sessions.open(session_id),
            b.sessions.configure(session_id, Changes(label="x")),
        ):
            with pytest.raises(AcpSessionNotFound):
                await call


async def test_a_turn_that_does_not_end_does_not_keep_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acp_svc.sessions.LEARN_SECONDS", 0.0)
    async with bench(tmp_path, cancel_seconds=0.5) as b:
        session_id = await b.spawned()
        async with b.sessions.busy(await b.sessions.open(session_id), "r"):
            assert (await b.sessions.close(session_id)).state is State.CLOSED
            assert not b.house.running


async def test_closing_ends_an_opening(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        b.house.opens.clear()
        made = await b.sessions.create(b.spec(), request_id="q")
        opening = asyncio.create_task(b.sessions.open(made.session_id))
        await eventually(lambda: bool(b.house.running))
        assert (await b.sessions.close(made.session_id)).state is State.CLOSED
        with pytest.raises(AcpSessionNotFound):
            await opening
        assert not b.house.running


async def test_idle_ones_are_closed_and_those_at_work_are_not(tmp_path: Path) -> None:
    async with bench(tmp_path, idle_minutes=10) as b:
        idle, busy, parked = [await b.spawned(str(i)) for i in range(3)]
        await b.processes.park(b.processes.place(parked), "test")
        async with b.sessions.busy(await b.sessions.open(busy), "r"):
            b.clock.advance(590)
            await b.reaper.look()
            assert await state(b, idle) is State.READY
            b.clock.advance(20)
            await b.reaper.look()
            assert await state(b, idle) is State.CLOSED
            assert await state(b, parked) is State.CLOSED
            assert await state(b, busy) is State.BUSY


async def test_one_whose_run_waits_for_room_is_not_idle(tmp_path: Path) -> None:
    async with bench(tmp_path, max_sessions=1, idle_minutes=10) as b:
        first = await b.spawned("1")
        waiting = await b.sessions.create(b.spec(), request_id="2")
        live = await b.sessions.open(first)
        async with b.sessions.busy(live, "r"):
            for _ in range(4):
                b.clock.advance(300)
                with pytest.raises(Full):
                    await b.sessions.open(waiting.session_id)
                await b.reaper.look()
            assert await state(b, waiting.session_id) is State.STARTING
        await b.sessions.open(waiting.session_id)


async def test_a_spawn_whose_caller_never_came_back_is_given_up(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        waited = await b.sessions.create(b.spec(), request_id="1", deferred=False)
        queued = await b.sessions.create(b.spec(), request_id="2", deferred=True)
        b.clock.advance(301)
        await b.reaper.look()
        assert await state(b, waited.session_id) is State.FAILED
        assert await state(b, queued.session_id) is State.STARTING


async def test_draining_parks_what_is_open_and_opens_nothing_more(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        ready = await b.spawned("1")
        b.house.opens.clear()
        made = await b.sessions.create(b.spec(), request_id="2")
        opening = asyncio.create_task(b.sessions.open(made.session_id))
        await eventually(lambda: len(b.house.running) == 2)
        await b.processes.drain()
        assert not b.house.running
        with pytest.raises(ShuttingDown):
            await opening
        with pytest.raises(ShuttingDown):
            await b.sessions.open(ready)
        assert await state(b, ready) is State.PARKED
        assert await state(b, made.session_id) is State.STARTING


async def test_after_a_restart_sessions_are_opened_again_and_say_how(tmp_path: Path) -> None:
    url, clock = str(tmp_path / "acp.db"), FakeClock()
    async with bench(tmp_path, database_url=url, clock=clock) as b:
        told, untold, closing = [await b.spawned(str(i)) for i in range(3)]
        await b.worked(told)
        await b.sessions.open(told)
        rows = {s: await b.sessions.find(s) for s in (told, untold, closing)}
    async with bench(tmp_path, database_url=url, clock=clock) as b:
        # As a life leaves them that ends without a word.
        for session_id, row in rows.items():
            await b.store.change(session_id, partial(_as, row))
        await b.store.change(closing, rules.closing)
        await b.reaper.recover()
        assert [await state(b, s) for s in (told, untold, closing)] == [
            State.PARKED,
            State.PARKED,
            State.CLOSED,
        ]
        assert (await b.sessions.open(told)).reopened is Opening.LOADED
        # It was told nothing: a new one is as good, and harnesses store none that is empty.
        assert (await b.sessions.open(untold)).reopened is Opening.NEW


def _as(row: Session, _: Session) -> Session:
    return row
