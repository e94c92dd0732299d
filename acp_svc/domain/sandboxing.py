"""Which sessions are shut in, and what of the file system they may change.

The walls are those of bubblewrap (`bwrap`): everything is there to be read, and only what is the
harness's own can be written so that it lasts. They also hold its processes together: none outlives
the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from acp_svc.domain.permissions import PermissionMode

PROGRAM = "bwrap"
TEMPORARY = PurePath("/tmp")  # noqa: S108
"""Private and empty inside: many programs need it, and what others keep there is not theirs."""
CONTROL_SOCKETS = (
    "/run/docker.sock",
    "/run/podman/podman.sock",
    "/run/containerd/containerd.sock",
    "/run/dbus/system_bus_socket",
    "/run/systemd/private",
)
"""A socket can be used where files cannot be written; with these, anything could be done."""
CONTROL_DIRECTORIES = ("/run/user",)
"""Where each user's own such sockets are, of a user's service manager for one: empty inside."""
_BASE = (
    "--die-with-parent",
    "--unshare-pid",
    # Without a user namespace, which is how root runs it, it would keep what takes walls down.
    "--cap-drop",
    "ALL",
    "--ro-bind",
    "/",
    "/",
    "--dev",
    "/dev",
    "--proc",
    "/proc",
    # The kernel's settings belong to root, also to one without capabilities.
    "--ro-bind-try",
    "/proc/sys",
    "/proc/sys",
    # Where it was told to put temporary files could not be written.
    "--setenv",
    "TMPDIR",
    str(TEMPORARY),
)
_AS_ROOT = ("--cap-add", "CAP_DAC_OVERRIDE")
"""Root reads files of others; that opens nothing that is mounted to be read only."""


def needs_sandbox(mode: PermissionMode) -> bool:
    """Return whether reading only is also to be enforced from outside the harness.

    Not when people are asked: what they allow has to work.
    """
    return mode in (PermissionMode.APPROVE_READS, PermissionMode.DENY_ALL)


@dataclass(frozen=True, slots=True)
class Walls:
    """What is inside. All paths are absolute, exist, and have links and `..` followed."""

    bwrap: str
    cwd: PurePath
    """Where it works. Can be read only."""
    state: tuple[PurePath, ...] = ()
    """What it may write."""
    home: PurePath | None = None
    """Its home directory, in which it may make new files that nobody else sees and that do not
    last: many programs do not start without. None leaves it as it is, to be read only."""
    in_home: tuple[PurePath, ...] = ()
    """What is in its home directory."""
    links_in_home: tuple[tuple[PurePath, str], ...] = ()
    """Links there, with what they point at."""
    needed: tuple[PurePath, ...] = ()
    """What it must be able to read also where it lies among the temporary files: then with all that
    is beside it in the same entry of that directory."""
    hidden: tuple[PurePath, ...] = ()
    """Sockets that it must not reach."""
    emptied: tuple[PurePath, ...] = ()
    """Directories that are empty inside, but for what it works with."""
    as_root: bool = False
    """Whether it runs as root."""


def shut_in(command: Sequence[str], walls: Walls) -> list[str]:
    """Return the command that runs `command` inside."""
    mounts = [(TEMPORARY, ["--tmpfs", str(TEMPORARY)])]
    mounts += [(p, _bind("--ro-bind", p)) for p in _among_temporary((*walls.needed, walls.cwd))]
    if walls.home is not None and not walls.home.is_relative_to(walls.cwd):
        mounts.append((walls.home, ["--tmpfs", str(walls.home)]))
        mounts += [(path, _bind("--ro-bind-try", path)) for path in walls.in_home]
        mounts += [(path, ["--symlink", target, str(path)]) for path, target in walls.links_in_home]
    mounts += [(path, ["--tmpfs", str(path)]) for path in walls.emptied]
    mounts += [(path, _bind("--bind", path)) for path in walls.state]
    if any(walls.cwd.is_relative_to(path) for path in (*walls.state, *walls.emptied)):
        mounts.append((walls.cwd, _bind("--ro-bind", walls.cwd)))
    mounts += [(path, ["--ro-bind", "/dev/null", str(path)]) for path in walls.hidden]
    # What lies deeper comes later, or it would be covered. Equally deep ones stay in their order.
    mounts.sort(key=lambda mount: len(mount[0].parts))
    arguments = [word for _, words in mounts for word in words]
    base = (*_BASE, *_AS_ROOT) if walls.as_root else _BASE
    return [walls.bwrap, *base, *arguments, "--chdir", str(walls.cwd), "--", *command]


def probe(bwrap: str) -> list[str]:
    """Return a command that ends with code 0 where this machine can do it."""
    return [bwrap, *_BASE, "--tmpfs", str(TEMPORARY), "--", "true"]


def _bind(how: str, path: PurePath) -> list[str]:
    return [how, str(path), str(path)]


def _among_temporary(paths: Iterable[PurePath]) -> list[PurePath]:
    depth = len(TEMPORARY.parts) + 1
    return sorted(
        {PurePath(*path.parts[:depth]) for path in paths if path.is_relative_to(TEMPORARY)}
    )
