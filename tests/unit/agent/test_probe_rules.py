"""What a reply to a probe prompt amounts to, and the verdict that follows from all of them."""

from __future__ import annotations

import json
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_svc.domain import demo
from agent_svc.domain.probe import promptset, scoring
from agent_svc.domain.probe.promptset import TIERS, ProbePrompt, Tier
from agent_svc.domain.probe.scoring import Offer, Reading, Spawns, looks_around, outcome, spawns
from agent_svc.domain.probe.verdict import REQUIRED, Outcome, judge, wilson
from agent_svc.domain.prompt import Prompt, Said
from agent_svc.domain.tools import AGENTS, SPAWN, YIELD, ToolRules, schemas
from agent_svc.models.base import ModelReply
from agent_svc.probing import _read, published

TOOLS = frozenset({SPAWN, YIELD, AGENTS})
OFFER = Offer(agents=("main",), is_model=lambda name: name == "demo")
PLAIN = Reading()


def prompt(children: int, tier: Tier = "natural") -> ProbePrompt:
    return ProbePrompt("p", tier, children, "do it")


def call(**arguments: object) -> tuple[str, str]:
    return SPAWN, json.dumps({"task": "a", **arguments})


@pytest.mark.parametrize(
    ("calls", "valid", "invalid"),
    [
        ([], 0, False),
        ([call()], 1, False),
        ([call(), call(agent_id="main", model="demo", wait="true")], 2, False),
        ([call(), (AGENTS, "{}")], 1, False),
        ([(YIELD, "{}")], 0, False),
        ([call(), (SPAWN, "{not json")], 1, True),
        ([(SPAWN, json.dumps({"label": "no task"}))], 0, True),
        ([call(agent_id="researcher")], 0, True),
        ([call(model="gpt-9")], 0, True),
        ([call(runtime="acp")], 0, True),
        ([call(budget={"tokens": 3})], 0, True),
        ([("web_search", "{}")], 0, True),
    ],
)
def test_calls_count_when_a_turn_could_carry_them_out(
    calls: list[tuple[str, str]], valid: int, invalid: bool
) -> None:
    assert spawns(calls, TOOLS, OFFER) == Spawns(valid, invalid)


@pytest.mark.parametrize(
    ("children", "made", "reading", "expected"),
    [
        (2, Spawns(2, False), PLAIN, "right"),
        (2, Spawns(1, False), PLAIN, "wrong_count"),
        (2, Spawns(3, False), PLAIN, "wrong_count"),
        (2, Spawns(2, True), PLAIN, "invalid_call"),
        (2, Spawns(0, True), Reading(false_claim=True), "invalid_call"),
        (2, Spawns(0, False), PLAIN, "ignored_tool"),
        (2, Spawns(0, False), Reading(textual_call=True, false_claim=True), "invalid_call"),
        (2, Spawns(0, False), Reading(false_claim=True, invented_result=True), "invented_result"),
        (2, Spawns(0, False), Reading(false_claim=True), "invented_refusal"),
        # A text beside real calls is not the answer.
        (2, Spawns(2, False), Reading(invented_result=True), "right"),
        # Where none is right: delegating is too much, and a lie is a lie.
        (0, Spawns(0, False), PLAIN, "right"),
        (0, Spawns(1, False), PLAIN, "wrong_count"),
        (0, Spawns(0, False), Reading(false_claim=True), "invented_refusal"),
        (0, Spawns(0, False), Reading(invented_result=True), "invented_result"),
    ],
)
def test_outcomes(children: int, made: Spawns, reading: Reading, expected: Outcome) -> None:
    assert outcome(prompt(children), made, reading) == expected


def test_a_reply_that_only_looks_is_answered_and_asked_again() -> None:
    assert looks_around([(AGENTS, "{}")], TOOLS)
    assert not looks_around([(AGENTS, "{}"), call()], TOOLS)
    assert not looks_around([("unknown", "{}")], TOOLS)
    assert not looks_around([(YIELD, "{}")], TOOLS)
    assert not looks_around([], TOOLS)


def tries(**shares: tuple[int, int]) -> list[tuple[Tier, Outcome]]:
    found: list[tuple[Tier, Outcome]] = []
    for tier in TIERS:
        good, bad = shares.get(tier, (0, 0))
        found += [(tier, "right")] * good + [(tier, "ignored_tool")] * bad
    return found


@pytest.mark.parametrize(
    ("shares", "verdict"),
    [
        ({"natural": (10, 0), "explicit": (10, 0), "forced": (0, 9)}, "orchestrator"),
        ({"natural": (15, 5), "explicit": (17, 3)}, "orchestrator"),
        ({"natural": (14, 6), "explicit": (17, 3)}, "needs-insisting"),
        ({"natural": (20, 0), "explicit": (16, 4), "forced": (9, 1)}, "needs-insisting"),
        ({"natural": (0, 9), "explicit": (0, 9), "forced": (9, 0)}, "needs-insisting"),
        ({"natural": (0, 9), "explicit": (0, 9), "forced": (8, 1)}, "leaf-only"),
        ({"natural": (9, 0), "explicit": (0, 9), "forced": (0, 9)}, "leaf-only"),
        # Too little to tell: a tier is missing that could change the verdict.
        ({}, "unknown"),
        ({"natural": (9, 0)}, "unknown"),
        ({"forced": (9, 0)}, "unknown"),
        ({"natural": (4, 0), "explicit": (9, 0), "forced": (9, 0)}, "unknown"),
        ({"natural": (0, 9), "explicit": (0, 4), "forced": (4, 0)}, "unknown"),
        ({"natural": (0, 9), "explicit": (0, 9)}, "unknown"),
        # And one that could not.
        ({"natural": (0, 9), "explicit": (9, 0)}, "needs-insisting"),
    ],
)
def test_verdicts(shares: dict[str, tuple[int, int]], verdict: str) -> None:
    assert judge(tries(**shares)).verdict == verdict


