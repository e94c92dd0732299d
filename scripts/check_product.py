"""Checks that committed texts speak only of the product.

What belongs to one machine or to how something was made (absolute paths, package sources, private
addresses, notes to oneself) helps no reader and tells strangers too much.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OWN = Path(__file__).resolve().relative_to(ROOT)

PATTERNS = {
    "a path of one machine": r"(?<![\w.:/*-])/(?:root|work|workspace|Users/(?!me\b)\w+"
    r"|home/(?!me\b|user\b|x\b)\w+)/\w",
    "a package source": r"(?i)\b(?:extra-)?index[-_]url\b|\bfind[-_]links\b|\btrusted[-_]host\b"
    r"|\bPIP_[A-Z_]*(?:URL|LINKS|HOST|PROXY|CERT)\b|files\.pythonhosted\.",
    "a proxy": r"(?i)\bhttps?_proxy\s*=",
    "a note about the making": r"\b(?:TODO|FIXME|XXX|HACK)\b|(?i:co-authored-by"
    r"|generated (?:by|with) (?:an? )?(?:ai|llm|claude|gpt|copilot)\b|\bas an ai\b|\bissue #?\d+\b"
    r"|\b(?:this|(?:the|a) (?:next|later)|(?:their|its) own) issue\b|\bSPEC\.md\b"
    r"|\bhelper session\b)",
    "the end of a conflict": r"^(?:<{7}|>{7}) ",
}
# Settings of the package installer that name where this machine gets packages from.
SOURCES = {"index-url", "extra-index-url", "find-links", "proxy", "trusted-host"}
# Texts of others, kept as they are.
SKIPPED = ("LICENSE", "constraints.txt", "gen/")
# What models say, who do speak of themselves.
SAID_BY_MODELS = "tests/corpus/"


def _files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    return [Path(name) for name in listed.split("\0") if name and not name.startswith(SKIPPED)]


def _this_machine() -> str:
    """A pattern of what must not leave the machine on which the check runs."""
    words = {socket.gethostname(), str(ROOT), str(Path.home())}
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True).stdout
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        if key.rpartition(".")[2] in SOURCES:
            words.update(value.strip("'\"").split())
    # A short or everyday word says nothing about a machine.
    telling = {w for w in words if len(w) > 5 and w not in ("localhost", "/github/home")}
    return "|".join(rf"(?<![\w.-]){re.escape(word)}(?![\w-])" for word in sorted(telling))


def main() -> None:
    """Entry point; see the module docstring."""
    found = []
    patterns = PATTERNS
    if this_machine := _this_machine():
        patterns = {**PATTERNS, "something of this machine": this_machine}
    for name in _files():
        path = ROOT / name
        if name == OWN or not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # not a text
        for what, pattern in patterns.items():
            if what == "a note about the making" and str(name).startswith(SAID_BY_MODELS):
                continue
            for match in re.finditer(pattern, text, re.MULTILINE):
                line = text.count("\n", 0, match.start()) + 1
                found.append(f"{name}:{line}: {what}: {match.group().strip()!r}")
    if found:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
