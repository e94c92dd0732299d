"""How well the delegation guard's detectors do on the labelled corpus, and what watching costs.

`python -m bench.guard [--part development|heldout] [--mistakes]` judges every reply of
`tests/corpus/guard` against the facts of its row and prints precision and recall of each detector
and of the guard as a whole, for both parts: the detectors were tuned on `development`, and
`heldout` was written before them and put away. `--mistakes` prints what was judged wrong. Then the
ordinary replies of `streaming.jsonl` are fed to the screen word by word, and it prints how many
words were shown at once and how late the others were, in words.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent_svc.domain.guard.detect import (
    Facts,
    asks_to_delegate,
    false_claim,
    invented_result,
    textual_call,
    verdict,
)
from agent_svc.domain.guard.watch import Screen

CORPUS = Path(__file__).resolve().parents[1] / "tests" / "corpus" / "guard"
PARTS = ("development", "heldout")
TOOLS = frozenset({"sessions_spawn", "sessions_yield", "agents_list"})
FACTS = {
    "free": Facts(TOOLS),
    "leaf": Facts(frozenset(), depth=1, max_depth=1),
    "no-tool": Facts(frozenset({"time__now"})),
    "budget": Facts(TOOLS, budget_exhausted=True),
    "cap": Facts(TOOLS, children=5, max_children=5),
    "refused": Facts(TOOLS, refused=True),
    "before": Facts(TOOLS, before=True),
}
DETECTORS = ("false_claim", "textual_call", "ignored_instruction", "invented_result")
WHOLE = "guard"


@dataclass
class Score:
    """Counts of one detector over a part."""

    right: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    mistakes: list[str] = field(default_factory=list)

    def precision(self, name: str) -> float:
        """Share of what was caught that should have been."""
        caught = self.right[name] + self.wrong[name]
        return self.right[name] / caught if caught else 1.0

    def recall(self, name: str) -> float:
        """Share of what should have been caught that was."""
        due = self.right[name] + self.missed[name]
        return self.right[name] / due if due else 1.0


def rows(part: str) -> Iterator[dict[str, Any]]:
    """Return the rows of a part."""
    for line in (CORPUS / f"{part}.jsonl").read_text().splitlines():
        yield json.loads(line)


def judge(row: dict[str, Any]) -> set[str]:
    """Say which detectors catch a row, each for itself, and whether the guard as a whole does."""
    reply, facts = row["reply"], FACTS[row["facts"]]
    instruction = asks_to_delegate(row["asked"])
    found: set[str] = set()
    if facts.may_delegate and not facts.refused:
        calls = textual_call(reply, facts.tools)
        # Another number of calls than was meant is a mistake too.
        if calls and len(calls) == row.get("calls", 0):
            found.add("textual_call")
        found |= {"false_claim"} if false_claim(reply, facts) else set()
        found |= {"invented_result"} if invented_result(reply, facts) else set()
        silent = verdict("Done.", facts, instruction)
        if silent is not None and verdict(reply, facts, instruction) is not None:
            found.add("ignored_instruction")
    if verdict(reply, facts, instruction) is not None:
        found.add(WHOLE)
    return found


def score(part: str) -> Score:
    """Judge a part."""
    total = Score()
    for row in rows(part):
        want = set(row["caught"]) | ({WHOLE} if row["caught"] else set())
        found = judge(row)
        for name in sorted(found | want):
            if name in found & want:
                total.right[name] += 1
                continue
            kind = total.wrong if name in found else total.missed
            kind[name] += 1
            what = "caught" if name in found else "missed"
            total.mistakes.append(f"{row['id']} {name} {what}: {row['reply'][:120]!r}")
    return total


@dataclass(frozen=True)
class Delay:
    """How late the words of clean replies were shown, in words that came meanwhile."""

    words: int
    at_once: int
    mean: float
    most: int


def delays() -> Delay:
    """Feed ordinary replies to the screen word by word."""
    late: list[int] = []
    for row in rows("streaming"):
        pieces = re.findall(r"\S+\s*", row["reply"])
        screen = Screen(FACTS["free"], whole=False)
        waiting: list[tuple[int, int]] = []
        length = shown = 0
        for number, piece in enumerate(pieces):
            length += len(piece)
            waiting.append((number, length))
            shown += len(screen.feed(piece))
            late += [number - came for came, end in waiting if end <= shown]
            waiting = [item for item in waiting if item[1] > shown]
        late += [len(pieces) - 1 - came for came, _ in waiting]
    return Delay(len(late), sum(not item for item in late), sum(late) / len(late), max(late))


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--mistakes", action="store_true")
    options = parser.parse_args()
    print(
        f"{'part':<12} {'detector':<20} {'due':>4} {'right':>6} {'wrong':>6} {'missed':>7}"
        f" {'precision':>10} {'recall':>7}"
    )
    for part in (options.part,) if options.part else PARTS:
        total = score(part)
        for name in (*DETECTORS, WHOLE):
            due = total.right[name] + total.missed[name]
            print(
                f"{part:<12} {name:<20} {due:>4} {total.right[name]:>6} {total.wrong[name]:>6} "
                f"{total.missed[name]:>7} {total.precision(name):>10.3f} {total.recall(name):>7.3f}"
            )
        replies = list(rows(part))
        began = time.perf_counter()
        for row in replies:
            verdict(row["reply"], FACTS["free"], None)
        each = (time.perf_counter() - began) / len(replies)
        print(f"{part:<12} {len(replies)} replies, {each * 1e3:.2f} ms each to judge")
        if options.mistakes:
            print("\n".join(total.mistakes) or "no mistakes")
    cost = delays()
    print(
        f"streaming: {cost.words} words of ordinary replies, {cost.at_once / cost.words:.0%} shown "
        f"at once, mean delay {cost.mean:.1f} words, longest {cost.most}"
    )


if __name__ == "__main__":
    main()
