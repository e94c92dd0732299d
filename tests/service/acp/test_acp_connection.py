"""Prompts to real processes: updates, questions, deadlines, ends, and what is left of them."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from acp import schema
from scripted_bench import PATIENT, Follower, opened, tell

from acp_svc.domain.permissions import PermissionMode
from acp_svc.harness.types import Cause, Deadlines, PermissionRequest, PromptFailed, Update
from svckit.errors import AcpSessionInitFailed, InvalidField
from svckit.testing import eventually


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_context_is_kept_and_updates_come_whole_and_in_order(tmp_path: Path) -> None:
    async with opened(tmp_path) as connection:
        follower = Follower()
        ended = await connection.prompt("count ;; plan ;; spam 300 ;; usage", follower, PATIENT)
        assert ended.stop_reason == "end_turn"
        assert ended.usage is not None
        assert ended.usage.total_tokens == 1200
        assert follower.said == ["prompts: 1", *(f"{n}," for n in range(300))]
        kinds = [update.session_update for update in follower.updates]
        assert kinds[1:3] == ["plan", "plan"]
        assert kinds[-1] == "usage_update"
        assert await tell(connection, "count ;; history") == [
            "prompts: 2",
            "count ;; plan ;; spam 300 ;; usage",
        ]


async def test_a_permission_is_asked_for_after_what_is_known_of_the_call(tmp_path: Path) -> None:
    async with opened(tmp_path, "--bare") as connection:
        follower = Follower("yes-once")
        await connection.prompt("write a.txt hello", follower, PATIENT)
        (asked,) = follower.asked
        # The request names only the call; the rest is in the update that was handed on before it.
        assert (asked.tool_call.kind, asked.tool_call.title) == (None, None)
        [told] = [u for u in follower.updates if isinstance(u, schema.ToolCallStart)]
        assert told.tool_call_id == asked.tool_call.tool_call_id
        assert (told.kind, told.title) == ("edit", "Write a.txt")
        assert [option.option_id for option in asked.options] == [
            "yes-once",
            "yes-always",
            "no-once",
        ]
        assert (tmp_path / "work" / "a.txt").read_text() == "hello"
        assert await tell(connection, "write b.txt x", option="no-once") == ["denied b.txt"]
        assert await tell(connection, "write b.txt x", option=None) == ["denied b.txt"]
        # An option that was not offered is never passed on.
        assert await tell(connection, "ask edit it", option="made-up") == ["cancelled"]
        assert not (tmp_path / "work" / "b.txt").exists()
        assert await tell(connection, "asks 3 ;; ask-empty", option="no-once") == [
            "answered: no-once, no-once, no-once",
            "cancelled",
        ]


async def test_what_is_no_message_or_unknown_does_no_harm_and_reaches_no_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with opened(tmp_path) as connection:
        said = await tell(connection, "garbage ;; unknown-update ;; unknown-request ;; say:on")
        assert said == ["client: -32601 Method not found", "on"]
        said = await tell(connection, "fs-write f secret ;; terminal ls")
        assert [line.split(";")[0] for line in said] == [
            "client: -32601 fs/write_text_file is not offered by this client",
            "client: -32601 terminal/create is not offered by this client",
        ]
        follower = Follower()
        ended = await connection.prompt("stop exhausted", follower, PATIENT)
        assert ended.stop_reason == "other"
        assert (await connection.prompt("stop refusal", follower, PATIENT)).stop_reason == "refusal"
        assert connection.alive
    assert "weather" not in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_an_update_of_10_mb_is_passed_on_whole(tmp_path: Path) -> None:
    async with opened(tmp_path) as connection:
        said = await tell(connection, "big 10000000 ;; say:after")
        assert [len(said[0]), said[1]] == [10_000_000, "after"]


async def test_a_line_that_never_ends_ends_the_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acp_svc.harness.peer.LINE_BYTES", 100_000)
    monkeypatch.setattr("acp_svc.harness.peer.LAST_OUTPUT_SECONDS", 0.1)
    async with opened(tmp_path) as connection:
        with pytest.raises(PromptFailed) as caught:
            await tell(connection, "big 1000000")
        assert caught.value.cause is Cause.PROTOCOL
        assert not connection.alive


async def test_cancelling_ends_the_turn_and_keeps_the_session(tmp_path: Path) -> None:
    async with opened(tmp_path) as connection:
        assert await connection.cancel()  # nothing is at work
        follower = Follower()
        work = asyncio.create_task(connection.prompt("slow 600", follower, PATIENT))
        await eventually(lambda: len(follower.said) > 1)
        assert await connection.cancel()
        assert (await work).stop_reason == "cancelled"
        assert await tell(connection, "count") == ["prompts: 2"]


class Undecided(Follower):
    """Never answers."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 0

    async def permission(self, request: PermissionRequest) -> str | None:
        self.asked.append(request)
        try:
            await asyncio.Event().wait()
        finally:
            self.left += 1
        return None


