"""One harness process with one ACP session in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from acp import RequestError, text_block
from pydantic import ValidationError

from acp_svc.domain.modes import switched
from acp_svc.domain.permissions import PermissionMode
from acp_svc.harness.opening import Opening
from acp_svc.harness.peer import AUTH_REQUIRED, Gone, Peer
from acp_svc.harness.prompting import Prompt
from acp_svc.harness.sandbox import Sandbox
from acp_svc.harness.setting import NotSet, fit, set_model, set_option
from acp_svc.harness.types import (
    Block,
    Cause,
    Deadlines,
    Ended,
    Listener,
    Opened,
    Order,
    PromptFailed,
)
from svckit.errors import InvalidField, invalid_field
from svckit.logging import get_logger

SETTING_SECONDS = 30.0
"""How long a harness may take to change a setting."""
WALLS = Sandbox()
"""What this machine can do, looked up once for all sessions."""

_log = get_logger("acp.harness")


class Connection:
    """An open session. Make it with `open`, and always `stop` it."""

    def __init__(self, peer: Peer, opening: Opening, order: Order) -> None:
        self._peer = peer
        self._opening = opening
        self._order = order
        self._permission = order.permission_mode
        self._own_mode = order.harness_mode
        """The mode that somebody asked for. Empty when nobody did."""
        self._mode = opening.mode
        """The mode that it was put in. Empty when it was left as it was."""
        self._turns = asyncio.Lock()
        self._settings = asyncio.Lock()
        self._prompt: Prompt | None = None
        self._escaped = ""
        self._tasks: set[asyncio.Task[object]] = set()
        peer.moved = self._moved

    @classmethod
    async def open(cls, order: Order, deadlines: Deadlines, owner: str) -> Connection:
        """Start the process for `owner`, a name that the service keeps, and open the session.

        Raises `AcpBackendMissing`, `AcpBackendUnavailable` when the program does not start or never
        answers, and `AcpSessionInitFailed` with its cause; then nothing of it is left.
        """
        peer = await Peer.start(order, owner, WALLS)
        opening = Opening(peer, order.harness)
        try:
            async with asyncio.timeout(deadlines.handshake):
                await opening.greet()
                await opening.enter(order)
                await opening.settle(order)
        except Exception as error:
            failure = await opening.failed(error, deadlines.handshake)
            await peer.stop()
            if "lastWords" not in failure.metadata and (words := peer.last_words):
                # What it said last came out only when it ended.
                failure.metadata["lastWords"] = words
            raise failure from None
        except BaseException:
            await peer.stop()
            raise
        _log.info(
            "session opened",
            acp_session_id=order.session_id,
            harness=order.harness.harness_id,
            how=opening.how,
            mode=peer.offers.mode,
            sandboxed=peer.sandboxed,
            pid=peer.pid,
        )
        return cls(peer, opening, order)

    @property
    def opened(self) -> Opened:
        """What is open, with what the harness told since."""
        offers = self._peer.offers
        return Opened(
            upstream_id=self._peer.session_id,
            how=self._opening.how,
            loadable=self._opening.resumes or self._opening.loads,
            modes=offers.modes,
            mode=offers.mode,
            models=offers.models,
            model=offers.model,
            options=dict(offers.options),
            sandboxed=self._peer.sandboxed,
            agent_name=self._opening.agent_name,
            agent_version=self._opening.agent_version,
        )

    @property
    def pid(self) -> int:
        """Its process, and its process group."""
        return self._peer.pid

    @property
    def last_words(self) -> str:
        """The last lines of its error output, without secrets, at most 1.5 KB."""
        return self._peer.last_words

    @property
    def alive(self) -> bool:
        """False once nothing more can come from it."""
        return self._peer.alive

    async def gone(self) -> None:
        """Wait until nothing more can come from it."""
        await self._peer.gone()

    async def prompt(
        self, content: str | Sequence[Block], listener: Listener, deadlines: Deadlines
    ) -> Ended:
        """Send a prompt and wait for its end; waits for those before.

        Raises `PromptFailed`, and whatever the listener raises. A prompt that passes a deadline,
        whose listener failed, or whose caller is cancelled, is cancelled; when the harness does not
        end it then in time, the connection is no longer `alive`: stop it.
        """
        blocks: list[Block] = [text_block(content)] if isinstance(content, str) else list(content)
        prompt = Prompt(listener, deadlines)
        # In a task of its own, because prompts must never overlap: who waits may leave, but the
        # next one is sent only when the harness is done with this one.
        turn = asyncio.create_task(self._turn(prompt, blocks), name="prompt of a harness")
        turn.add_done_callback(_retrieve)
        try:
            return await asyncio.shield(turn)
        except asyncio.CancelledError:
            if not prompt.begun:
                turn.cancel()
            elif not turn.done():
                self._start(self._end_or_give_up(prompt))
            raise

    async def cancel(self) -> bool:
        """Cancel the prompt at work; its questions are answered with `cancelled`.

        Returns True when it ended in time, or none was at work. Otherwise the connection is no
        longer `alive`: stop it.
        """
        return self._prompt is None or await self._end_or_give_up(self._prompt)

    async def set_mode(self, mode: str) -> Opened:
        """Change the harness's own mode.

        Raises `InvalidField` when it has no such mode, refuses it, or would then not ask although
        the permission mode says so; and `AcpSessionInitFailed` when it does not answer.
        """
        async with self._setting("settings.harness_mode"):
            self._mode = await fit(self._peer, self._opening.situation(self._permission), mode)
            self._own_mode = mode
        return self.opened

    async def set_model(self, model: str) -> Opened:
        """Change the model. Raises as `set_mode`."""
        async with self._setting("settings.model"):
            await set_model(self._peer, model)
        return self.opened

    async def set_option(self, name: str, value: str) -> Opened:
        """Change one option. Raises as `set_mode`."""
        situation = self._opening.situation(self._permission)
        async with self._setting(f"settings.options[{name}]"):
            if name == self._peer.offers.mode_option:
                self._mode = await fit(self._peer, situation, value)
                self._own_mode = value
            else:
                await set_option(self._peer, name, value)
                if switched(situation, self._peer.offers.options):
                    await fit(self._peer, situation, "")
                    raise NotSet("with that it would act without asking")
        return self.opened

    async def set_permission_mode(self, mode: PermissionMode, own_mode: str = "") -> Opened:
        """Put the harness in its own mode that fits, `own_mode` where somebody asks for it.

        Needs the same sandbox; see `needs_sandbox`. Raises `AcpSessionInitFailed`
        (`permission_mode`) when there is none, or that one does not fit.
        """
        try:
            async with self._setting(""):
                situation = self._opening.situation(mode)
                self._mode = await fit(self._peer, situation, own_mode)
        except InvalidField as refused:
            raise self._opening.error("permission_mode", refused.message) from None
        self._permission, self._own_mode = mode, own_mode
        return self.opened

    async def stop(self) -> None:
        """End the process and all that it started. May be called again, and at any time."""
        await self._peer.stop()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- prompts ---

    async def _turn(self, prompt: Prompt, blocks: list[Block]) -> Ended:
        async with self._turns:
            peer = self._peer
            prompt.begin()
            peer.wire.sent.clear()
            self._prompt = prompt
            try:
                if peer.alive:
                    await self._keep_asking()
                if not peer.alive:
                    raise await self._failed(Gone(), prompt)
                if prompt.cancelled:
                    return Ended("cancelled")
                peer.wire.ended = prompt.end
                peer.work = prompt
                return await self._answered(prompt, blocks)
            finally:
                prompt.end()
                peer.work = self._prompt = None

    async def _answered(self, prompt: Prompt, blocks: list[Block]) -> Ended:
        peer = self._peer
        call = peer.conn.prompt(session_id=peer.session_id, prompt=blocks)
        answer = asyncio.create_task(peer.ask(call))
        impatient = asyncio.create_task(prompt.patience.over())
        try:
            ends: set[asyncio.Future[Any]] = {answer, impatient, prompt.broken}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                await self._end_or_give_up(prompt)
            if prompt.broken.done():
                prompt.broken.result()
            if impatient.done():
                raise PromptFailed(
                    Cause.TIMEOUT,
                    f"{self._name} was stopped: {impatient.result()}",
                    last_words=peer.last_words,
                )
            ended = await answer
            return Ended(peer.wire.stop_reason or ended.stop_reason, ended.usage)
        except (Gone, RequestError, ValidationError) as error:
            if prompt.cancelled and isinstance(error, RequestError) and peer.alive:
                # Some answer a cancelled prompt so.
                return Ended("cancelled")
            raise await self._failed(error, prompt) from None
        finally:
            for task in (answer, impatient):
                task.cancel()
            await asyncio.gather(answer, impatient, return_exceptions=True)
            if prompt.broken.done():
                prompt.broken.exception()

    async def _end_or_give_up(self, prompt: Prompt) -> bool:
        """Cancel a prompt; returns whether it came to an end in time."""
        peer = self._peer
        prompt.cancelled = True
        with suppress(Gone, TimeoutError):
            async with asyncio.timeout(prompt.deadlines.cancel):
                # Never before the prompt: it would be of no effect.
                await peer.ask(_first(peer.wire.sent, prompt.over))
                if not prompt.over.is_set():
                    await peer.ask(peer.conn.cancel(session_id=peer.session_id))
                # After that, or it would take it for a refusal and go on.
                prompt.drop_questions()
                await peer.ask(prompt.over.wait())
        prompt.drop_questions()
        if prompt.over.is_set():
            return True
        if peer.alive:
            prompt.deaf = True
            peer.give_up()
            return False
        return True

    async def _failed(self, error: Exception, prompt: Prompt) -> PromptFailed:
        peer = self._peer
        if isinstance(error, RequestError):
            if error.code == AUTH_REQUIRED:
                hint = self._order.harness.login
                what = f"{self._name} needs a login" + (f": {hint}" if hint else "")
                return PromptFailed(Cause.AUTH_REQUIRED, what, last_words=peer.words(error))
            what = f"{self._name} answered the prompt with an error ({error.code})"
            return PromptFailed(Cause.PROTOCOL, what, last_words=peer.words(error))
        if isinstance(error, ValidationError):
            what = f"{self._name} answered the prompt with what the protocol does not know"
            return PromptFailed(Cause.PROTOCOL, what, last_words=peer.last_words)
        if prompt.deaf:
            what = f"{self._name} did not stop within {prompt.deadlines.cancel:g} s"
            return PromptFailed(Cause.TIMEOUT, what, last_words=peer.last_words)
        if self._escaped:
            return PromptFailed(
                Cause.PROTOCOL, f"{self._name} {self._escaped}", last_words=peer.last_words
            )
        code = await peer.last_exit_code()
        what = f"{self._name} closed its output while it worked"
        if peer.stopped:
            what = f"{self._name} was stopped while it worked"
        elif code is not None:
            what = f"{self._name} ended while it worked, with exit code {code}"
        cause = Cause.PROTOCOL if code is None and not peer.stopped else Cause.CRASHED
        return PromptFailed(cause, what, exit_code=code, last_words=peer.last_words)

    # --- modes ---

    @asynccontextmanager
    async def _setting(self, field: str) -> AsyncIterator[None]:
        async with self._settings:
            try:
                async with asyncio.timeout(SETTING_SECONDS):
                    yield
            except NotSet as refused:
                raise invalid_field(field, refused.message) from None
            except (Gone, TimeoutError, RequestError) as error:
                raise await self._opening.failed(error, SETTING_SECONDS) from None

    def _moved(self) -> None:
        """Look at where it went by itself."""
        situation = self._opening.situation(self._permission)
        if situation.skipping(self._peer.offers.mode) and not self._settings.locked():
            self._start(self._keep_asking())

    async def _keep_asking(self) -> None:
        """Take it back from a mode in which it does not ask, or be done with it."""
        situation = self._opening.situation(self._permission)
        async with self._settings:
            if not situation.skipping(self._peer.offers.mode):
                return
            try:
                async with asyncio.timeout(SETTING_SECONDS):
                    await fit(self._peer, situation, self._mode)
            except (NotSet, Gone, TimeoutError, RequestError):
                self._escaped = "went to a mode in which it acts without asking, and stays there"
                self._peer.give_up()

    @property
    def _name(self) -> str:
        return self._order.harness.display_name

    def _start(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _first(*events: asyncio.Event) -> None:
    """Wait until one of them is set."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


def _retrieve(turn: asyncio.Task[Ended]) -> None:
    """Take note of how it failed, for the one who waited may have left."""
    if not turn.cancelled():
        turn.exception()
