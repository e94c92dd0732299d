"""The console in a real browser, in front of a real gateway and scheduler."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from conveyor.agent.v1 import agent_service_pb2 as ag
from conveyor.agent.v1 import probe_pb2
from gateway_svc.app import GatewayApp
from svckit.testing import eventually, free_port, memory_tracer
from svckit.version import __version__
from svckit.worker import Outcome
from tests.browser.conftest import Browser
from tests.service.gateway.suite import Suite, Turn, asking, delegating, suite

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

REQUEST = "Do three things"
TASKS = ("research a market trend", "analyse competitors", "draft a summary")
HOSTILE = (
    "**Bold** and `code` <img src=x onerror=alert(1)> <script>alert(2)</script>\n\n"
    "- one\n- two\n\n[a link](https://example.com/) [bad](javascript:alert(3))"
)


def address(around: Suite) -> str:
    app = around.gateway.app
    assert isinstance(app, GatewayApp)
    return f"http://{app.http_address}/"


async def write(page: Any, text: str) -> None:
    await page.fill("#composer-text", text)
    await page.keyboard.press("Enter")


async def seen(page: Any, selector: str, text: str | re.Pattern[str]) -> Any:
    found = page.locator(selector, has_text=text).first
    await found.wait_for(timeout=15_000)
    return found


async def test_a_delegated_request_is_watched_from_start_to_end(
    tmp_path: Path, browser: Browser
) -> None:
    shown_at = "https://traces.example/{trace_id}"
    tracer, _ = memory_tracer()
    async with (
        suite(tmp_path, CONVEYOR_TELEMETRY__UI_URL=shown_at) as around,
        around.serve(tracer),
    ):
        around.agent.on(REQUEST, delegating(*TASKS))
        for task in TASKS:
            around.agent.hold(task)
        page = await browser.open(address(around))
        await seen(page, "#link-text", "ready")
        await write(page, REQUEST)

        # The tree grows while the children work, and the lanes show their slots.
        await seen(page, ".node", REQUEST)
        for task in TASKS:
            node = await seen(page, ".tree ul ul .node", task)
            await node.locator(".tag", has_text="running").wait_for()
        await (
            page.locator(".node", has_text=REQUEST)
            .locator(".tag", has_text="waits for children")
            .wait_for()
        )
        await seen(page, ".lane", "3/8")
        assert await page.locator(".card").count() == 0
        assert await page.locator("#stop").is_visible()

        # Each announcement comes as its child ends.
        for count, task in enumerate(TASKS, start=1):
            around.agent.let_go(task)
            card = await seen(page, ".card", task)
            await card.locator(".tag", has_text="done").wait_for()
            assert await page.locator(".card").count() == count

        # One joined answer, and a tree that is done, with times.
        answer = await seen(page, ".row.agent .bubble", "echo: draft a summary")
        assert "echo: research a market trend" in await answer.inner_text()
        assert await page.locator(".row.agent").count() == 1
        await page.locator(".node.good").nth(3).wait_for()
        figures = await page.locator("#flow-summary").inner_text()
        assert re.search(r"4 runs\s+[\d.]+ s", figures)
        assert not await page.locator("#stop").is_visible()
        assert await page.locator("#brand").get_attribute("title") == f"Conveyor {__version__}"
        link = page.locator("#flow-trace a", has_text="Trace")
        [flow] = (await around.http.get("/v1/flows")).json()["flows"]
        assert await link.get_attribute("href") == shown_at.format(trace_id=flow["trace_id"])
        await page.screenshot(path=str(tmp_path / "console.png"))

    # Nothing from elsewhere, ever.
    assert {urlsplit(url).hostname for url in browser.asked} == {"127.0.0.1"}


async def test_text_streams_and_is_never_markup(tmp_path: Path, browser: Browser) -> None:
    go_on = asyncio.Event()

    async def slowly(turn: Turn) -> Outcome:
        await turn.say("The first half ")
        await go_on.wait()
        await turn.say("and the second. ")
        return turn.reply(HOSTILE)

    async with suite(tmp_path) as around, around.serve():
        around.agent.on("stream", slowly)
        page = await browser.open(address(around))
        await write(page, "stream")
        streaming = await seen(page, ".row.streaming .bubble", "The first half")
        assert "second" not in await streaming.inner_text()
        go_on.set()
        bubble = await seen(page, ".row.agent:not(.streaming) .bubble", "Bold")
        assert await page.locator(".row.agent").count() == 1
        assert await bubble.locator("strong").inner_text() == "Bold"
        assert await bubble.locator("code").inner_text() == "code"
        assert await bubble.locator("li").count() == 2
        assert await bubble.locator("img, script").count() == 0
        assert "<script>alert(2)</script>" in await bubble.inner_text()
        links = bubble.locator("a")
        assert await links.count() == 1
        assert await links.get_attribute("href") == "https://example.com/"
        assert await links.get_attribute("rel") == "noopener noreferrer"


async def test_the_page_goes_on_when_the_gateway_restarts(tmp_path: Path, browser: Browser) -> None:
    async with suite(tmp_path) as around:
        around.environ["CONVEYOR_GATEWAY__HTTP"] = f"127.0.0.1:{free_port()}"
        around.agent.on("go", delegating("one", "two"))
        for task in ("one", "two"):
            around.agent.hold(task)
        async with around.serve():
            page = await browser.open(address(around))
            await write(page, "go")
            await seen(page, ".tree ul ul .node", "two")
            around.agent.let_go("one")
            await seen(page, ".card", "one")
        await seen(page, "#link-text", "reconnecting")
        # The child ends while nobody can see it.
        around.agent.let_go("two")
        async with around.serve():
            await seen(page, "#link-text", "live")
            await seen(page, ".card", "two")
            await seen(page, ".row.agent .bubble", "echo: one; echo: two")
            assert await page.locator(".card").count() == 2
            assert await page.locator(".row").count() == 2
            await write(page, "after")
            await seen(page, ".row.agent .bubble", "echo: after")


GUARDED = """async () => {
  const { SessionModel } = await import("/js/model.js");
  const { TreeView } = await import("/js/tree.js");
  const model = new SessionModel("k");
  const steps = ["INSIST", "FORCE_TOOL", "FALL_BACK_MODEL"].map((step) => ({
    guard_intervened: { trigger: "GUARD_TRIGGER_FALSE_CLAIM", step: `GUARD_STEP_${step}` },
  }));
  const ids = { session_key: "k", run_id: "r", flow_id: "r" };
  [{ run_state_changed: { state: "RUN_STATE_RUNNING" } }, ...steps].forEach((what, index) =>
    model.take({ event: { ...ids, sequence: index + 1, ...what } }));
  new TreeView(() => {}, () => {}, { of: () => null }).show(model);
  const told = [...document.querySelectorAll("#tree .node span")]
    .find((span) => span.textContent.startsWith("guard:"));
  const tree = document.getElementById("tree").getBoundingClientRect();
  const { left, right, width } = told.getBoundingClientRect();
  const border = getComputedStyle(told).borderTopWidth;
  return { whole: width > 0 && left >= tree.left && right <= tree.right, border };
}"""


async def test_what_the_guard_did_is_not_clipped_in_the_tree_nor_drawn_as_a_panel(
    tmp_path: Path, browser: Browser
) -> None:
    async with suite(tmp_path) as around, around.serve():
        page = await browser.open(address(around))
        await seen(page, "#link-text", "ready")
        for width in (1300, 420):
            await page.set_viewport_size({"width": width, "height": 900})
            assert await page.evaluate(GUARDED) == {"whole": True, "border": "0px"}


async def test_sessions_are_apart_and_survive_a_reload(tmp_path: Path, browser: Browser) -> None:
    async with suite(tmp_path) as around, around.serve():
        agents = ag.ListAgentsResponse(agents=[ag.Agent(agent_id="main")])
        around.agents.always("ListAgents", agents)
        weak = ag.Model(model="local:<b>small", probe=probe_pb2.ProbeReport(verdict=3))
        weak.probe.scores.add(tier=1, tries=13, good=2)
        never = ag.Model(model="demo", agent_ids=["main"])
        unused = ag.Model(model="demo-weak")
        around.agents.always("ListModels", ag.ListModelsResponse(models=[weak, never, unused]))
        page = await browser.open(address(around))
        model = await seen(page, ".model", "local:<b>small")
        assert "leaf only" in await model.text_content()
        assert "natural 2 of 13" in await model.get_attribute("title")
        assert await page.locator(".model", has_text="never probed").count() == 1
        await write(page, "from the first")
        await seen(page, ".row.agent .bubble", "echo: from the first")
        await page.click("#new-session")
        await seen(page, ".empty", "Nothing has been said here yet")
        await write(page, "from the second")
        await seen(page, ".row.agent .bubble", "echo: from the second")
        assert await page.locator(".row").count() == 2
        await page.reload()
        await seen(page, ".row.agent .bubble", "echo: from the second")
        await page.locator(".session", has_text="local").click()
        await seen(page, ".row.agent .bubble", "echo: from the first")
        assert await page.locator(".row").count() == 2
        assert await page.locator(".session").count() == 2


async def test_a_flow_is_stopped_and_the_next_message_answered(
    tmp_path: Path, browser: Browser
) -> None:
    async with suite(tmp_path) as around, around.serve():
        around.agent.on("go", delegating("endless"))
        around.agent.hold("endless")
        page = await browser.open(address(around))
        await write(page, "go")
        await seen(page, ".tree ul ul .node", "endless")
        await eventually(lambda: "endless" in around.agent.started)
        await page.click("#stop")
        await seen(page, ".note", "Stopped")
        await page.locator(".node.bad").nth(1).wait_for()
        await write(page, "hello")
        await seen(page, ".row.agent .bubble", "echo: hello")


async def test_a_waiting_message_says_its_place_and_why(tmp_path: Path, browser: Browser) -> None:
    async with suite(tmp_path) as around, around.serve():
        around.agent.hold("first")
        page = await browser.open(address(around))
        await write(page, "first")
        await eventually(lambda: around.agent.started == ["first"])
        await write(page, "second")
        await seen(page, ".row.mine .meta", "next in line, about")
        await page.locator(".node.wait .why").click()
        await seen(
            page, ".node.wait .reasons", "An earlier message of the session is being worked on."
        )
        around.agent.let_go("first")
        await seen(page, ".row.agent .bubble", "echo: second")
        await page.locator(".why").wait_for(state="detached")
        assert await page.locator(".reasons").count() == 0, "what was true before is gone"


async def test_a_sub_agents_question_is_answered_with_a_button(
    tmp_path: Path, browser: Browser
) -> None:
    async with suite(tmp_path) as around, around.serve():
        around.agent.on("go", delegating("careful"))
        around.agent.on("careful", asking("delete everything"))
        page = await browser.open(address(around))
        await write(page, "go")
        card = await seen(page, ".card.question", "Question 1: delete everything")
        await card.locator(".card-figures", has_text=re.compile("min .*, then Deny")).wait_for()
        left = await card.locator(".card-figures").inner_text()
        await page.locator(".node .tag", has_text="waits for an answer").wait_for()
        await write(page, "and?")
        await seen(page, ".row.mine .meta", "waiting for your approval")
        # It counts down, and the buttons stay what they were.
        button = card.locator("button", has_text="Allow once")
        handle = await button.element_handle()
        await card.locator(".card-figures", has_not_text=left).wait_for()
        await handle.click()
        await seen(page, ".card .tag", "Allow once (local)")
        await seen(page, ".row.agent .bubble", "local said yes")
        assert await page.locator(".card button").count() == 0
        await page.reload()
        await seen(page, ".card .tag", "Allow once (local)")
        # The question of a child is read after all that is ours, and stands where it was asked.
        await seen(page, ".row.agent .bubble", "local said yes")
        told = await page.locator("#log > li").all_inner_texts()
        places = [
            next(i for i, text in enumerate(told) if words in text)
            for words in ("Question 1", "and?", "local said yes")
        ]
        assert places == sorted(places)


async def test_commands_are_completed_and_answered(tmp_path: Path, browser: Browser) -> None:
    async with suite(tmp_path) as around, around.serve():
        around.agent.on(REQUEST, delegating(*TASKS))
        for task in TASKS:
            around.agent.hold(task)
        page = await browser.open(address(around))
        await write(page, REQUEST)
        await seen(page, ".tree ul ul .node", TASKS[2])
        await page.fill("#composer-text", "/ki")
        await seen(page, "#commands button", "/kill <target>")
        await page.keyboard.press("Tab")
        assert await page.input_value("#composer-text") == "/kill "
        await page.keyboard.type(TASKS[1])
        await page.keyboard.press("Enter")
        await seen(page, ".answer", f"Stopped {TASKS[1]}.")
        await write(page, "/subagents")
        listed = await seen(page, ".answer", "3 sub-agents:")
        assert await listed.locator("br").count() == 4, "each on a line of its own"
        assert await page.locator("#commands").is_hidden()
        await write(page, "/kill all")
        await seen(page, ".answer", "Stopped research a market trend and draft a summary.")


async def test_a_refused_message_says_why(tmp_path: Path, browser: Browser) -> None:
    async with suite(tmp_path, CONVEYOR_LANES__SESSION__CAP="1") as around, around.serve():
        around.agent.hold("first")
        page = await browser.open(address(around))
        await write(page, "first")
        await eventually(lambda: around.agent.started == ["first"])
        await write(page, "second")
        await (
            page.locator(".row", has_text="second")
            .locator("text=sending")
            .wait_for(state="detached")
        )
        await write(page, "third")
        browser_expects_a_429(browser)
        await seen(page, ".meta", "Not sent")
        around.agent.let_go("first")
        await seen(page, ".row.agent .bubble", "echo: second")


def browser_expects_a_429(browser: Browser) -> None:
    browser.problems = Forgiving("429", browser.problems)


class Forgiving(list[str]):
    """Problems of a page, without those that hold a text."""

    def __init__(self, expected: str, problems: Iterable[str] = ()) -> None:
        self._expected = expected
        super().__init__(text for text in problems if expected not in text)

    def append(self, text: str) -> None:
        if self._expected not in text:
            super().append(text)


@pytest.mark.parametrize("width", [360, 768, 1360])
async def test_it_fits_every_width_and_the_keyboard(
    tmp_path: Path, browser: Browser, width: int
) -> None:
    async with suite(tmp_path) as around, around.serve():
        around.agent.on("go", delegating("one with quite a long label that goes on and on", "two"))
        page = await browser.open(address(around), width=width, height=800)
        await write(page, "go")
        await page.locator(".node.good").nth(2).wait_for()
        overflow = await page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert overflow <= 0
        unnamed = await page.evaluate(
            """[...document.querySelectorAll('button, select, textarea, a')].filter((node) =>
               !(node.textContent.trim() || node.getAttribute('aria-label')
                 || node.labels?.length)).map((node) => node.outerHTML)"""
        )
        assert unnamed == []
        # Everything can be reached without a mouse, the message box with one key.
        await page.reload()
        await page.keyboard.press("Tab")
        assert await page.evaluate("document.activeElement.className") == "skip"
        await page.keyboard.press("Enter")
        await page.keyboard.press("Tab")
        order = await page.evaluate("document.activeElement.id")
        assert order in ("composer-text", "mode")


async def test_a_gateway_with_tokens_asks_for_one(tmp_path: Path, browser: Browser) -> None:
    tokens = {}
    for name in ("ann", "bob"):
        file = tmp_path / name
        file.write_text(f"the-token-of-{name}-0123456789")
        tokens[f"CONVEYOR_GATEWAY__TOKENS__{name.upper()}__TOKEN_FILE"] = str(file)
    async with suite(tmp_path, **tokens) as around, around.serve():
        around.agents.always("ListAgents", ag.ListAgentsResponse())
        browser.problems = Forgiving("401")
        page = await browser.open(address(around))
        for _ in range(2):  # the same one again is refused again
            await page.fill("#sign-in-token", "a-token-of-nobody-0123456789")
            await page.keyboard.press("Enter")
            await seen(page, "#sign-in-problem", "not known")
        await page.keyboard.press("Escape")
        await page.locator("#sign-in").wait_for()  # again: the event of its closing comes later
        await page.fill("#sign-in-token", "the-token-of-ann-0123456789")
        await page.keyboard.press("Enter")
        await page.locator("#sign-in").wait_for(state="hidden")
        await seen(page, "#link-text", "ready")
        await write(page, "hello of ann")
        await seen(page, ".row.agent .bubble", "echo: hello of ann")

        # In this tab only, and in no address.
        assert not any("token-of" in asked for asked in browser.asked)
        kept = "JSON.stringify([{...localStorage}, document.cookie])"
        assert "token" not in await page.evaluate(kept)
        await page.reload()
        await seen(page, ".row.agent .bubble", "echo: hello of ann")

        # After it nothing of hers is left, and Bob sees nothing of hers.
        await page.click("#sign-out")
        await page.locator("#sign-in").wait_for()
        assert "hello of ann" not in await page.content()
        assert await page.evaluate("sessionStorage.length") == 0
        await page.fill("#sign-in-token", "the-token-of-bob-0123456789")
        await page.keyboard.press("Enter")
        await page.locator("#sign-in").wait_for(state="hidden")
        await write(page, "hello of bob")
        await seen(page, ".row.agent .bubble", "echo: hello of bob")
        assert "hello of ann" not in await page.content()
