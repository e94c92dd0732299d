"""Claude Code: see `scenarios`. And what an agent of ours does with it."""

from __future__ import annotations

from svckit.testing import eventually
from tests.harnesses.modelserver import ModelServer
from tests.harnesses.processes import Tracker
from tests.real.agents import CLAUDE as AGENT
from tests.real.agents import Place
from tests.real.conversation import Conversation
from tests.real.scenarios import Scenarios
from tests.system.harness import SUCCEEDED, Suite, flow_where, payloads

__all__ = ["AGENT"]


class TestClaude(Scenarios):
    """Every scenario."""


async def test_a_rule_allows_reading_and_denies_writing(suite: Suite, place: Place) -> None:
    """It asks to read outside its directory; with `approve-reads` nobody has to answer."""
    outside = place.workspace.parent / "outside.txt"
    async with suite.client() as client:
        talk = Conversation(suite, client, "reads")
        await talk.order(f"/acp spawn claude --bind here --cwd {place.workspace}")
        await talk.hears("is ready")
        assert "the fish is a pike" in await talk.answer(f"{{{{read {outside}}}}}")
        await talk.ask(f"{{{{write {place.workspace}/never.txt x}}}}")
        decided = await talk.said("permission_decided")
        assert [(d.allowed, d.rule) for d in decided] == [
            (True, "approve-reads"),
            (False, "approve-reads"),
        ]
        assert not (place.workspace / "never.txt").exists()
        await talk.order("/acp close")


async def test_an_agent_has_it_work_waiting_and_in_the_background_and_is_cancelled(
    suite: Suite, place: Place, model: ModelServer
) -> None:
    tracker = Tracker(place.home)
    async with suite.client() as client:
        talk = Conversation(suite, client, "boss")
        told = await talk.ask("[[acp claude: {{say a kestrel}}]]")
        assert told.ended.state == SUCCEEDED
        assert "a kestrel" in told.answer
        flow = await client.flow(told.run_id)
        assert [node.spec.queue for node in flow.nodes][1:] == ["acp"]
        assert len({node.trace.traceparent.split("-")[1] for node in flow.nodes}) == 1

        told = await talk.ask("[[acp-background claude: {{say a merlin}}]] [[reply: begun]]")
        assert "a merlin" in told.answer
        announced = payloads(await talk.events(), "child_announced")
        assert announced[-1].announcement.result.status == SUCCEEDED

        waiting = talk.asking("[[acp claude: {{hold all}}]]")
        await model.until_held("all")

        async def run_id() -> str:
            runs = (await client.runs(page_size=50)).runs
            newest = [r.run_id for r in runs if r.spec.session_key == talk.key]
            return max(newest)

        root = await eventually(run_id)
        await client.cancel_flow(root, reason="enough")
        await waiting
        await flow_where(client, root, cancelled=2)
        await model.until_left("all")
        await tracker.until_gone()
