"""Coding agents that do what real ones once did, and a service that is killed under them.

Over the whole suite, with a scripted agent: what it started is looked for in the table of
processes, and what people are told is read in their conversations.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from conveyor.acp.v1 import session_pb2 as acp
from conveyor.scheduler.v1 import run_pb2
from svckit.grpc.status import from_proto
from svckit.testing import eventually
from tests.harnesses.processes import Tracker, table
from tests.real.conversation import Conversation
from tests.system.harness import SUCCEEDED, Suite, running, text_of

SCRIPTED = Path(__file__).parents[1] / "harnesses" / "scripted.py"
READY, PARKED = acp.ACP_SESSION_STATE_READY, acp.ACP_SESSION_STATE_PARKED


@dataclass(frozen=True)
class Place:
    """Where the scripted agents live and work."""

    home: Path
    work: Path
    pids: Path
    temporary: Path

    def kept(self) -> str:
        """What the service keeps of whom the agents started."""
        return "".join(file.read_text() for file in self.temporary.glob("conveyor-*/*"))

    def started(self) -> dict[str, list[int]]:
        """What the agents say that they started, by kind."""
        found: dict[str, list[int]] = {}
        for line in self.pids.read_text().splitlines() if self.pids.exists() else ():
            name, pid = line.split()
            found.setdefault(name, []).append(int(pid))
        return found


def harness(name: str, home: Path, *flags: str) -> str:
    """One entry of the registry."""
    command = json.dumps([sys.executable, "-S", str(SCRIPTED), *flags])
    return f"""
[acp.harness.{name}]
command = {command}
[acp.harness.{name}.env]
HOME = "{home}"
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    base = tmp_path_factory.mktemp("harness")
    (base / "home").mkdir()
    (base / "work").mkdir()
    (base / "tmp").mkdir()
    return Place(base / "home", base / "work", base / "pids", base / "tmp")


