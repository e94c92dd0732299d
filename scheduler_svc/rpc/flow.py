"""`FlowService`: shows and stops whole spawn trees."""

from __future__ import annotations

from conveyor.scheduler.v1 import flow_service_pb2 as pb
from conveyor.scheduler.v1 import flow_service_pb2_grpc as pb_grpc
from scheduler_svc.engine import Engine
from scheduler_svc.rpc import CallContext, convert, validate
from scheduler_svc.rpc.pages import flow_query, position, runs_page, token_after
from scheduler_svc.rpc.scheduler import cancel
from scheduler_svc.store.base import RunQuery, StoredRun
from svckit.errors import FlowNotFound, RunNotFound


class FlowServicer(pb_grpc.FlowServiceServicer):
    """Translates; everything shown comes from the store."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def ListFlows(
        self, request: pb.ListFlowsRequest, context: CallContext
    ) -> pb.ListFlowsResponse:
        """See the contract."""
        size = validate.page_size(request.page_size, 50, 500)
        page, token = await runs_page(
            self._engine.store, flow_query(request.filter), request.filter, request.page_token, size
        )
        figures = await self._engine.store.flow_figures([found.run.flow_id for found in page])
        flows = [convert.flow(found, figures[found.run.flow_id]) for found in page]
        return pb.ListFlowsResponse(flows=flows, next_page_token=token)

    async def GetFlow(self, request: pb.GetFlowRequest, context: CallContext) -> pb.GetFlowResponse:
        """See the contract."""
        size = validate.page_size(request.page_size, 500, 1000)
        root = await self._root(request.flow_id)
        filters = pb.GetFlowRequest(flow_id=request.flow_id)
        after = position(request.page_token, filters)
        # Acceptance order puts parents before children and siblings in order of acceptance.
        found = await self._engine.store.list_runs(
            RunQuery(flow_id=request.flow_id), before=-1, after=after, limit=size + 1
        )
        page, more = found[:size], len(found) > size
        figures = await self._engine.store.flow_figures([request.flow_id])
        return pb.GetFlowResponse(
            flow=convert.flow(root, figures[request.flow_id]),
            nodes=[convert.run_message(node.run, node.payload, brief=True) for node in page],
            next_page_token=token_after(page[-1].run.order, filters) if more else "",
        )

    async def CancelFlow(
        self, request: pb.CancelFlowRequest, context: CallContext
    ) -> pb.CancelFlowResponse:
        """See the contract."""
        await self._root(request.flow_id)
        try:
            count = await cancel(self._engine, request.flow_id, request.reason)
        except RunNotFound:
            raise _not_found(request.flow_id) from None
        figures = await self._engine.store.flow_figures([request.flow_id])
        root = await self._root(request.flow_id)
        return pb.CancelFlowResponse(
            flow=convert.flow(root, figures[request.flow_id]), affected_runs=count
        )

    async def _root(self, flow_id: str) -> StoredRun:
        validate.text(flow_id, "flow_id", 64)
        root = (await self._engine.store.get_runs([flow_id])).get(flow_id)
        if root is None or root.run.parent_id:
            raise _not_found(flow_id)
        return root


def _not_found(flow_id: str) -> FlowNotFound:
    return FlowNotFound(f"no flow has the id {flow_id!r}", metadata={"flowId": flow_id})
