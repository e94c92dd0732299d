"""One harness process with one ACP session in it."""

from __future__ import annotations

from collections.abc import Sequence

from acp_svc.domain.permissions import PermissionMode
from acp_svc.harness.types import Block, Deadlines, Ended, Listener, Opened, Order


class Connection:
    """An open session. Make it with `open`, and always `stop` it."""

    @classmethod
    async def open(cls, order: Order, deadlines: Deadlines, owner: str) -> Connection:
        """Start the process for `owner`, a name that the service keeps, and open the session.

        Raises `AcpBackendUnavailable` when the program does not start or never answers, and
        `AcpSessionInitFailed` with its cause; then nothing of it is left.
        """
        raise NotImplementedError

    @property
    def opened(self) -> Opened:
        """What is open, with what the harness told since."""
        raise NotImplementedError

    @property
    def pid(self) -> int:
        """Its process, and its process group."""
        raise NotImplementedError

    @property
    def last_words(self) -> str:
        """The last lines of its error output, without secrets, at most 1.5 KB."""
        raise NotImplementedError

    @property
    def alive(self) -> bool:
        """False once nothing more can come from it."""
        raise NotImplementedError

    async def gone(self) -> None:
        """Wait until nothing more can come from it."""
        raise NotImplementedError

    async def prompt(
        self, content: str | Sequence[Block], listener: Listener, deadlines: Deadlines
    ) -> Ended:
        """Send a prompt and wait for its end; waits for those before. Raises `PromptFailed`.

        A prompt that passes a deadline is cancelled first. Unless the harness then ends it, and
        after any failure but `auth_required`, the connection is no longer `alive`: stop it.
        Cancelling the caller leaves the harness at work; call `cancel` or `stop`.
        """
        raise NotImplementedError

    async def cancel(self) -> bool:
        """Cancel the prompt at work; its questions are answered with `cancelled`.

        Returns True when it ended in time, or none was at work. Otherwise stop the connection.
        """
        raise NotImplementedError

    async def set_mode(self, mode: str) -> Opened:
        """Change the harness's own mode.

        Raises `InvalidField` when it has no such mode, refuses it, or would then not ask although
        the permission mode says so.
        """
        raise NotImplementedError

    async def set_model(self, model: str) -> Opened:
        """Change the model. Raises `InvalidField` when the harness refuses it."""
        raise NotImplementedError

    async def set_option(self, name: str, value: str) -> Opened:
        """Change one option. Raises `InvalidField` when the harness refuses it."""
        raise NotImplementedError

    async def set_permission_mode(self, mode: PermissionMode) -> Opened:
        """Put the harness in its own mode that fits. Needs the same sandbox; see `needs_sandbox`.

        Raises `AcpSessionInitFailed` (`permission_mode`) when there is none.
        """
        raise NotImplementedError

    async def stop(self) -> None:
        """End the process and all that it started. May be called again, and at any time."""
        raise NotImplementedError