@pytest.mark.parametrize("flags", [(), ("--quiet-cancel",)])
async def test_cancelling_answers_what_it_asks_for(tmp_path: Path, flags: tuple[str, ...]) -> None:
    async with opened(tmp_path, *flags) as connection:
        undecided = Undecided()
        work = asyncio.create_task(connection.prompt("asks 2", undecided, PATIENT))
        await eventually(lambda: len(undecided.asked) == 2)
        assert await connection.cancel()
        assert (await work).stop_reason == "cancelled"
        assert undecided.left == 2
        assert await tell(connection, "count") == ["prompts: 2"]


async def test_a_turn_that_takes_too_long_or_says_nothing_is_ended(tmp_path: Path) -> None:
    async with opened(tmp_path) as connection:
        hasty = Deadlines(handshake=20, turn=0.4, quiet=20, cancel=10)
        with pytest.raises(PromptFailed, match=r"longer than 0\.4 s") as caught:
            await connection.prompt("slow 600", Follower(), hasty)
        assert caught.value.cause is Cause.TIMEOUT
        quiet = Deadlines(handshake=20, turn=20, quiet=0.4, cancel=10)
        with pytest.raises(PromptFailed, match=r"nothing for 0\.4 s") as caught:
            await connection.prompt("silent 600", Follower(), quiet)
        assert caught.value.cause is Cause.TIMEOUT
        # It was cancelled and came to an end, so the session goes on.
        assert connection.alive
        assert await tell(connection, "count") == ["prompts: 3"]


async def test_people_have_their_own_time(tmp_path: Path) -> None:
    class Slow(Follower):
        async def permission(self, request: PermissionRequest) -> str | None:
            await asyncio.sleep(1.2)
            return await super().permission(request)

    async with opened(tmp_path) as connection:
        hasty = Deadlines(handshake=20, turn=1.0, quiet=1.0, cancel=10)
        ended = await connection.prompt("ask edit it", Slow(), hasty)
        assert ended.stop_reason == "end_turn"


async def test_one_that_ignores_the_cancelling_is_given_up(tmp_path: Path) -> None:
    strict = Deadlines(handshake=20, turn=20, quiet=20, cancel=0.3)
    async with opened(tmp_path, "--ignore-cancel", "--deaf") as connection:
        follower = Follower()
        work = asyncio.create_task(connection.prompt("slow 600", follower, strict))
        await eventually(lambda: bool(follower.said))
        assert not await connection.cancel()
        with pytest.raises(PromptFailed, match="did not stop") as caught:
            await work
        assert caught.value.cause is Cause.TIMEOUT
        assert not connection.alive
        pid = connection.pid
    assert not alive(pid)


async def test_prompts_never_overlap_also_when_whoever_waited_left(tmp_path: Path) -> None:
    # The agent ends with code 99 when a prompt comes while one is at work.
    async with opened(tmp_path) as connection:
        first, third = Follower(), Follower()
        one = asyncio.create_task(connection.prompt("slow 600", first, PATIENT))
        await eventually(lambda: bool(first.said))
        two = asyncio.create_task(connection.prompt("say:two", Follower(), PATIENT))
        three = asyncio.create_task(connection.prompt("count", third, PATIENT))
        await asyncio.sleep(0)
        two.cancel()  # it waits, and is never sent
        one.cancel()  # it is at work, and is cancelled
        await asyncio.gather(one, two, return_exceptions=True)
        assert (await three).stop_reason == "end_turn"
        assert third.said == ["prompts: 2"]


@pytest.mark.parametrize(
    ("text", "cause", "code", "words"),
    [
        ("stderr last words ;; crash 7", Cause.CRASHED, 7, "last words\nscripted: fatal"),
        ("crash", Cause.CRASHED, -9, "scripted: fatal"),
        ("drop", Cause.PROTOCOL, None, ""),
    ],
)
async def test_one_that_breaks_off_is_reported_with_its_last_words(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    cause: Cause,
    code: int | None,
    words: str,
) -> None:
    monkeypatch.setattr("acp_svc.harness.peer.LAST_OUTPUT_SECONDS", 0.5)
    async with opened(tmp_path) as connection:
        with pytest.raises(PromptFailed) as caught:
            await connection.prompt(text, Follower(), PATIENT)
        failed = caught.value
        assert (failed.cause, failed.exit_code) == (cause, code)
        assert words in failed.last_words
        assert not connection.alive
        await asyncio.wait_for(connection.gone(), 30)
        with pytest.raises(PromptFailed):
            await connection.prompt("count", Follower(), PATIENT)


async def test_errors_of_a_prompt_leave_the_session_usable(tmp_path: Path) -> None:
    async with opened(tmp_path, login="run `scripted login`") as connection:
        with pytest.raises(PromptFailed, match="needs a login: run `scripted login`") as caught:
            await tell(connection, "login-lost")
        assert caught.value.cause is Cause.AUTH_REQUIRED
        with pytest.raises(PromptFailed, match=r"error \(-32603\)") as caught:
            await tell(connection, "error -32603 API Error: 400")
        assert caught.value.cause is Cause.PROTOCOL
        assert caught.value.last_words == "API Error: 400"
        assert await tell(connection, "count") == ["prompts: 3"]


