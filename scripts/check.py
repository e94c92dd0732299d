"""Everything `make check` looks at. All checks run, then all that failed are shown.

Names as arguments choose: `scripts/check.py ruff docs`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
PYTHON = sys.executable
IMAGE = "build/contract.binpb"
RELEASED = "protos/released/contract.binpb"


@dataclass(frozen=True)
class Check:
    """One check: its commands run in order until one fails."""

    name: str
    about: str
    commands: tuple[tuple[str, ...], ...]


# The slow ones first, so that they run beside the rest.
CHECKS = (
    Check("mypy", "types, strict", ((f"{BIN}/mypy", "--no-error-summary"),)),
    Check(
        "docs",
        "links in documents, generated references",
        (
            (PYTHON, "scripts/check_docs.py"),
            (PYTHON, "scripts/gen_docs.py", "--check"),
        ),
    ),
    Check("imports", "import rules", ((f"{BIN}/lint-imports",),)),
    Check("generated", "gen/ fits protos/", ((PYTHON, "scripts/gen_protos.py", "--check"),)),
    Check(
        "contract",
        "buf lint, and nothing released is broken",
        (
            (PYTHON, "scripts/gen_protos.py", "--image", IMAGE),
            (f"{BIN}/buf", "lint", IMAGE, "--config", "buf.yaml"),
            (f"{BIN}/buf", "breaking", IMAGE, "--against", RELEASED, "--config", "buf.yaml"),
        ),
    ),
    Check("ruff", "style and likely mistakes", ((f"{BIN}/ruff", "check", "--quiet", "."),)),
    Check("format", "formatting", ((f"{BIN}/ruff", "format", "--check", "."),)),
    Check(
        "constraints",
        "constraints.txt fits pyproject.toml",
        ((PYTHON, "scripts/lock.py", "--check"),),
    ),
    Check(
        "product",
        "the repository speaks only of the product",
        ((PYTHON, "scripts/check_product.py"),),
    ),
)


def _run(check: Check) -> tuple[bool, float, str]:
    begin = time.monotonic()
    output = ""
    for command in check.commands:
        done = subprocess.run(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        output += done.stdout + done.stderr
        if done.returncode:
            return False, time.monotonic() - begin, output
    return True, time.monotonic() - begin, output


def main() -> None:
    """Entry point; see the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(c.name for c in CHECKS))
    names = parser.parse_args().names
    if unknown := set(names) - {check.name for check in CHECKS}:
        parser.error(f"no such check: {', '.join(sorted(unknown))}")
    chosen = [check for check in CHECKS if not names or check.name in names]
    failed = []
    with ThreadPoolExecutor(max_workers=max(2, os.cpu_count() or 1)) as pool:
        for check, (passed, seconds, output) in zip(chosen, pool.map(_run, chosen), strict=True):
            mark = "ok    " if passed else "FAILED"
            print(f"{mark} {check.name:12} {seconds:5.1f} s  {check.about}", flush=True)
            if not passed:
                failed.append((check, output))
    for check, output in failed:
        print(f"\n--- {check.name}\n{output.rstrip()}")
    if failed:
        sys.exit(f"\n{len(failed)} of {len(chosen)} checks failed")


if __name__ == "__main__":
    main()
