"""What a person does with a coding agent, whichever it is. Each module names one agent."""

from __future__ import annotations

import pytest

from conveyor.acp.v1 import session_pb2 as acp
from conveyor.scheduler.v1 import run_pb2
from svckit.grpc.status import from_proto
from svckit.testing import eventually
from tests.harnesses.modelserver import ModelServer
from tests.harnesses.processes import Tracker
from tests.real.agents import Place
from tests.real.conversation import Conversation
from tests.system.harness import Suite


class Scenarios:
    """The tests of one agent: the one that the module of a class made of this calls `AGENT`."""

    @pytest.fixture
    def tracker(self, place: Place) -> Tracker:
        """Follows what the agent starts."""
        return Tracker(place.home)

    async def spawn(self, talk: Conversation, place: Place, options: str = "") -> None:
        """Open a session that answers the conversation, and wait until it is ready."""
        await talk.order(
            f"/acp spawn {place.agent.harness_id} --bind here --cwd {place.workspace} {options}"
        )
        await talk.hears("is ready")
        await talk.until_state(acp.ACP_SESSION_STATE_READY)

    def test_the_doctor_finds_it_healthy(
        self, suite: Suite, place: Place, tracker: Tracker
    ) -> None:
        said = suite.cli("acp", "doctor", place.agent.harness_id).stdout
        assert "healthy: yes" in said
        assert not tracker.alive()

    async def test_a_person_works_with_it(
        self, suite: Suite, place: Place, model: ModelServer, tracker: Tracker
    ) -> None:
        work = place.workspace
        async with suite.client() as client:
            talk = Conversation(suite, client, "ada")
            await self.spawn(talk, place, "--permissions ask")
            assert await tracker.until_alive()

            # Steered twice: by a message, and by a command. It knows what was said.
            assert "a heron" in await talk.answer("{{say a heron}}")
            await talk.order("/acp steer {{recall}}")
            await talk.hears("first I said: a heron")

            # Reading needs nobody.
            assert "the bird is a heron" in await talk.answer(f"{{{{read {work}/notes.txt}}}}")
            assert not await talk.said("question_asked")

            # Writing is asked for here: denied once, allowed once.
            order = f"{{{{write {work}/new.txt hello there}}}}"
            told = talk.asking(order)
            question = await talk.question()
            assert "new.txt" in f"{question.title} {question.arguments}"
            assert (await talk.session()).state == acp.ACP_SESSION_STATE_ASKING
            assert "Refused #1" in await talk.order("/deny")
            await told
            assert not (work / "new.txt").exists()

            told = talk.asking(order)
            await talk.question()
            await talk.order("/approve")
            assert (await told).ended.state == run_pb2.RUN_STATE_SUCCEEDED
            assert (work / "new.txt").read_text() == "hello there"
            decided = await talk.said("permission_decided")
            assert [(d.allowed, d.rule) for d in decided] == [(False, "asked"), (True, "asked")]
            assert all(d.responder for d in decided)

            # Stopped in the middle: its model is left alone, the session goes on.
            told = talk.asking("{{hold it}}")
            await model.until_held("it")
            assert "work" in await talk.order("/acp status")
            await talk.order("/acp cancel")
            assert (await told).ended.state == run_pb2.RUN_STATE_CANCELLED
            await model.until_left("it")
            assert "of the conversation" in await talk.answer("{{count}}")

            # Closed: nothing of it is left, and the agent answers again.
            assert tracker.alive()
            await talk.order("/acp close")
            await tracker.until_gone()
            assert await talk.answer("[[reply: gold]]") == "gold"

    async def test_the_service_is_killed_while_it_works(
        self, suite: Suite, place: Place, model: ModelServer, tracker: Tracker
    ) -> None:
        async with suite.client() as client:
            talk = Conversation(suite, client, "bob")
            await self.spawn(talk, place)
            assert "a stork" in await talk.answer("{{say a stork}}")
            told = talk.asking("{{hold the line}}")
            await model.until_held("the line")
            first = await tracker.until_alive()
            suite.kill("acp")

            # The turn is not repeated, and says how the session was opened again.
            ended = (await told).ended
            assert ended.state == run_pb2.RUN_STATE_FAILED
            error = from_proto(ended.error)
            assert error.reason == "ACP_TURN_FAILED"
            assert error.metadata["cause"] == "crashed"
            await model.until_left("the line")

            def replaced() -> bool:
                return not {process.key for process in first} & {p.key for p in tracker.alive()}

            await eventually(replaced, timeout=30)
            knows = "first I said: a stork" if place.agent.remembers else "first I said: nothing"
            assert knows in await talk.answer("{{recall}}")
            await talk.order("/acp close")
            await tracker.until_gone()
