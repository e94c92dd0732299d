"""Lists of runs, flows and lanes: filters, order, pages."""

from __future__ import annotations

import pytest
from grpc import aio

from conveyor.scheduler.v1 import flow_service_pb2 as flow
from conveyor.scheduler.v1 import lane_pb2, run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as pb
from svckit.grpc.status import from_rpc_error

from .conftest import Driver


async def ids(s: Driver, **wanted: object) -> list[str]:
    request = pb.ListRunsRequest(filter=run_pb2.RunFilter(**wanted))  # type: ignore[arg-type]
    return [run.run_id for run in (await s.scheduler.ListRuns(request)).runs]


async def test_runs_are_filtered_and_listed_newest_first(s: Driver) -> None:
    one = (await s.send("a", customer_key="x", labels={"campaign": "spring"})).run.run_id
    two = (await s.send("b", customer_key="y", labels={"campaign": "autumn"})).run.run_id
    three = (await s.send("a", customer_key="x")).run.run_id
    assert await ids(s) == [three, two, one]
    assert await ids(s, session_key="a") == [three, one]
    assert await ids(s, customer_key="y") == [two]
    assert await ids(s, labels={"campaign": "spring"}) == [one]
    assert await ids(s, labels={"campaign": "spring", "other": "x"}) == []
    assert await ids(s, global_lane="subagent") == []
    await s.complete(await s.lease_one())
    assert await ids(s, states=[run_pb2.RUN_STATE_SUCCEEDED]) == [one]
    assert await ids(s, flow_id=two) == [two]


async def test_pages_are_bound_to_their_filter(s: Driver) -> None:
    sent = [(await s.send("a", f"m{n}")).run.run_id for n in range(5)]
    found: list[str] = []
    token = ""
    while True:
        page = await s.scheduler.ListRuns(pb.ListRunsRequest(page_size=2, page_token=token))
        found += [run.run_id for run in page.runs]
        assert not any(run.HasField("result") or run.inputs for run in page.runs)
        token = page.next_page_token
        if not token:
            break
        last = token
    assert found == sent[::-1]
    for request in (
        pb.ListRunsRequest(filter=run_pb2.RunFilter(session_key="a"), page_token=last),
        pb.ListRunsRequest(page_token="nonsense"),
    ):
        with pytest.raises(aio.AioRpcError) as caught:
            await s.scheduler.ListRuns(request)
        assert from_rpc_error(caught.value).metadata["field"] == "page_token"


async def test_flows_count_their_runs_and_trees_come_in_pages(s: Driver) -> None:
    await s.send("alone")
    await s.complete(await s.lease_one())
    root = (await s.send("a", label="classic")).run.run_id
    parent = await s.lease_one()
    children = await s.spawn(parent, "x", "y", "z")
    listed = await s.flows.ListFlows(
        flow.ListFlowsRequest(filter=flow.FlowFilter(with_children=True))
    )
    [found] = listed.flows
    assert (found.flow_id, found.label, found.depth) == (root, "classic", 1)
    assert {(c.state, c.runs) for c in found.state_counts} == {
        (run_pb2.RUN_STATE_RUNNING, 1),
        (run_pb2.RUN_STATE_QUEUED, 3),
    }
    nodes: list[str] = []
    token = ""
    while True:
        page = await s.flows.GetFlow(
            flow.GetFlowRequest(flow_id=root, page_size=2, page_token=token)
        )
        nodes += [node.run_id for node in page.nodes]
        token = page.next_page_token
        if not token:
            break
    assert nodes == [root, *children]
    for unknown in ("nope", children[0]):  # a child is no flow
        with pytest.raises(aio.AioRpcError) as caught:
            await s.flows.GetFlow(flow.GetFlowRequest(flow_id=unknown))
        assert from_rpc_error(caught.value).reason == "FLOW_NOT_FOUND"


async def test_lanes_show_who_waits(s: Driver) -> None:
    await s.send("a", "one")
    await s.send("a", "two")
    await s.send("b")
    await s.lease(1)
    lanes = {
        (lane.kind, lane.name): lane
        for lane in (await s.scheduler.ListLanes(pb.ListLanesRequest())).lanes
    }
    main = lanes[(lane_pb2.LANE_KIND_GLOBAL, "main")]
    assert (main.running, main.waiting, main.waiting_customers) == (1, 1, 1)
    assert main.HasField("oldest_waiting_time")
    busy = lanes[(lane_pb2.LANE_KIND_SESSION, "a")]
    assert (busy.running, busy.waiting, busy.limit) == (1, 1, 1)
    with pytest.raises(aio.AioRpcError) as caught:
        await s.scheduler.UpdateLane(pb.UpdateLaneRequest(name="nope", limit=1))
    assert from_rpc_error(caught.value).reason == "LANE_NOT_FOUND"
