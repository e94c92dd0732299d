"""`harnesses.md`: what the registry knows of each harness."""

from __future__ import annotations

from collections.abc import Iterable

from acp_svc.domain.builtin import BUILT_IN
from acp_svc.domain.install import System, install_command
from acp_svc.domain.modes import Modes
from acp_svc.domain.registry import COMMON_ENV_NAMES, Harness
from docgen import NOTE, cell

INTRO = """# Harnesses

The coding agents that can be spawned without any configuration, by the id that `/acp spawn` and the API take. What is
peculiar to each is data in `acp_svc/domain/builtin.py`, from which this page is made. `conveyor acp harnesses` lists
them for your machine, `conveyor acp doctor` starts those that are installed and says what is missing.

Facts about modes, errors and reopening were measured with the versions in the last column, driven by a scripted model;
where there is none they are from the harness's own documents. Versions change such things: a mode is therefore read
back each time, and the harness refused when it is in one that does not ask
([why](../decisions/0028-a-harness-that-does-not-ask-is-not-used.md)).

| Id | Harness | Command | Install | Measured with |
|---|---|---|---|---|
"""

DETAILS = """
## What differs

**Modes**: its own modes. The first named is set; *unasked* are those in which it acts without asking, so that it is
used in them with permissions `approve-all` only. **Login**: what to do when it says that nobody is logged in.
**Variables**: those of the service that its process sees, if they are set, beside what any program needs and
{common}. **State**: what it may write below its home directory when it is [in a
sandbox](../architecture/harnesses.md#what-a-session-may-touch).
"""

OWN = """
## One of your own

Any program that speaks ACP over its standard input and output can be a harness:

```toml
[acp.harness.mine]
command = ["/opt/mine/agent", "--acp"]
install = "see https://example.org/mine"
env = { MINE_HOME = "/var/lib/mine" }
env_names = ["MINE_API_KEY"]
asks = ["careful"]
skips = ["autonomous"]
state = [".mine"]
```

Without `asks` and `skips` its mode is left alone, unless it has a name that others use for not asking (`auto`, `yolo`,
`acceptEdits`, `bypassPermissions` and the like): then a mode named `default`, `ask`, `manual` or the like is set, and
without one it is refused. Without `state`, what it writes in a sandbox lasts in the directories of its id only:
`~/.mine`, `~/.config/mine`, `~/.cache/mine`, `~/.local/share/mine`, `~/.local/state/mine`. All keys: [configuration](configuration.md).

A harness is not offered files and terminals of the client (`fs/*`, `terminal/*`): it uses its own, where its permission
questions and its sandbox hold. What it asks for all the same is answered with an error that says so.
"""

_HERE = System("linux", frozenset({"npm", "uv"}), root=True)


def render() -> str:
    """Return the page."""
    rows = [
        f"| `{h.harness_id}` | {h.display_name} | `{' '.join(h.command)}` "
        f"| {_install(h)} | {cell(h.tried) or 'not tried'} |"
        for h in BUILT_IN.values()
    ]
    common = ", ".join(f"`{name}`" for name in COMMON_ENV_NAMES)
    parts = [NOTE, INTRO, "\n".join(rows), "\n", DETAILS.format(common=common)]
    parts += [_details(harness) for harness in BUILT_IN.values()]
    return "".join([*parts, OWN])


def _install(harness: Harness) -> str:
    command = install_command(harness.installer, _HERE)
    return f"`{cell(command)}`"


def _details(harness: Harness) -> str:
    lines = [
        f"\n### `{harness.harness_id}`\n\n{harness.notes}\n",
        f"- Modes: {_modes(harness.modes)}",
        f"- Login: {harness.login}",
        f"- Variables: {_codes(harness.env_names) or 'none'}",
        f"- State: {_codes(f'~/{path}' for path in harness.state)}",
    ]
    if harness.env:
        lines.append(
            "- Set for it: " + _codes(f"{name}={value}" for name, value in harness.env.items())
        )
    return "\n".join(lines) + "\n"


def _modes(modes: Modes) -> str:
    if modes.never:
        return f"{modes.never}; `approve-all` only"
    if modes.guessed:
        return "not known; judged by their names"
    parts = [_codes(modes.asks)] if modes.asks else []
    if modes.skips:
        parts.append("unasked: " + _codes(sorted(modes.skips)))
    for mode, partly in modes.partly.items():
        number = ".".join(map(str, partly.since))
        unless = f", unless `{partly.unless}` is offered too" if partly.unless else ""
        parts.append(f"`{mode}` only in a sandbox from version {number} on{unless}")
    for name, value in modes.switches.items():
        parts.append(f"option `{name}` is set to `{value}`")
    return "; ".join(parts) or "none that matter: it asks in all"


def _codes(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)
