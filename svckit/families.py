"""On disk, whom the programs of a service started, so that a later life of it finds them.

A process that left its group and cleared its environment is known only by who started it, and a
service that is killed forgets. So what is known is kept in a small file: the number of a process,
when it started, and the boot of the system, which together name it for good.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")


class FamilyRecord:
    """The file of one owner. Nothing is written, and nothing believed, where others could write."""

    def __init__(self, owner: str) -> None:
        self._path = _directory() / owner
        self._written: Mapping[int, int] | None = None

    def write(self, family: Mapping[int, int]) -> None:
        """Keep a family: process ids with their start times. Raises nothing: it is only a help."""
        if family == self._written:
            return
        try:
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            if not _own(self._path.parent):
                return
            fresh = self._path.with_suffix(".new")
            fresh.write_text(json.dumps({"boot": _boot(), "family": dict(family)}))
            fresh.replace(self._path)
        except OSError:
            return
        self._written = dict(family)

    def read(self) -> dict[int, int]:
        """Return what an earlier life kept; nothing when the system was started anew since."""
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, KeyError):
            if _own(self._path.parent):
                kept = json.loads(self._path.read_text())
                if kept["boot"] == _boot():
                    return {int(pid): int(started) for pid, started in kept["family"].items()}
        return {}


def _directory() -> Path:
    return Path(tempfile.gettempdir()) / f"conveyor-{os.getuid()}"


def _own(directory: Path) -> bool:
    """True when nobody else can put a file there: it would name processes to be killed."""
    found = directory.lstat()
    return found.st_uid == os.getuid() and not found.st_mode & 0o022 and directory.is_dir()


def _boot() -> str:
    return _BOOT.read_text().strip()
