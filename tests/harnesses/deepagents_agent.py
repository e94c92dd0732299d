"""A coding agent built with Deep Agents, served over ACP, for `acp.harness.deepagents.command`.

Runs in the environment that `scripts/install_agents.py` makes, not in the project's. Its model is
at `ANTHROPIC_BASE_URL`. Reading needs no permission; writing, editing and running do.
"""

import asyncio
import os
from typing import Any

from acp import run_agent
from deepagents import create_deep_agent
from deepagents.backends import LocalShellBackend
from deepagents_acp.server import AgentServerACP
from langchain_anthropic import ChatAnthropic
from langgraph.checkpoint.memory import MemorySaver

memory = MemorySaver()


def build(context: Any) -> Any:
    """Make the agent of one session."""
    model = ChatAnthropic(
        model="fake-model",
        base_url=os.environ["ANTHROPIC_BASE_URL"],
        api_key=os.environ["ANTHROPIC_API_KEY"],
        max_retries=0,
        streaming=True,
    )
    return create_deep_agent(
        model=model,
        checkpointer=memory,
        backend=LocalShellBackend(root_dir=context.cwd, virtual_mode=False),
        interrupt_on={"write_file": True, "edit_file": True, "execute": True},
    )


asyncio.run(run_agent(AgentServerACP(agent=build)))
