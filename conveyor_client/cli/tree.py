"""A flow as a tree of lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conveyor.scheduler.v1 import flow_service_pb2 as flow_pb
from conveyor.scheduler.v1 import run_pb2 as run_pb
from conveyor_client.cli.output import TERMINAL, between, plain, seconds, state_markup, tokens
from svckit.words import shorten, span

if TYPE_CHECKING:
    from rich.tree import Tree


def flow_tree(answer: flow_pb.GetFlowResponse) -> Tree:
    """Return the tree of a flow, roots first as they come. Needs all its nodes."""
    from rich.tree import Tree

    flow = answer.flow
    head = f"[bold]flow {flow.flow_id}[/]  {state_markup(flow.state)}  {plain(flow.session_key)}"
    head += f"  {_times(flow.timing, flow.state)}  {tokens(flow.usage)}"
    tree = Tree(head)
    branches: dict[str, Tree] = {}
    for node in answer.nodes:
        # Parents come before children; one that is missing hangs its child at the top.
        parent = branches.get(node.spawn.parent_run_id, tree)
        branches[node.run_id] = parent.add(node_line(node))
    return tree


def node_line(run: run_pb.Run) -> str:
    """Return one run as a line of rich markup: state, name, times, tokens, error."""
    name = run.spec.label or ("root" if not run.spawn.parent_run_id else run.spec.queue)
    parts = [state_markup(run.state), f"[bold]{plain(name)}[/]", f"[dim]{run.run_id}[/]"]
    if run.spec.queue not in ("", "agent"):
        parts.append(plain(worker_words(run.spec)))
    parts.append(_times(run.timing, run.state))
    if run.turn > 1:
        parts.append(f"{run.turn} turns")
    if run.attempt > 1:
        parts.append(f"attempt {run.attempt}")
    if run.HasField("usage"):
        parts.append(tokens(run.usage))
    if (models := model_words(run)) != "":
        parts.append(f"[yellow]{plain(models)}[/]")
    if run.guard:
        parts.append(f"[yellow]{plain(guard_words(run))}[/]")
    if run.HasField("suspension"):
        parts.append(f"[blue]{_waits_for(run.suspension)}[/]")
    if run.error.message:
        parts.append(f"[red]{plain(shorten(run.error.message, 200))}[/]")
    return "  ".join(part for part in parts if part)


def worker_words(spec: run_pb.RunSpec) -> str:
    """Return who does a run that no agent of ours does: its queue, and the harness if it is one."""
    names = [part for part in spec.estimate_key.split("/") if part not in ("", spec.queue)]
    if spec.queue != "acp" or not names:
        return spec.queue
    return f"{spec.queue} {names[0]}" + (" (opening)" if names[-1] == "open" else "")


def model_words(run: run_pb.Run) -> str:
    """Return `requested → effective` when another model answered than was asked, else nothing."""
    asked, answered = run.requested_model, run.effective_model
    return f"{asked} → {answered}" if asked and answered and asked != answered else ""


_GUARD_SAW = {
    "false_claim": "false claim",
    "ignored_instruction": "ignored instruction",
    "textual_call": "call as text",
    "invented_result": "invented result",
}
_GUARD_DID = {
    "parse_call": "made the call",
    "insist": "insisted",
    "force_tool": "forced",
    "deliver_with_note": "delivered with a note",
}


def guard_words(run: run_pb.Run) -> str:
    """Return what the delegation guard did, as one line: `guard: false claim → insisted`.

    The model that it fell back to is the one that answered last.
    """
    words = []
    saw = ""
    for did in run.guard:
        if did.trigger != saw:
            saw = did.trigger
            words.append(_GUARD_SAW.get(saw, saw))
        if did.step == "fall_back_model":
            words.append(f"fell back to {run.effective_model or 'another model'}")
        else:
            words.append(_GUARD_DID.get(did.step, did.step))
    return f"guard: {' → '.join(words)}"


def _times(timing: run_pb.RunTiming, state: run_pb.RunState.ValueType) -> str:
    waited = seconds(timing.session_lane_wait) + seconds(timing.global_lane_wait)
    worked = seconds(timing.executed)
    words = []
    if waited >= 0.05:
        words.append(f"waited {span(waited)}")
    if timing.HasField("start_time"):
        words.append(f"worked {span(worked)}")
    if state in TERMINAL and timing.HasField("end_time"):
        words.append(f"in all {span(between(timing.create_time, timing.end_time))}")
    return ", ".join(words)


def _waits_for(suspension: run_pb.Suspension) -> str:
    kind = suspension.condition.WhichOneof("condition")
    what = {"children": "its children", "approval": "an answer", "limit": "a limit"}
    words = f"waits for {what.get(kind or '', 'something')}"
    return words if suspension.holds_session_lane else f"{words}, lane released"
