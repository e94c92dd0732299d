"""A fake provider that outlives the event loop of a single test, and gates to hold it with."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from svckit.testing import eventually
from svckit.testing.fake_openai import Answer, ChatRequest, FakeOpenAI, Reply, ToolCall

Rule = Callable[[ChatRequest], "Answer | Awaitable[Answer] | None"]


class Gate:
    """Holds an answer back until the test opens it. `reached` says that a request waits there."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self.reached = threading.Event()

    def open(self) -> None:
        """Let every answer pass from now on."""
        self._open.set()

    async def until_reached(self) -> None:
        """Wait, in the test, until a request waits at the gate."""
        await eventually(self.reached.is_set, timeout=60)

    async def then(self, answer: Answer) -> Answer:
        """Wait, in the provider, until the gate is open."""
        self.reached.set()
        # Polled: the provider has a loop of its own, and a test that fails never opens the gate.
        for _ in range(3000):
            if self._open.is_set():
                break
            await asyncio.sleep(0.01)
        return answer


class Provider:
    """An OpenAI-compatible server in a thread of its own. Set `rules` in each test.

    The first rule that returns something answers; a request that none knows gets "ok".
    """

    def __init__(self) -> None:
        self.fake = FakeOpenAI(self._answer)
        self.rules: list[Rule] = []

    def reset(self) -> None:
        """Forget what earlier tests said and asked."""
        self.rules = []
        self.fake.requests.clear()
        self.fake.violations.clear()

    def _answer(self, request: ChatRequest) -> Answer | Awaitable[Answer]:
        for rule in self.rules:
            answer = rule(request)
            if answer is not None:
                return answer
        return Reply("ok")

    def asked(self, text: str) -> list[ChatRequest]:
        """Return the requests whose last message of a person or of the runtime holds `text`."""
        return [r for r in self.fake.requests if text in (r.texts("user") or [""])[-1]]


@contextmanager
def provider_thread() -> Iterator[Provider]:
    """Serve while the block lasts."""
    provider = Provider()
    started = threading.Event()
    stop: list[Callable[[], None]] = []

    async def serve() -> None:
        done = asyncio.Event()
        loop = asyncio.get_running_loop()
        stop.append(lambda: loop.call_soon_threadsafe(done.set) and None)
        async with provider.fake:
            started.set()
            await done.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="provider", daemon=True)
    thread.start()
    assert started.wait(20), "the provider did not start"
    try:
        yield provider
    finally:
        stop[0]()
        thread.join(20)
        assert not thread.is_alive()


def spawn(task: str, *, wait: bool = True, call_id: str = "", **more: object) -> ToolCall:
    """Return a call of `sessions_spawn`."""
    return ToolCall("sessions_spawn", {"task": task, "label": task, "wait": wait, **more}, call_id)


def answered(request: ChatRequest) -> bool:
    """True when the prompt ends with results of tools."""
    return request.last.get("role") == "tool"


def last_user(request: ChatRequest) -> str:
    """Return what a person or the runtime said last."""
    return (request.texts("user") or [""])[-1]