async def test_no_half_of_a_secret_is_left_where_what_it_said_is_cut(tmp_path: Path) -> None:
    async with opened(tmp_path, env={"THE_KEY": "sk-planted-0123456789"}) as connection:
        with pytest.raises(PromptFailed) as caught:
            await tell(connection, f"error -32603 {'x' * 485} sk-planted-0123456789")
        assert "xxx ***" in caught.value.last_words
        assert "sk-" not in caught.value.last_words


async def test_a_listener_that_fails_ends_the_turn_with_its_error(tmp_path: Path) -> None:
    class Broken(Follower):
        def updated(self, update: Update) -> None:
            raise LookupError("lease lost")

    class Unwilling(Follower):
        async def permission(self, request: PermissionRequest) -> str | None:
            raise LookupError("lease lost")

    async with opened(tmp_path) as connection:
        for listener, text in ((Broken(), "slow 600"), (Unwilling(), "ask edit it ;; hang")):
            with pytest.raises(LookupError, match="lease lost"):
                await connection.prompt(text, listener, PATIENT)
        assert connection.alive
        assert await tell(connection, "count") == ["prompts: 3"]


async def test_nothing_is_handed_on_after_the_end(tmp_path: Path) -> None:
    async with opened(tmp_path) as connection:
        follower = Follower()
        await connection.prompt("say:in time ;; late too late", follower, PATIENT)
        await tell(connection, "say:next")
        assert follower.said == ["in time"]


async def test_settings_are_changed_and_read_back(tmp_path: Path) -> None:
    flags = ["--modes", "ask,plan,auto", "--models", "a,b", "--options", "effort=low,high"]
    async with opened(tmp_path, *flags) as connection:
        assert (await connection.set_mode("plan")).mode == "plan"
        assert (await connection.set_model("b")).model == "b"
        assert (await connection.set_option("effort", "high")).options == {"effort": "high"}
        for change, field in (
            (connection.set_mode("nonsense"), "settings.harness_mode"),
            (connection.set_mode("auto"), "settings.harness_mode"),
            (connection.set_model("z"), "settings.model"),
            (connection.set_option("nothing", "x"), "settings.options[nothing]"),
            (connection.set_option("effort", "x"), "settings.options[effort]"),
        ):
            with pytest.raises(InvalidField) as caught:
                await change
            assert caught.value.field_violations[0][0] == field
        said = await tell(connection, "mode ;; model ;; option effort")
        assert said == ["mode: plan", "model: b", "effort: high"]


async def test_permissions_of_an_open_session_are_changed_with_its_mode(tmp_path: Path) -> None:
    everything = PermissionMode.APPROVE_ALL
    async with opened(tmp_path, "--modes", "auto,ask", permissions=everything) as connection:
        assert connection.opened.mode == "auto"
        assert (await connection.set_permission_mode(PermissionMode.ASK)).mode == "ask"
        with pytest.raises(InvalidField):
            await connection.set_mode("auto")
    stubborn = ("--modes", "auto,ask", "--stubborn")
    async with opened(tmp_path, *stubborn, permissions=everything) as connection:
        with pytest.raises(AcpSessionInitFailed) as caught:
            await connection.set_permission_mode(PermissionMode.ASK)
        assert caught.value.metadata["cause"] == "permission_mode"


async def test_one_that_stops_asking_by_itself_is_taken_back_or_stopped(tmp_path: Path) -> None:
    async with opened(tmp_path, "--modes", "ask,auto") as connection:
        follower = Follower()
        work = "to-mode auto ;; slow 0.4 ;; mode ;; write x.txt x"
        await connection.prompt(work, follower, PATIENT)
        assert follower.said[-2:] == ["mode: ask", "wrote x.txt"]
        assert len(follower.asked) == 1
    async with opened(tmp_path, "--modes", "ask,auto", "--stubborn") as connection:
        with pytest.raises(PromptFailed, match="acts without asking") as caught:
            await tell(connection, "to-mode auto ;; slow 600")
        assert caught.value.cause is Cause.PROTOCOL
        assert not connection.alive


async def test_no_process_is_left_that_it_started(tmp_path: Path) -> None:
    # In its group; out of it; and out of it without the mark in its environment.
    async with opened(tmp_path, "--deaf") as connection:
        said = await tell(connection, "child ;; stray ;; stray-clean")
        pids = [connection.pid, *(int(line.removeprefix("pid: ")) for line in said)]
        assert all(alive(pid) for pid in pids)
    await eventually(lambda: not any(alive(pid) for pid in pids))


async def test_stopping_while_it_works_tells_whoever_waits(tmp_path: Path) -> None:
    async with opened(tmp_path) as connection:
        undecided = Undecided()
        work = asyncio.create_task(connection.prompt("ask edit it", undecided, PATIENT))
        await eventually(lambda: bool(undecided.asked))
        await asyncio.gather(connection.stop(), connection.stop())
        with pytest.raises(PromptFailed, match="was stopped") as caught:
            await work
        assert caught.value.cause is Cause.CRASHED
        assert undecided.left == 1
