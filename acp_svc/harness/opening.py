"""From a started process to an open session, within one deadline."""

from __future__ import annotations

from typing import Literal

from acp import PROTOCOL_VERSION, RequestError, schema
from pydantic import ValidationError

from acp_svc.domain.modes import Situation
from acp_svc.domain.permissions import PermissionMode
from acp_svc.domain.registry import Harness
from acp_svc.harness.peer import AUTH_REQUIRED, Gone, Peer
from acp_svc.harness.setting import NotSet, fit, set_model, set_option
from acp_svc.harness.types import Order
from svckit.errors import AcpBackendUnavailable, AcpSessionInitFailed, ServiceError
from svckit.version import __version__

ID_CHARS = 256
"""Of a harness's session: what the store takes, and `AcpSessionSpec.resume_id`."""
How = Literal["new", "resumed", "loaded"]
_CLIENT = schema.Implementation(name="conveyor", title="Conveyor", version=__version__)


class Opening:
    """One attempt. What it found out stays readable when it fails."""

    def __init__(self, peer: Peer, harness: Harness) -> None:
        self._peer = peer
        self._harness = harness
        self._stage: Literal["initialize", "session"] = "initialize"
        self._capabilities = schema.AgentCapabilities()
        self._keys: list[str] = []
        """Ways to log in with variables that it was given."""
        self.agent_name = ""
        self.agent_version = ""
        self.how: How = "new"
        self.mode = ""
        """The mode it was put in. Empty when it was left as it was."""

    @property
    def resumes(self) -> bool:
        """True when it says that it can resume."""
        can = self._capabilities.session_capabilities
        return can is not None and can.resume is not None

    @property
    def loads(self) -> bool:
        """True when it says that it can load."""
        return bool(self._capabilities.load_session)

    def situation(self, permission: PermissionMode) -> Situation:
        """Return what the choice of its mode depends on."""
        return Situation(
            self._harness.modes,
            permission,
            self.agent_version,
            self._peer.sandboxed,
            self._peer.offers.modes,
        )

    async def greet(self) -> None:
        """Exchange versions and capabilities. Raises what `failed` translates."""
        self._stage = "initialize"
        answer = await self._peer.ask(
            self._peer.conn.initialize(
                protocol_version=PROTOCOL_VERSION,
                client_capabilities=schema.ClientCapabilities(),
                client_info=_CLIENT,
            )
        )
        if answer.protocol_version != PROTOCOL_VERSION:
            raise self.error(
                "initialize",
                f"speaks version {answer.protocol_version} of the protocol, not {PROTOCOL_VERSION}",
            )
        self._capabilities = answer.agent_capabilities or self._capabilities
        if answer.agent_info is not None:
            self.agent_name = _short(answer.agent_info.name)
            self.agent_version = _short(answer.agent_info.version)
        self._keys = [
            method.id
            for method in answer.auth_methods or ()
            if isinstance(method, schema.EnvVarAuthMethod)
            and all(one.optional or one.name in self._peer.variables for one in method.vars)
        ]
        self._stage = "session"

    async def enter(self, order: Order) -> None:
        """Open the session: resume, else load, else a new one. Raises what `failed` translates.

        A harness that has the key for its login may want to be told to use it.
        """
        try:
            await self._enter(order)
        except RequestError as error:
            if error.code != AUTH_REQUIRED or not self._keys:
                raise
            await self._peer.ask(self._peer.conn.authenticate(method_id=self._keys[0]))
            await self._enter(order)

    async def _enter(self, order: Order) -> None:
        reopened = bool(order.upstream_id) and await self._reopened(order)
        if not reopened:
            if order.upstream_id and order.must_resume:
                raise self.error("load", "cannot open the earlier session again")
            peer = self._peer
            new = await peer.ask(peer.conn.new_session(cwd=str(order.cwd), mcp_servers=[]))
            if not 1 <= len(new.session_id) <= ID_CHARS or not new.session_id.isprintable():
                raise self.error(
                    "initialize",
                    f"gave its session an id that is not 1 to {ID_CHARS} printable characters",
                )
            peer.session_id = new.session_id
            self._opened(new)

    async def _reopened(self, order: Order) -> bool:
        peer, cwd, upstream_id = self._peer, str(order.cwd), order.upstream_id
        attempts: list[How] = ["resumed"] if self.resumes else []
        attempts += ["loaded"] if self.loads else []
        for how in attempts:
            # What is replayed meanwhile is not followed by anybody, but it may tell of its mode.
            peer.session_id = upstream_id
            try:
                answer: schema.ResumeSessionResponse | schema.LoadSessionResponse
                if how == "resumed":
                    answer = await peer.ask(
                        peer.conn.resume_session(session_id=upstream_id, cwd=cwd, mcp_servers=[])
                    )
                else:
                    answer = await peer.ask(
                        peer.conn.load_session(session_id=upstream_id, cwd=cwd, mcp_servers=[])
                    )
            except RequestError as error:
                # Whatever the code: each harness has its own for a session that it lost.
                peer.session_id = ""
                if error.code == AUTH_REQUIRED:
                    raise
                continue
            except ValidationError:
                peer.session_id = ""
                continue
            self.how = how
            self._opened(answer)
            return True
        return False

    def _opened(
        self,
        answer: schema.NewSessionResponse
        | schema.ResumeSessionResponse
        | schema.LoadSessionResponse,
    ) -> None:
        self._peer.offers.opened(answer.modes, answer.config_options)
        self._peer.offers.old_models(self._peer.wire.models)

    async def settle(self, order: Order) -> None:
        """Apply what was ordered. Raises what `failed` translates."""
        peer = self._peer
        try:
            self.mode = await fit(peer, self.situation(order.permission_mode), order.harness_mode)
        except NotSet as refused:
            raise self.error("permission_mode", f"is not used: {refused.message}") from None
        try:
            if order.model and peer.offers.model != order.model:
                await set_model(peer, order.model)
        except NotSet as refused:
            raise self.error("initialize", f"has not that model: {refused.message}") from None
        for name, value in order.options.items():
            if peer.offers.all_options().get(name, value) != value:
                try:
                    await set_option(peer, name, value)
                except NotSet:
                    # A later version may not have it any more; what it has is shown.
                    continue
        if order.options:
            # An option may have changed the mode.
            try:
                self.mode = await fit(peer, self.situation(order.permission_mode), self.mode)
            except NotSet as refused:
                raise self.error("permission_mode", f"is not used: {refused.message}") from None

    def error(self, cause: str, what: str, said: RequestError | None = None) -> ServiceError:
        """Return the error for a session that could not be opened."""
        return AcpSessionInitFailed(
            f"{self._harness.display_name} {what}",
            metadata=self._metadata("cause", cause, said),
        )

    async def failed(self, error: Exception, seconds: float) -> ServiceError:
        """Return the typed error for what went wrong."""
        if isinstance(error, ServiceError):
            return error
        if isinstance(error, RequestError):
            if error.code == AUTH_REQUIRED:
                what = "needs a login"
                what += f": {self._harness.login}" if self._harness.login else ""
                return self.error("auth_required", what, error)
            what = "the greeting" if self._stage == "initialize" else "the opening of a session"
            return self.error("initialize", f"answered {what} with an error ({error.code})", error)
        if isinstance(error, ValidationError):
            return self.error("initialize", "answered with what the protocol does not know")
        if isinstance(error, TimeoutError):
            what = f"did not answer within {seconds:g} s"
            return self._unavailable(what) or self.error("timeout", what)
        if isinstance(error, Gone):
            code = await self._peer.last_exit_code()
            what = "closed its output" if code is None else f"ended with exit code {code}"
            what += " before it was ready"
            return self._unavailable(what) or self.error("crashed", what)
        raise error

    def _unavailable(self, what: str) -> ServiceError | None:
        """Return the error of one that never spoke; None for one that did."""
        if self._stage != "initialize":
            return None
        return AcpBackendUnavailable(
            f"{self._harness.display_name} is installed but {what}",
            metadata=self._metadata("check", "initialize", None),
        )

    def _metadata(self, key: str, value: str, said: RequestError | None) -> dict[str, str]:
        metadata = {"harnessId": self._harness.harness_id, key: value}
        if words := self._peer.words(said):
            metadata["lastWords"] = words
        return metadata


def _short(text: str) -> str:
    return "".join(c for c in text if c.isprintable()).strip()[:64]