@pytest.fixture(scope="module")
def suite(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    toml = f"""
[acp]
workspace_roots = ["{place.work}"]
handshake_seconds = 8
permission_timeout_seconds = 10
cancel_seconds = 2
max_sessions = 3
""" + "".join(
        [
            harness("scripted", place.home, "--resume", "--pids", str(place.pids)),
            harness("forgets", place.home),
            harness("hangs", place.home, "--stderr", "I am busy", "--hang-at", "initialize"),
            harness("exits", place.home, "--stderr", "no licence found", "--exit-at", "start:3"),
            harness("locked", place.home, "--auth-at", "new"),
            harness("noisy", place.home, "--noise"),
        ]
    )
    # A machine without any agent, but with what shuts them in where this one has it.
    programs = tmp_path_factory.mktemp("bin")
    if bwrap := shutil.which("bwrap"):
        (programs / "bwrap").symlink_to(bwrap)
    environ = {"PATH": str(programs), "TMPDIR": str(place.temporary)}
    with running(tmp_path_factory.mktemp("suite"), toml, environ=environ) as suite:
        yield suite
    assert not Tracker(place.home).alive()


async def spawn(talk: Conversation, name: str = "scripted", options: str = "") -> acp.AcpSession:
    """Open a session that answers the conversation."""
    await talk.order(f"/acp spawn {name} --bind here {options}")
    await talk.hears("is ready")
    return await talk.until_state(READY)


def test_the_doctor_of_a_machine_without_agents_says_how_to_get_each(suite: Suite) -> None:
    for harness_id, package in (("claude", "claude-agent-acp"), ("gemini", "@google/gemini-cli")):
        said = suite.cli("acp", "doctor", harness_id, code=1).stdout
        assert "ACP_BACKEND_MISSING" in said
        assert "npm install" in said
        assert package in said
        assert "healthy: no" in said
    assert "healthy: yes" in suite.cli("acp", "doctor", "scripted").stdout


async def test_a_killed_service_leaves_no_process_and_no_doubt(suite: Suite, place: Place) -> None:
    tracker = Tracker(place.home)
    async with suite.client() as client:
        talk = Conversation(suite, client, "killed")
        # Not shut in: those within walls end with them, and their numbers are of another table.
        await spawn(talk, options="--permissions ask")
        assert await talk.answer("count") == "prompts: 1"
        told = talk.asking("child ;; stray ;; stray-clean ;; hang")
        await eventually(lambda: len(place.started()) >= 4, timeout=60)
        pids = {pid for found in place.started().values() for pid in found}
        for pid in pids:
            tracker.remember(pid)
        assert len(tracker.alive()) >= 4
        # The one that hides best is known once the service has looked at it.
        (hidden,) = place.started()["stray-clean"]
        await eventually(lambda: str(hidden) in place.kept(), timeout=60)
        suite.kill("acp")

        ended = (await told).ended
        assert ended.state == FAILED
        error = from_proto(ended.error)
        assert (error.reason, error.metadata["cause"]) == ("ACP_TURN_FAILED", "crashed")
        result = await eventually(lambda: talk.until_state(READY), timeout=60)
        assert result.opening == acp.ACP_OPENING_RESUMED
        # Those of the first life are gone, however they hid; the prompt was not sent again.
        await eventually(lambda: not pids & set(table()), timeout=60)
        assert await talk.answer("count") == "prompts: 3"
        await talk.order("/acp close")
        await tracker.until_gone()


async def test_a_crash_in_a_turn_is_told_and_the_session_goes_on(
    suite: Suite, place: Place
) -> None:
    async with suite.client() as client:
        talk = Conversation(suite, client, "crash")
        await spawn(talk)
        ended = (await talk.ask("stderr out of memory ;; crash 7")).ended
        error = from_proto(ended.error)
        assert (error.reason, error.metadata["cause"]) == ("ACP_TURN_FAILED", "crashed")
        assert "out of memory" in error.metadata["lastWords"]
        assert await talk.answer("count") == "prompts: 2"
        await talk.order("/acp close")


async def test_a_permission_that_nobody_answers_is_denied_in_time(
    suite: Suite, place: Place
) -> None:
    async with suite.client() as client:
        talk = Conversation(suite, client, "silent")
        await spawn(talk, options="--permissions ask")
        told = talk.asking("write never.txt x")
        question = await talk.question()
        assert question.acp_session_id == (await talk.session()).acp_session_id
        ended = (await told).ended
        assert ended.state == SUCCEEDED, ended.error
        assert "denied never.txt" in text_of(ended.result.reply)
        (decided,) = await talk.said("permission_decided")
        assert (decided.allowed, decided.rule) == (False, "expired")
        assert not (place.work / "never.txt").exists()
        assert await talk.answer("count") == "prompts: 2"
        await talk.order("/acp close")


async def test_two_prompts_never_overlap_whoever_sends_them(suite: Suite) -> None:
    """The scripted agent ends when a second prompt comes while one is at work."""
    async with suite.client() as client:
        talk = Conversation(suite, client, "crowd")
        session_id = (await spawn(talk)).acp_session_id
        told = [talk.asking(f"slow 0.2 ;; say:chat {n}") for n in range(3)]
        direct = [await client.acp_prompt(session_id, "slow 0.2 ;; count") for _ in range(3)]
        for one in told:
            assert (await one).ended.state == SUCCEEDED
        for accepted in direct:
            await talk.until_run(accepted.accepted.run.run_id, SUCCEEDED)
        assert await talk.answer("count") == "prompts: 7"
        await talk.order("/acp close")


async def test_more_sessions_than_there_may_be(suite: Suite, place: Place) -> None:
    async with suite.client() as client:
        talks = [Conversation(suite, client, f"many-{n}") for n in range(4)]
        for talk in talks:
            await spawn(talk)
            assert await talk.answer(f"say:{talk.key} ;; count")
        # The one that waited longest made room, and comes back knowing what was said.
        assert (await talks[0].session()).state == PARKED
        assert "prompts: 2" in await talks[0].answer("count")
        assert (await talks[0].session()).opening == acp.ACP_OPENING_RESUMED
        # With all at work, one more waits; it has no slot and no process.
        busy = [talk.asking("hang") for talk in (talks[0], talks[2], talks[3])]
        for talk in (talks[0], talks[2], talks[3]):
            await talk.until_state(acp.ACP_SESSION_STATE_BUSY)
        waiting = talks[1].asking("count")

        async def suspended() -> bool:
            runs = (await client.runs(page_size=50)).runs
            mine = [r for r in runs if r.spec.session_key == talks[1].key and r.state not in DONE]
            assert [run.state for run in mine] == [run_pb2.RUN_STATE_SUSPENDED]
            return True

        await eventually(suspended, timeout=60)
        await talks[2].order("/acp close")
        assert "prompts: 2" in (await waiting).answer
        for talk in (talks[0], talks[3]):
            await talk.order("/acp cancel")
        for told in busy:
            assert (await told).ended.state == run_pb2.RUN_STATE_CANCELLED
        for talk in (talks[0], talks[1], talks[3]):
            await talk.order("/acp close")
        await Tracker(place.home).until_gone()


FAILED = run_pb2.RUN_STATE_FAILED
DONE = (SUCCEEDED, FAILED, run_pb2.RUN_STATE_CANCELLED, run_pb2.RUN_STATE_EXPIRED)


@pytest.mark.parametrize(
    ("name", "cause", "told"),
    [
        ("hangs", "timeout", "I am busy"),
        ("exits", "exited", "no licence found"),
        ("locked", "auth_required", ""),
    ],
)
async def test_one_that_does_not_open_says_why_and_gives_the_conversation_back(
    suite: Suite, place: Place, name: str, cause: str, told: str
) -> None:
    async with suite.client() as client:
        talk = Conversation(suite, client, name)
        await talk.order(f"/acp spawn {name} --bind here")

        async def failed() -> run_pb2.Run:
            runs = (await client.runs(page_size=50)).runs
            mine = [run for run in runs if run.spec.session_key == talk.key]
            assert [run.state for run in mine] == [FAILED]
            return mine[0]

        error = from_proto((await eventually(failed, timeout=60)).error)
        assert error.reason in ("ACP_SESSION_INIT_FAILED", "ACP_BACKEND_UNAVAILABLE")
        assert told in error.metadata.get("lastWords", "")
        assert await talk.answer("[[reply: gold]]") == "gold"
        assert not Tracker(place.home).alive()


async def test_noise_and_ten_megabytes_do_no_harm(suite: Suite) -> None:
    async with suite.client() as client:
        talk = Conversation(suite, client, "noisy")
        await spawn(talk, "noisy")
        said = await talk.answer("garbage ;; unknown-update ;; big 10000000 ;; say:still here")
        assert said.startswith("xxx")
        assert len(said) < 1_000_000
        assert await talk.answer("count") == "prompts: 2"
        await talk.order("/acp close")
