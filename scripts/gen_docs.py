"""Writes the references in `docs/reference/` that follow from code and contract.

`--check` only compares, and exits with 1 when a document is not current.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from docgen import (
    cli,
    configuration,
    dashboard,
    errors,
    harnesses,
    http,
    metrics,
    probe_set,
    provider_errors,
    rpcs,
    tools,
)
from gen_protos import compile_image

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"


def _documents(image: Path) -> dict[str, Callable[[], str]]:
    return {
        "rpcs.md": lambda: rpcs.render(image),
        "errors.md": lambda: errors.render(image),
        "configuration.md": configuration.render,
        "cli.md": cli.render,
        "http.md": http.render,
        "metrics.md": metrics.render,
        "../../deploy/grafana/conveyor.json": dashboard.render,
        "tools.md": tools.render,
        "harnesses.md": harnesses.render,
        "probe.md": probe_set.render,
        "provider-errors.md": provider_errors.render,
    }


def main() -> None:
    """Entry point; see the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare, change nothing")
    check = parser.parse_args().check
    stale = []
    with tempfile.TemporaryDirectory() as tmp:
        image = Path(tmp) / "contract.binpb"
        compile_image(image)
        for name, render in _documents(image).items():
            path, text = REFERENCE / name, render()
            if check:
                if not path.exists() or path.read_text(encoding="utf-8") != text:
                    stale.append(name)
            else:
                path.write_text(text, encoding="utf-8")
    if stale:
        sys.exit(f"not current in docs/reference: {', '.join(stale)}; run `make protos`")


if __name__ == "__main__":
    main()
