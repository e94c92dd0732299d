"""Writes `constraints.txt`: the exact versions that everybody installs.

Resolves `pyproject.toml` with all its extras afresh, without installing anything. `--check` only
compares the file with `pyproject.toml`, without a network.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
HEADER = "# Exact versions, made by `make lock`. pyproject.toml says what is allowed.\n"


def _requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        texts += extra
    return [Requirement(text) for text in texts]


def _resolve() -> dict[str, str]:
    extras = ",".join(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    )
    command = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    command += ["--dry-run", "--ignore-installed", "--report", "-", f"{ROOT}[{extras}]"]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    own = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"]
    versions = {
        canonicalize_name(item["metadata"]["name"]): item["metadata"]["version"]
        for item in report["install"]
    }
    del versions[canonicalize_name(own)]
    return dict(sorted(versions.items()))


def _problems() -> list[str]:
    pinned: dict[str, str] = {}
    for line in CONSTRAINTS.read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pinned[name] = version
    problems = []
    for requirement in _requirements():
        pin = pinned.get(canonicalize_name(requirement.name))
        if pin is None:
            problems.append(f"{requirement.name} has no version")
        elif not requirement.specifier.contains(pin, prereleases=True):
            problems.append(f"{requirement.name} {pin} is not {requirement.specifier}")
    return problems


def main() -> None:
    """Entry point; see the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare, change nothing")
    if parser.parse_args().check:
        if problems := _problems():
            sys.exit(
                "constraints.txt does not fit pyproject.toml; run `make lock`:\n  "
                + "\n  ".join(problems)
            )
        return
    lines = [f"{name}=={version}\n" for name, version in _resolve().items()]
    CONSTRAINTS.write_text(HEADER + "".join(lines))


if __name__ == "__main__":
    main()
