"""`deploy/grafana/conveyor.json`: the dashboard, as rows of panels and the queries behind them.

Written down here rather than exported from Grafana, so that a change can be read. The first row is
for whoever asks whether it is well and why it waits; the others are for whoever looks for the cause.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

WIDTH = 24
SOURCE = {"type": "prometheus", "uid": "${source}"}
HERE = 'instance=~"$instance"'
LANES = f'{HERE}, lane=~"$lane"'
RATE = "[$__rate_interval]"
RED, ORANGE, GREEN, GREY = "red", "orange", "green", "text"


@dataclass(frozen=True)
class Panel:
    """A panel: queries with their legends. `unit` as Grafana names it."""

    title: str
    about: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    width: int = 8
    kind: str = "timeseries"
    stacked: bool = False
    # Of a single figure: (from which value on, colour), the first without a value.
    steps: tuple[tuple[float | None, str], ...] = ()
    # What a figure that is not there means.
    none: str = "0"
    overrides: tuple[dict[str, Any], ...] = field(default=())


def quantile(q: float, name: str, by: str, labels: str = HERE) -> str:
    """A quantile of a histogram, by a label; empty for one figure."""
    grouped = f"sum by (le{', ' + by if by else ''})"
    return f"histogram_quantile({q}, {grouped} (rate({name}_bucket{{{labels}}}{RATE})))"


def rate(name: str, by: str, labels: str = HERE, *, per: str = "") -> str:
    """Growth per second of a counter, by labels."""
    found = f"sum by ({by}) (rate({name}{{{labels}}}{RATE}))"
    return f"{found}{per}"


def stat(
    title: str,
    about: str,
    query: str,
    steps: tuple[tuple[float | None, str], ...],
    *,
    unit: str = "short",
    width: int = 4,
    legend: str = "",
) -> Panel:
    """One figure, in the colour of how bad it is."""
    return Panel(title, about, ((query, legend),), unit, width, "stat", steps=steps)


LIMIT_LINES = (
    {
        "matcher": {"id": "byRegexp", "options": ".* limit"},
        "properties": [
            {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [8, 8]}},
            {"id": "custom.fillOpacity", "value": 0},
        ],
    },
)

ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Is it well, and why does it wait?",
        (
            stat(
                "Leading schedulers",
                "Exactly one has to lead, with a store that takes writes.",
                "sum(conveyor_scheduler_serving)",
                ((None, RED), (1, GREEN), (2, RED)),
            ),
            stat(
                "Services that answer",
                "How many processes tell of themselves.",
                f"count(conveyor_build_info{{{HERE}}})",
                ((None, GREY),),
            ),
            stat(
                "Longest wait for a slot",
                "Of all runs that wait for a slot or a worker now.",
                f"max(conveyor_lane_oldest_wait_seconds{{{LANES}}})",
                ((None, GREEN), (60, ORANGE), (300, RED)),
                unit="s",
            ),
            stat(
                "Failed, last 15 min",
                "Runs that failed or ran out of time. Why: the row of turns.",
                f'sum(increase(conveyor_runs_ended_total{{{LANES}, state=~"failed|expired"}}[15m]))',
                ((None, GREEN), (1, ORANGE), (20, RED)),
            ),
            stat(
                "Waiting for people",
                "Questions that nobody has answered yet.",
                f"sum(conveyor_questions_open{{{HERE}}})",
                ((None, GREY), (1, ORANGE)),
            ),
            stat(
                "Undelivered",
                "Replies and announcements that wait in an outbox.",
                f"sum(conveyor_deliveries_pending{{{HERE}}})",
                ((None, GREEN), (10, ORANGE), (100, RED)),
            ),
            Panel(
                "Why runs wait",
                "Unfinished runs that do not execute. `slot`: the lane is full. `worker`: a slot is "
                "free and nobody takes the run: are workers up? `session`: behind an earlier message "
                "of the same conversation. `limit`: a provider's rate, or room for a process.",
                ((f"sum by (reason) (conveyor_lane_waiting{{{LANES}}})", "{{reason}}"),),
                width=12,
                stacked=True,
            ),
            Panel(
                "Slots taken",
                "A lane at its limit makes the others wait for a slot: raise the limit, or find out "
                "why turns take long.",
                (
                    (f"sum by (lane) (conveyor_lane_running{{{LANES}}})", "{{lane}}"),
                    (f"max by (lane) (conveyor_lane_limit{{{LANES}}})", "{{lane}} limit"),
                ),
                width=12,
                overrides=LIMIT_LINES,
            ),
        ),
    ),
    (
        "Waiting and turns",
        (
            Panel(
                "Wait for a slot",
                "From when only the slot was missing until a worker had the run.",
                (
                    (
                        quantile(0.5, "conveyor_wait_seconds", "lane", f'{LANES}, layer="global"'),
                        "{{lane}} p50",
                    ),
                    (
                        quantile(0.95, "conveyor_wait_seconds", "lane", f'{LANES}, layer="global"'),
                        "{{lane}} p95",
                    ),
                ),
                "s",
            ),
            Panel(
                "Wait in the conversation",
                "Behind earlier messages of the same session.",
                (
                    (
                        quantile(0.5, "conveyor_wait_seconds", "lane", f'{LANES}, layer="session"'),
                        "{{lane}} p50",
                    ),
                    (
                        quantile(
                            0.95, "conveyor_wait_seconds", "lane", f'{LANES}, layer="session"'
                        ),
                        "{{lane}} p95",
                    ),
                ),
                "s",
            ),
            Panel(
                "Turns",
                "How long turns execute.",
                (
                    (quantile(0.5, "conveyor_turn_seconds", "lane", LANES), "{{lane}} p50"),
                    (quantile(0.95, "conveyor_turn_seconds", "lane", LANES), "{{lane}} p95"),
                ),
                "s",
            ),
            Panel(
                "Runs accepted",
                "What comes in.",
                ((rate("conveyor_runs_accepted_total", "lane", LANES), "{{lane}}"),),
                "cps",
            ),
            Panel(
                "Runs ended",
                "How they ended, and why those that did not succeed.",
                (
                    (
                        rate("conveyor_runs_ended_total", "state, reason", LANES),
                        "{{state}} {{reason}}",
                    ),
                ),
                "cps",
            ),
            Panel(
                "Attempts again, leases lost",
                "A lost lease is a worker that died, hung or was cut off; the turn is tried again.",
                (
                    (
                        rate("conveyor_attempts_total", "lane", f'{LANES}, kind="repeated"'),
                        "{{lane}} again",
                    ),
                    (rate("conveyor_leases_lost_total", "lane", LANES), "{{lane}} lost"),
                ),
                "cps",
            ),
            Panel(
                "Suspended",
                "How long runs wait without a slot before they go on.",
                ((quantile(0.9, "conveyor_suspended_seconds", "reason", LANES), "{{reason}} p90"),),
                "s",
            ),
            Panel(
                "Estimates against what came",
                "How far off the told start was, nine times in ten.",
                (
                    (
                        quantile(0.9, "conveyor_estimate_error_seconds", "side", LANES),
                        "{{side}} p90",
                    ),
                ),
                "s",
            ),
            Panel(
                "Announcements",
                "Ends of children: told to their parents, and not yet heard by a turn.",
                (
                    (rate("conveyor_announcements_total", "lane", LANES), "{{lane}} per second"),
                    (
                        f"sum by (lane) (conveyor_announcements_pending{{{LANES}}})",
                        "{{lane}} pending",
                    ),
                ),
            ),
        ),
    ),
    (
        "Models",
        (
            Panel(
                "Calls",
                "`throttled` is a 429 of the provider.",
                ((rate("conveyor_model_calls_total", "model, outcome"), "{{model}} {{outcome}}"),),
                "cps",
            ),
            Panel(
                "Time to the whole reply",
                "",
                (
                    (quantile(0.5, "conveyor_model_call_seconds", "model"), "{{model}} p50"),
                    (quantile(0.95, "conveyor_model_call_seconds", "model"), "{{model}} p95"),
                ),
                "s",
            ),
            Panel(
                "Failures by cause",
                "See provider-errors.md for what each cause means.",
                ((rate("conveyor_model_failures_total", "model, cause"), "{{model}} {{cause}}"),),
                "cps",
            ),
            Panel(
                "Tokens",
                "Read, read from a cache, and written.",
                ((rate("conveyor_tokens_total", "model, direction"), "{{model}} {{direction}}"),),
                "cps",
            ),
            Panel(
                "Cost",
                "US dollars an hour at the present rate; what has no known price is not in it.",
                ((rate("conveyor_cost_usd_total", "model", per=" * 3600"), "{{model}}"),),
                "currencyUSD",
            ),
            Panel(
                "Retries, fallbacks, waits for a limit",
                "What calls cost in patience.",
                (
                    (rate("conveyor_model_retries_total", "model"), "{{model}} again"),
                    (
                        rate("conveyor_model_fallbacks_total", "requested, answered"),
                        "{{requested}} to {{answered}}",
                    ),
                    (rate("conveyor_limit_waits_total", "model"), "{{model}} waits"),
                    (rate("conveyor_unpriced_calls_total", "model"), "{{model}} without a price"),
                ),
                "cps",
            ),
            Panel(
                "Delegation guard",
                "What a model did that it should not have, and what was done about it.",
                (
                    (
                        f"sum by (trigger, step) (increase(conveyor_guard_interventions_total{{{HERE}}}[1h]))",
                        "{{trigger}}: {{step}}",
                    ),
                ),
            ),
            Panel(
                "Tool calls",
                "",
                ((rate("conveyor_tool_calls_total", "tool, outcome"), "{{tool}} {{outcome}}"),),
                "cps",
            ),
            Panel(
                "Time of tools",
                "",
                ((quantile(0.95, "conveyor_tool_seconds", "tool"), "{{tool}} p95"),),
                "s",
            ),
        ),
    ),
    (
        "Coding agents",
        (
            Panel(
                "Sessions",
                "By state: `asking` waits for people, `parked` has no process.",
                ((f"sum by (state) (conveyor_acp_sessions{{{HERE}}})", "{{state}}"),),
                stacked=True,
            ),
            Panel(
                "Processes",
                "At the limit the next session waits for room, or another is parked.",
                (
                    (f"sum(conveyor_acp_processes{{{HERE}}})", "processes"),
                    (f"sum(conveyor_acp_processes_limit{{{HERE}}})", "their limit"),
                ),
                overrides=LIMIT_LINES,
            ),
            Panel(
                "Starts",
                "Of processes, by what came of it.",
                (
                    (
                        rate("conveyor_acp_openings_total", "harness, outcome"),
                        "{{harness}} {{outcome}}",
                    ),
                    (
                        quantile(0.95, "conveyor_acp_open_seconds", "harness"),
                        "{{harness}} p95 seconds",
                    ),
                ),
            ),
            Panel(
                "Prompts",
                "How they ended.",
                (
                    (
                        rate("conveyor_acp_prompts_total", "harness, outcome"),
                        "{{harness}} {{outcome}}",
                    ),
                ),
                "cps",
            ),
            Panel(
                "Time of prompts",
                "Waits for people included.",
                ((quantile(0.95, "conveyor_acp_prompt_seconds", "harness"), "{{harness}} p95"),),
                "s",
            ),
            Panel(
                "Permissions",
                "Decided by a rule or by people; the wait is that of people.",
                (
                    (
                        rate("conveyor_acp_permissions_total", "decision, rule"),
                        "{{decision}} {{rule}}",
                    ),
                    (f"sum(conveyor_acp_permissions_waiting{{{HERE}}})", "waiting now"),
                    (
                        quantile(0.9, "conveyor_acp_permission_wait_seconds", "answer"),
                        "{{answer}} p90 seconds",
                    ),
                ),
            ),
        ),
    ),
    (
        "Gateway",
        (
            Panel(
                "HTTP",
                "",
                ((rate("conveyor_http_requests_total", "route, status"), "{{route}} {{status}}"),),
                "reqps",
            ),
            Panel(
                "Time to the first byte",
                "",
                ((quantile(0.95, "conveyor_http_request_seconds", "route"), "{{route}} p95"),),
                "s",
            ),
            Panel(
                "Open streams and watches",
                "",
                (
                    (f"sum(conveyor_http_open_streams{{{HERE}}})", "server-sent events"),
                    (
                        f'sum by (method) (conveyor_grpc_open_calls{{{HERE}, method=~".*(Watch|Chat).*"}})',
                        "{{method}}",
                    ),
                ),
            ),
            Panel(
                "Messages",
                "What people sent that was taken in.",
                ((rate("conveyor_messages_total", "kind"), "{{kind}}"),),
                "cps",
            ),
            Panel(
                "Deliveries",
                "`postponed` is tried again; `given_up` is not.",
                (
                    (
                        rate("conveyor_deliveries_total", "channel, outcome"),
                        "{{channel}} {{outcome}}",
                    ),
                    (
                        f"sum by (channel) (conveyor_deliveries_pending{{{HERE}}})",
                        "{{channel}} pending",
                    ),
                ),
            ),
            Panel(
                "Turned away",
                "Tokens that are missing or not known, and callers that call too often.",
                ((rate("conveyor_callers_refused_total", "reason"), "{{reason}}"),),
                "cps",
            ),
        ),
    ),
    (
        "Inside",
        (
            Panel(
                "Commits",
                "Of the scheduler's store. One commit answers all commands that came meanwhile.",
                (
                    (quantile(0.5, "conveyor_commit_seconds", "instance"), "{{instance}} p50"),
                    (quantile(0.99, "conveyor_commit_seconds", "instance"), "{{instance}} p99"),
                ),
                "s",
            ),
            Panel(
                "Commands and events",
                "",
                (
                    (rate("conveyor_commit_commands_count", "instance"), "{{instance}} commits"),
                    (rate("conveyor_commit_commands_sum", "instance"), "{{instance}} commands"),
                    (rate("conveyor_events_total", "instance"), "{{instance}} events"),
                    (
                        rate("conveyor_commits_failed_total", "instance"),
                        "{{instance}} failed commits",
                    ),
                    (
                        f"sum by (instance) (conveyor_commands_waiting{{{HERE}}})",
                        "{{instance}} waiting",
                    ),
                ),
            ),
            Panel(
                "Event loop lag",
                "Whatever holds the loop up holds everybody up.",
                (
                    (
                        quantile(0.99, "conveyor_event_loop_lag_seconds", "instance"),
                        "{{instance}} p99",
                    ),
                ),
                "s",
            ),
            Panel(
                "Watchers",
                "Of the event log. One that is behind reads the store again.",
                (
                    (f"sum by (scope) (conveyor_watchers{{{HERE}}})", "{{scope}}"),
                    (f"sum(conveyor_watchers_behind{{{HERE}}})", "behind"),
                    (f"max(conveyor_watcher_lag_events{{{HERE}}})", "events in the longest inbox"),
                ),
            ),
            Panel(
                "Workers",
                "Turns held, against slots; and workers that call.",
                (
                    (f"sum by (queue) (conveyor_worker_turns{{{HERE}}})", "{{queue}} turns"),
                    (f"sum by (queue) (conveyor_worker_slots{{{HERE}}})", "{{queue}} limit"),
                    (f"sum by (queue) (conveyor_workers{{{HERE}}})", "{{queue}} workers"),
                    (
                        f"sum by (queue) (conveyor_worker_connected{{{HERE}}})",
                        "{{queue}} connected",
                    ),
                ),
                overrides=LIMIT_LINES,
            ),
            Panel(
                "Turns as workers end them",
                "",
                (
                    (
                        rate("conveyor_worker_turns_ended_total", "queue, outcome"),
                        "{{queue}} {{outcome}}",
                    ),
                    (
                        rate("conveyor_worker_turns_stopped_total", "queue, reason"),
                        "{{queue}} {{reason}}",
                    ),
                ),
                "cps",
            ),
            Panel(
                "gRPC errors",
                "",
                (
                    (
                        rate("conveyor_grpc_calls_total", "method, code", f'{HERE}, code!="OK"'),
                        "{{method}} {{code}}",
                    ),
                ),
                "cps",
            ),
            Panel(
                "gRPC time",
                "",
                ((quantile(0.99, "conveyor_grpc_call_seconds", "method"), "{{method}} p99"),),
                "s",
            ),
            Panel(
                "Memory",
                "",
                ((f"process_resident_memory_bytes{{{HERE}}}", "{{job}} {{instance}}"),),
                "bytes",
            ),
            Panel(
                "CPU",
                "Cores.",
                ((rate("process_cpu_seconds_total", "job, instance"), "{{job}} {{instance}}"),),
            ),
            Panel(
                "Steps of turns",
                "",
                ((rate("conveyor_steps_total", "kind"), "{{kind}}"),),
                "cps",
            ),
            Panel(
                "Spans that were dropped",
                "Tracing never holds work up: what the collector does not take is dropped.",
                ((rate("conveyor_spans_dropped_total", "job"), "{{job}}"),),
                "cps",
            ),
        ),
    ),
)


def render() -> str:
    """The file."""
    return json.dumps(dashboard(), indent=2) + "\n"


def dashboard() -> dict[str, Any]:
    """What Grafana loads."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS:
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": {"h": 1, "w": WIDTH, "x": 0, "y": top},
                "panels": [],
            }
        )
        top += 1
        left = height = 0
        for panel in row:
            if left + panel.width > WIDTH:
                top, left, height = top + height, 0, 0
            tall = 4 if panel.kind == "stat" else 8
            place = {"h": tall, "w": panel.width, "x": left, "y": top}
            panels.append(_panel(panel, len(panels) + 1, place))
            left, height = left + panel.width, max(height, tall)
        top += height
    return {
        "title": "Conveyor",
        "uid": "conveyor",
        "description": "The first row says whether it is well and why it waits. What each figure "
        "means: docs/reference/metrics.md.",
        "tags": ["conveyor"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": _variables()},
        "annotations": {"list": []},
        "links": [],
        "panels": panels,
    }


def _variables() -> list[dict[str, Any]]:
    def values(name: str, label: str, query: str) -> dict[str, Any]:
        return {
            "name": name,
            "label": label,
            "type": "query",
            "datasource": SOURCE,
            "definition": query,
            "query": {"qryType": 1, "query": query, "refId": name},
            "refresh": 2,
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": ["All"], "value": ["$__all"]},
        }

    source = {
        "name": "source",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "refresh": 1,
        "current": {},
    }
    return [
        source,
        values("instance", "Instance", "label_values(conveyor_build_info, instance)"),
        values("lane", "Lane", "label_values(conveyor_lane_limit, lane)"),
    ]


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    found: dict[str, Any] = {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": list(panel.overrides)},
        "targets": [
            {
                "refId": chr(ord("A") + at),
                "datasource": SOURCE,
                "expr": query,
                "legendFormat": legend or "__auto",
                "range": panel.kind != "stat",
                "instant": panel.kind == "stat",
            }
            for at, (query, legend) in enumerate(panel.queries)
        ],
    }
    if panel.kind == "stat":
        if panel.unit == "short":
            defaults["decimals"] = 0
        defaults["noValue"] = panel.none
        defaults["color"] = {"mode": "thresholds"}
        defaults["thresholds"] = {
            "mode": "absolute",
            "steps": [{"value": value, "color": colour} for value, colour in panel.steps],
        }
        found["options"] = {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "colorMode": "background",
            "graphMode": "none",
            "textMode": "value",
        }
        return found
    defaults["color"] = {"mode": "palette-classic"}
    defaults["custom"] = {
        "lineWidth": 1,
        "fillOpacity": 25 if panel.stacked else 5,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
    }
    found["options"] = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return found
