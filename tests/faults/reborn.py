"""Runs the agent service and starts it again whenever it is killed, within a moment.

`python -m tests.faults.reborn --config PATH`. Everything is imported once; each life is a process
of its own, forked from here. So what a kill takes, and what it leaves behind, is as real as ever;
only the two seconds of imports are not paid again.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from types import FrameType

# What a life would import when it needs it.
import alembic.autogenerate  # noqa: F401
import grpc_reflection.v1alpha.reflection  # noqa: F401
import sqlalchemy.dialects.sqlite  # noqa: F401

import agent_svc.__main__
import agent_svc.app
import svckit.telemetry  # noqa: F401
from agent_svc.domain.prompt import Prompt, Said
from agent_svc.models.provider import ProviderModel
from svckit.settings_model import ProviderSettings
from svckit.testing.fake_openai import FakeOpenAI

_child = 0
_stopping = False


def main() -> int:
    """Start one life after the other until one ends otherwise than by a kill."""
    global _child
    signal.signal(signal.SIGTERM, _stop)
    asyncio.run(_ask_once())
    # A service collects garbage when it has started: not that of its forebears each time.
    gc.collect()
    gc.freeze()
    while not _stopping:
        _child = os.fork()
        if not _child:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            agent_svc.__main__.main()
        _, status = os.waitpid(_child, 0)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            return os.waitstatus_to_exitcode(status)
    return 0


async def _ask_once() -> None:
    """The first call of a model imports and prepares a lot; it needs no gRPC, which cannot fork."""
    async with FakeOpenAI() as fake:
        model = ProviderModel("warm", "up", ProviderSettings(base_url=fake.base_url))
        await model.ask(Prompt("", [Said("hello", "person", ())], ()), lambda _: None)
        await model.close()


def _stop(number: int, _: FrameType | None) -> None:
    global _stopping
    _stopping = True
    if _child:
        os.kill(_child, number)


if __name__ == "__main__":
    sys.exit(main())
