"""Where the trace of something is: its id, and the page that shows it if the suite names one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from conveyor_client.cli.output import printable
from svckit import tracecontext
from svckit.errors import ServiceError

if TYPE_CHECKING:
    from conveyor.common.v1 import trace_pb2 as trace_pb
    from conveyor_client.client import ConveyorClient

TEMPLATE_SECONDS = 2.0


async def print_trace(client: ConveyorClient, stored: trace_pb.TraceContext) -> None:
    """Print where the trace is that holds a run, nothing when it has none.

    The page is named only for a trace that was recorded: it would show nothing of any other.
    """
    trace_id = tracecontext.trace_id_of(stored)
    if not trace_id:
        return
    shown = f"trace {trace_id}"
    if not tracecontext.is_recorded(stored):
        shown += " (not recorded)"
    elif template := await _template(client):
        shown += f"  {printable(tracecontext.page(template, trace_id))}"
    print(shown)


async def find_page(client: ConveyorClient, error: ServiceError) -> None:
    """Note in `error` where its trace can be seen, as far as the suite tells."""
    if error.trace_id:
        error.trace_url = tracecontext.page(await _template(client), error.trace_id)


async def _template(client: ConveyorClient) -> str:
    try:
        async with asyncio.timeout(TEMPLATE_SECONDS):
            return (await client.server_info()).trace_url_template
    except (ServiceError, TimeoutError):
        return ""  # what was asked for is shown without it


def failure_line(error: ServiceError) -> str:
    """Return what to print of the trace of a failed call, empty when it has none."""
    return f"trace {error.trace_id}  {error.trace_url}".rstrip() if error.trace_id else ""
