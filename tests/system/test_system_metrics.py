"""What Prometheus reads from the running suite, and what the dashboard asks it for."""

from __future__ import annotations

import httpx

from conveyor.acp.v1 import session_pb2 as acp
from conveyor_client import ConveyorClient
from tests.metric_names import (
    alert_queries,
    all_definitions,
    dashboard_queries,
    defined,
    families_in,
    problems,
    series_in,
)
from tests.system.harness import CLASSIC, SUCCEEDED, Suite

RARE = {
    "conveyor_callers_refused_total": "gateway",
    "conveyor_commits_failed_total": "scheduler",
    "conveyor_deliveries_pending": "gateway",
    "conveyor_deliveries_total": "gateway",
    "conveyor_estimate_error_seconds": "scheduler",
    "conveyor_guard_interventions_total": "agent",
    "conveyor_model_failures_total": "agent",
    "conveyor_model_fallbacks_total": "agent",
    "conveyor_unpriced_calls_total": "agent",
    "conveyor_worker_turns_stopped_total": "agent",
}
"""What an undisturbed suite without push channels may have no series of, and who tells of it."""


async def use(client: ConveyorClient, session: str) -> None:
    """Delegate something, and have a coding agent ask for a permission."""

    async def ask(text: str, key: str, answer: str = "") -> None:
        async for item in client.chat(text, session_key=key):
            if item.event.HasField("question_asked"):
                await client.execute(answer, session_key=key)
            if item.HasField("ended"):
                assert item.ended.state == SUCCEEDED, item.ended.error

    await ask(CLASSIC, session)
    coding = f"{session}-coding"
    spec = acp.AcpSessionSpec(harness_id="scripted", permission_mode=acp.PERMISSION_MODE_ASK)
    spawned = await client.acp_spawn(spec, bind_session_key=coding)
    await ask("write metrics.txt x", coding, "/approve")
    await client.acp_close(spawned.session.acp_session_id)


async def scrape(suite: Suite) -> dict[str, str]:
    """Return what each service answers."""
    async with httpx.AsyncClient(trust_env=False) as http:
        await http.get(f"{suite.http}/v1/lanes")
        found = {}
        for service, address in suite.metrics.items():
            answer = await http.get(f"http://{address}/metrics")
            assert answer.status_code == 200
            found[service] = answer.text
        public = await http.get(f"{suite.http}/metrics")
        assert families_in(public.text) == families_in(found["gateway"])
    return found


async def test_the_dashboard_asks_for_what_the_suite_exposes(
    suite: Suite, client: ConveyorClient, session: str
) -> None:
    await use(client, session)
    scraped = await scrape(suite)
    check_names(scraped, session)
    check_figures(scraped)


def check_names(scraped: dict[str, str], session: str) -> None:
    known = defined()
    exposed: dict[str, frozenset[str]] = {}
    for service, text in scraped.items():
        assert f'conveyor_build_info{{service="{service}"' in text
        assert session not in text
        for name, labels in series_in(text).items():
            if name.startswith("conveyor_"):
                assert name in known, f"{service} exposes {name}, which nothing defines"
                assert labels == known[name], f"{service} exposes {name} with other labels"
            exposed[name] = exposed.get(name, frozenset()) | labels
    for one in all_definitions():
        if one.name in RARE:
            assert one.name in families_in(scraped[RARE[one.name]])
            for name in one.series:
                exposed.setdefault(name, known[name])
        assert all(name in exposed for name in one.series), f"nobody exposes {one.name}"
    exposed["up"] = frozenset({"job", "instance"})  # of Prometheus itself
    for where, query in (*dashboard_queries(), *alert_queries()):
        assert problems(query, exposed) == [], where


def check_figures(scraped: dict[str, str]) -> None:
    def value(service: str, series: str) -> float:
        [found] = [
            float(line.rpartition(" ")[2])
            for line in scraped[service].splitlines()
            if line.rpartition(" ")[0] == series
        ]
        return found

    assert value("scheduler", "conveyor_scheduler_serving") == 1
    assert value("scheduler", 'conveyor_announcements_total{lane="main"}') >= 3
    assert value("scheduler", 'conveyor_runs_accepted_total{lane="subagent"}') >= 3
    assert value("scheduler", 'conveyor_workers{queue="agent"}') == 1
    assert value("agent", 'conveyor_tool_calls_total{outcome="ok",tool="sessions_spawn"}') >= 3
    assert value("agent", 'conveyor_model_calls_total{model="demo",outcome="answered"}') >= 5
    assert value("agent", 'conveyor_worker_connected{queue="agent"}') == 1
    assert value("acp", 'conveyor_acp_prompts_total{harness="scripted",outcome="end_turn"}') >= 1
    assert value("acp", 'conveyor_acp_permissions_total{decision="allowed",rule="asked"}') >= 1
    assert value("acp", 'conveyor_acp_permission_wait_seconds_count{answer="allowed"}') >= 1
    assert value("gateway", 'conveyor_messages_total{kind="message"}') >= 2
