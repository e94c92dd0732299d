"""An environment that holds a wheel and what it asks for, made without a network in a second.

What the wheel asks for is taken from the environment of the tests, file by file as links, and
nothing else is: a dependency that is used and not declared is missing here, as it would be for
whoever installs the wheel.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def install(wheel: Path, directory: Path) -> Path:
    """Make an environment in `directory` with `wheel`, and return where its commands are."""
    venv.create(directory, with_pip=False, symlinks=True)
    commands = directory / "bin"
    [packages] = directory.glob("lib/python*/site-packages")
    command = [sys.executable, "-m", "pip", "--python", str(commands / "python"), "install"]
    command += ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run([*command, str(wheel)], check=True, timeout=120, cwd=directory)
    [metadata] = packages.glob("conveyor_suite-*.dist-info")
    for needed in _needed(Distribution.at(metadata)):
        _link(needed, packages)
    return commands


def _needed(root: Distribution) -> list[Distribution]:
    """Return what `root` asks for without extras, and what that asks for, and so on."""
    found: dict[tuple[str, str], Distribution] = {}
    waiting = list(_requirements(root, ""))
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in found:
            continue
        found[name, extra] = distribution(name)
        waiting += _requirements(found[name, extra], extra)
    return list({name: needed for (name, _), needed in found.items()}.values())


def _requirements(of: Distribution, extra: str) -> Iterator[tuple[str, str]]:
    for text in of.requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            name = canonicalize_name(requirement.name)
            yield name, ""
            yield from ((name, wanted) for wanted in requirement.extras)


def _link(needed: Distribution, packages: Path) -> None:
    made: set[Path] = set()
    for file in needed.files or ():
        if ".." in file.parts:
            continue  # its commands
        link = packages / file
        if link.parent not in made:
            link.parent.mkdir(parents=True, exist_ok=True)
            made.add(link.parent)
        source = Path(str(needed.locate_file(file)))
        if source.exists():  # not so the bytecode of files that were never imported
            os.symlink(source, link)