def test_provider_errors_count_in_no_figure() -> None:
    errors: list[tuple[Tier, Outcome]] = [("natural", "provider_error")] * 50
    with_errors = judge(tries(natural=(9, 1), explicit=(9, 1)) + errors)
    without = judge(tries(natural=(9, 1), explicit=(9, 1)))
    assert (with_errors.figures, with_errors.scores) == (without.figures, without.scores)
    assert (with_errors.provider_errors, without.provider_errors) == (50, 0)


def test_a_forced_call_with_another_number_is_a_good_one() -> None:
    (score,) = judge([("forced", "wrong_count")] * 3 + [("forced", "invalid_call")]).scores
    assert (score.good, score.tries) == (3, 4)
    (score,) = judge([("explicit", "wrong_count")] * 3).scores
    assert score.good == 0


@given(st.lists(st.tuples(st.sampled_from(TIERS), st.sampled_from(get_args(Outcome))), max_size=60))
def test_every_try_is_counted_once_and_every_share_lies_in_its_interval(
    found: list[tuple[Tier, Outcome]],
) -> None:
    judged = judge(found)
    assert sum(figure.count for figure in judged.figures) + judged.provider_errors == len(found)
    for score in judged.scores:
        assert 0 <= score.low <= score.share <= score.high <= 1 or not score.tries
    assert judged.verdict != "unknown" or judged.explanation.startswith("Too few")


@given(st.integers(1, 500), st.data())
def test_more_of_the_same_narrows_the_interval(tries_made: int, data: st.DataObject) -> None:
    good = data.draw(st.integers(0, tries_made))
    low, high = wilson(good, tries_made)
    closer_low, closer_high = wilson(4 * good, 4 * tries_made)
    assert closer_high - closer_low < high - low


def test_the_interval_is_the_one_of_the_textbooks() -> None:
    # Wilson, 95 %, 8 of 10: 0.4902 to 0.9433.
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_published_set_is_what_the_reference_promises() -> None:
    found = published()
    tiers = {tier: found.of([tier]) for tier in TIERS}
    assert len(tiers["natural"]) >= 8
    assert len(tiers["explicit"]) >= 8
    assert len(tiers["forced"]) >= 5
    for tier in ("natural", "explicit"):
        assert any(not one.children for one in tiers[tier]), "over-delegating must show"
    assert len({one.text for one in found.prompt}) == len(found.prompt)
    assert set(REQUIRED) == set(TIERS)


@pytest.mark.parametrize(
    "line", ["children = 6", "children = -1", 'tier = "loud"', 'id = "twice"', "more = 1"]
)
def test_a_broken_set_is_refused(line: str) -> None:
    fields = {"id": '"a"', "tier": '"natural"', "children": "1", "text": '"x"'}
    name, _, value = line.partition(" = ")
    other = '\n[[prompt]]\nid = "twice"\ntier = "natural"\nchildren = 1\ntext = "y"\n'
    fields[name] = value
    body = "\n".join(f"{key} = {value}" for key, value in fields.items())
    with pytest.raises(ValueError):
        promptset.read(f'version = "1"\n[[prompt]]\n{body}\n{other}')


@pytest.mark.parametrize(
    ("model", "verdict"), [(demo.demo, "orchestrator"), (demo.demo_weak, "leaf-only")]
)
def test_the_demo_models_get_the_verdict_that_their_replies_earn(
    model: object, verdict: str
) -> None:
    assert callable(model)
    tools = schemas(ToolRules(depth=0, max_depth=1, spawnable={"main": ""}))
    found: list[tuple[Tier, Outcome]] = []
    for one in published().prompt:
        forced = SPAWN if one.tier == "forced" else ""
        said = model(Prompt("", [Said(one.text)], tools, force_tool=forced))
        reply = ModelReply(said.text, said.calls)
        made = spawns(reply.calls, TOOLS, OFFER)
        found.append((one.tier, scoring.outcome(one, made, _read(reply, TOOLS))))
    assert judge(found).verdict == verdict


def test_demo_obeys_an_order_in_words_and_hands_it_on_to_no_grandchild() -> None:
    tools = schemas(ToolRules(depth=0, max_depth=3, spawnable={"main": ""}))
    first = demo.demo(Prompt("", [Said("Spawn two sub-agents that judge this play.")], tools))
    tasks = [json.loads(arguments)["task"] for _, arguments in first.calls]
    assert len(tasks) == 2
    assert not demo.demo(Prompt("", [Said(tasks[0])], tools)).calls
