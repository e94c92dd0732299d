"""A model of a real provider, through pydantic-ai's direct request API.

Nothing of pydantic-ai is imported before the first call: importing it takes about two seconds, and
the demo models never need it. Its messages are built from ours for each call and never stored.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from agent_svc.domain.prompt import Prompt
from agent_svc.domain.steps import StopReason, Usage
from agent_svc.models.base import CallFailed, Cause, ModelReply
from svckit.errors import ModelRejected, ModelUnavailable, StartError
from svckit.secrets import read_secret_file
from svckit.settings_model import ProviderSettings

if TYPE_CHECKING:
    from agent_svc.models import adapter, judging

FIRST_TOKEN_SECONDS = 120.0
WHOLE_REPLY_SECONDS = 600.0
DEFAULT_KEYS = {
    "openai": "OPENAI_API_KEY",
    "anthropic": "ANTHROPIC_API_KEY",
    "google": "GEMINI_API_KEY",
}
# The package whose absence means that the extra of a kind is not installed.
PACKAGES = {"openai": "openai", "anthropic": "anthropic", "google": "google.genai"}
_STOP_REASONS: dict[str, StopReason] = {"length": "max_tokens", "content_filter": "refusal"}


class ProviderModel:
    """One model of a configured provider. Safe for concurrent calls; `close` when done."""

    def __init__(self, provider_id: str, name: str, settings: ProviderSettings) -> None:
        self.provider_id = provider_id
        self.provider_kind: str = settings.kind
        self.name = name
        self._settings = settings
        self._built: adapter.Built | None = None
        self._building = asyncio.Lock()

    async def prepare(self) -> None:
        """Import the provider's package and make the client. Raises `CallFailed`."""
        await self._model()

    async def ask(self, prompt: Prompt, on_text: Callable[[str], None]) -> ModelReply:
        """Ask once, streaming. Raises `CallFailed`."""
        built = await self._model()
        from agent_svc.models import adapter, judging

        started = False

        def show(text: str) -> None:
            nonlocal started
            started = True
            on_text(text)

        def note() -> None:
            nonlocal started
            started = True

        try:
            answer = await adapter.stream(
                built, prompt, show, note, FIRST_TOKEN_SECONDS, WHOLE_REPLY_SECONDS
            )
        except Exception as err:
            verdict = judging.judge(err, started=started, now=time.time())
            raise self._failed(verdict, started) from err
        if not (answer.text or answer.calls) and answer.finish_reason in ("", "content_filter"):
            raise self._failed(judging.nothing(answer.finish_reason), started=False)
        usage = Usage(
            read=answer.read, cached=answer.cached, stored=answer.stored, written=answer.written
        )
        reason = _STOP_REASONS.get(answer.finish_reason, "end_turn")
        return ModelReply(answer.text, answer.calls, usage, reason, answer.served)

    async def close(self) -> None:
        """Close the connections to the provider."""
        if self._built is not None:
            await self._built.close()
            self._built = None

    async def _model(self) -> adapter.Built:
        async with self._building:
            if self._built is None:
                key = self._key()
                try:
                    # In a thread: leases must be extended while seconds of imports run.
                    self._built = await asyncio.to_thread(self._build, key)
                except ImportError as err:
                    raise self._rejected(
                        f"provider {self.provider_id!r} needs an optional part: "
                        f"pip install 'conveyor-suite[{self._settings.kind}]'",
                        "not_set_up",
                    ) from err
            return self._built

    def _build(self, key: str) -> adapter.Built:
        # The extra's own package first: its absence is the error that names the fix.
        importlib.import_module(PACKAGES[self._settings.kind])
        from agent_svc.models import adapter

        return adapter.build(
            kind=self._settings.kind,
            provider_id=self.provider_id,
            model=self.name,
            base_url=self._settings.base_url,
            api_key=key,
        )

    def _key(self) -> str:
        """The credential. It lives in the client only: never in an error, a log or a span."""
        if file := self._settings.api_key_file:
            setting = f"providers.{self.provider_id}.api_key_file"
            try:
                return read_secret_file(setting, file)
            except StartError:
                # Its name is nobody's business outside.
                text = f"the file that {setting} names cannot be read, or is empty"
                raise self._rejected(text, "not_set_up") from None
        variable = self._settings.api_key_env
        if not variable and self._settings.base_url:
            return "none"  # a local server: the SDKs insist on some key
        where = f"named by providers.{self.provider_id}.api_key_env"
        if not variable:
            variable = DEFAULT_KEYS[self._settings.kind]
            where = f"the default of providers.{self.provider_id}"
        key = os.environ.get(variable, "")
        if not key:
            raise self._rejected(
                f"the environment variable {variable}, {where}, is not set", "not_set_up"
            )
        return key

    def _rejected(self, message: str, cause: Cause, http_status: int = 0) -> CallFailed:
        status = str(http_status) if http_status else ""
        error = ModelRejected(message, metadata=self._facts(cause) | {"httpStatus": status})
        return CallFailed(error, outcome="rejected", cause=cause)

    def _failed(self, verdict: judging.Verdict, started: bool) -> CallFailed:
        if verdict.outcome == "rejected":
            failed = self._rejected(
                f"{self.provider_id} refused the request: {verdict.why}",
                verdict.cause,
                verdict.http_status,
            )
            failed.started = started
            return failed
        error = ModelUnavailable(
            f"{self.provider_id} did not answer: {verdict.why}",
            metadata=self._facts(verdict.cause),
            retry_after=verdict.retry_after,
        )
        return CallFailed(
            error,
            outcome=verdict.outcome,
            started=started,
            retry_after=verdict.retry_after,
            cause=verdict.cause,
        )

    def _facts(self, cause: Cause) -> dict[str, str]:
        return {"providerId": self.provider_id, "model": self.name, "cause": cause}
