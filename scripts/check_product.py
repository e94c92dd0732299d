"""Checks that committed texts speak only of the product.

What belongs to one machine or to how something was made (absolute paths, package sources, private
addresses, notes to oneself) helps no reader and tells strangers too much.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OWN = Path(__file__).resolve().relative_to(ROOT)

PATTERNS = {
    "a path of one machine": r"(?<![\w.:/*-])/(?:home|Users|root|work|workspace|mnt|opt|media)/\w",
    "a package source": r"(?i)\b(?:extra-)?index[-_]url\b|\bfind[-_]links\b|\btrusted[-_]host\b"
    r"|\bPIP_[A-Z_]*(?:URL|LINKS|HOST|PROXY|CERT)\b|files\.pythonhosted\.",
    "a proxy or a private address": r"(?i)\bhttps?_proxy\s*="
    r"|(?<![\d.])(?:10\.\d+|192\.168|172\.(?:1[6-9]|2\d|3[01]))\.\d+\.\d+(?![\d.])",
    "a note about the making": r"\b(?:TODO|FIXME|XXX|HACK)\b|(?i:co-authored-by"
    r"|generated (?:by|with) (?:an? )?(?:ai|llm|claude|gpt|copilot)\b|\bas an ai\b|\bissue #?\d+\b"
    r"|\b(?:this|(?:the|a) (?:next|later)) issue\b|\bSPEC\.md\b|\bhelper session\b)",
    "the end of a conflict": r"^(?:<{7}|>{7}) ",
}
# Texts of others, kept as they are.
SKIPPED = ("LICENSE", "constraints.txt", "gen/")


def _files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    return [Path(name) for name in listed.split("\0") if name and not name.startswith(SKIPPED)]


def main() -> None:
    """Entry point; see the module docstring."""
    found = []
    for name in _files():
        path = ROOT / name
        if name == OWN or not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # not a text
        for what, pattern in PATTERNS.items():
            for match in re.finditer(pattern, text, re.MULTILINE):
                line = text.count("\n", 0, match.start()) + 1
                found.append(f"{name}:{line}: {what}: {match.group().strip()!r}")
    if found:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
