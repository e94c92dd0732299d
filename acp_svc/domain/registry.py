"""What is known of a harness: how it is started, and how it differs from others.

The harnesses themselves are in `builtin`. All that is peculiar to one is data here, so that no code
asks which harness it drives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from acp_svc.domain.install import Installer
from acp_svc.domain.modes import UNKNOWN, Modes

COMMON_ENV_NAMES = (
    "ALL_PROXY",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NODE_EXTRA_CA_CERTS",
    "NO_PROXY",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "https_proxy",
    "http_proxy",
    "no_proxy",
)
"""Variables of ours that any harness may see: how to get out to the network."""


@dataclass(frozen=True, slots=True)
class Harness:
    """A harness as it can be started: from this registry, changed or added by configuration."""

    harness_id: str
    display_name: str
    command: tuple[str, ...]
    """The program and its arguments. Never empty, never holds a credential."""
    installer: Installer
    notes: str
    """What it can and cannot do, for people."""
    version_arguments: tuple[str, ...] = ("--version",)
    env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """What its process sees beside the short list every harness gets. May hold secrets."""
    env_names: tuple[str, ...] = ()
    """Names of the service's own variables that its process sees as well, because it needs them."""
    env_from_file: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Variables that its process sees, each with the file that holds its value."""
    login: str = ""
    """What to do when it says that nobody is logged in, for people."""
    login_env: tuple[str, ...] = ()
    """Variables that log in, of a harness that does not say when nobody is logged in."""
    login_files: tuple[str, ...] = ()
    """Files below its home directory that it writes when somebody logs in. Likewise."""
    modes: Modes = UNKNOWN
    state: tuple[str, ...] = ()
    """What it writes of its own, below its home directory."""
    state_env: tuple[str, ...] = ()
    """Variables that name further directories of its own, where they are set."""
    tried: str = ""
    """Versions that the facts were measured with. Empty when they are from its documents only."""

    @property
    def program(self) -> str:
        """What has to be found on the search path (or at this path) for it to be installed."""
        return self.command[0]


def guessed_state(harness_id: str) -> tuple[str, ...]:
    """Return where a program of this name keeps its own, as most do."""
    return (
        f".{harness_id}",
        f".cache/{harness_id}",
        f".config/{harness_id}",
        f".local/share/{harness_id}",
        f".local/state/{harness_id}",
    )
