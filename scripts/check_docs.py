"""Checks the documents: links to files and headings lead somewhere, `make` targets exist."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[1]
MARKDOWN = MarkdownIt("commonmark").enable("table")


def _documents() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def _slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    kept = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return kept.replace(" ", "-")


def _anchors(tokens: list[Token]) -> set[str]:
    anchors: set[str] = set()
    for opening, inline in pairwise(tokens):
        if opening.type == "heading_open":
            text = "".join(
                t.content for t in inline.children or [] if t.type in ("text", "code_inline")
            )
            slug, n = _slug(text), 0
            while (candidate := slug if not n else f"{slug}-{n}") in anchors:
                n += 1
            anchors.add(candidate)
    return anchors


def _targets(tokens: list[Token]) -> list[tuple[int, str]]:
    found = []
    for token in tokens:
        line = token.map[0] + 1 if token.map else 0
        for child in token.children or []:
            target = child.attrGet("href") or child.attrGet("src")
            if isinstance(target, str):
                found.append((line, target))
    return found


def main() -> None:
    """Entry point; see the module docstring."""
    parsed = {path: MARKDOWN.parse(path.read_text(encoding="utf-8")) for path in _documents()}
    anchors = {path: _anchors(tokens) for path, tokens in parsed.items()}
    make_targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    problems = []
    for path, tokens in parsed.items():
        name = path.relative_to(ROOT)
        for line, target in _targets(tokens):
            if re.match(r"[a-z]+:", target):
                continue  # another site
            file, _, anchor = target.partition("#")
            goal = (path.parent / unquote(file)).resolve() if file else path
            if not goal.exists():
                problems.append(f"{name}:{line}: nothing at {target}")
            elif anchor and goal in anchors and anchor not in anchors[goal]:
                problems.append(f"{name}:{line}: no heading for {target}")
        text = path.read_text(encoding="utf-8")
        named = re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)
        problems += [f"{name}: no make {t}" for t in named if t not in make_targets]
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
