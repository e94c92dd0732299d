"""Serves the suite's agents over standard input and output until the client closes them."""

from __future__ import annotations

import logging
import sys
from typing import cast

from acp import Agent, run_agent

from conveyor_client.client import ConveyorClient
from conveyor_client.serving.agent import SuiteAgent
from svckit.version import __version__


async def serve_stdio(suite: ConveyorClient, *, agent_id: str = "") -> None:
    """Answer an ACP client. Only the protocol goes to standard output; whatever is worth telling
    goes to standard error.
    """
    # The SDK tells of lines that are no JSON with their text, which may be anything.
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="conveyor: %(message)s")
    agent = SuiteAgent(suite, agent_id=agent_id, version=__version__)
    # The SDK answers "method not found" for what an agent does not have: modes, options, forks.
    await run_agent(cast("Agent", agent))
