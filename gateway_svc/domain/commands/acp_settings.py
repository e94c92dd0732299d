"""What `/acp permissions`, `model`, `set-mode`, `set`, `cwd` and `timeout` answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from conveyor.acp.v1 import session_pb2 as acp
from gateway_svc.domain.commands.acp_forms import ACP_FORMS
from gateway_svc.domain.commands.acp_words import MEANINGS, name_of, permissions_of
from svckit.contract_words import PERMISSION_MODES
from svckit.words import joined, shorten, time_limit

_NAMES, _NAME, _PATH = 12, 48, 80
_EXAMPLES = {form.name: form.example for form in ACP_FORMS}


def settings_of(name: str, values: Mapping[str, str]) -> acp.AcpSessionSettings:
    """Return what the command `name` changes. `values` are its arguments."""
    settings = acp.AcpSessionSettings()
    match name:
        case "acp permissions":
            settings.permission_mode = PERMISSION_MODES[values["mode"]]
        case "acp model":
            settings.model = "" if values["name"].lower() == "reset" else values["name"]
        case "acp set-mode":
            settings.harness_mode = values["mode"]
        case "acp set":
            settings.options[values["key"]] = values["value"]
        case "acp cwd":
            settings.cwd = values["directory"]
        case "acp timeout":
            settings.turn_timeout.FromSeconds(int(values["time"]))
    return settings


def setting_text(name: str, session: acp.AcpSession, *, changed: bool) -> str:
    """Return how a setting of a session stands, or with `changed` what holds from now on."""
    who, spec = name_of(session), session.spec
    begin = f"From its next turn on {who}" if changed else who
    match name:
        case "acp permissions":
            meaning = MEANINGS.get(spec.permission_mode, "as configured")
            text = f"{begin} has permissions {permissions_of(session)}: {meaning}."
            others = _others(list(PERMISSION_MODES), name, who, permissions_of(session))
            return text if changed else f"{text}\n{others}"
        case "acp model":
            text = (
                f"{begin} uses the model {spec.model}."
                if spec.model
                else f"{begin} uses its own model."
            )
            others = _others(session.models, name, who, spec.model or "default")
            return text if changed else f"{text}\n{others}"
        case "acp set-mode":
            mode = session.harness_mode
            text = f"{begin} is in mode {mode}." if mode else f"{begin} has no modes."
            others = _others(session.harness_modes, name, who, mode)
            return text if changed else f"{text}\n{others}"
        case "acp set":
            return _options(session, begin if changed else f"{who}")
        case "acp cwd":
            text = f"{begin} works in {shorten(spec.cwd, _PATH)}"
            return f"{text}, and begins afresh there." if changed else f"{text}."
        case _:
            seconds = spec.turn_timeout.ToMicroseconds() / 1e6
            limit = time_limit(seconds) if seconds else "as long as configured"
            return f"{begin} may work {limit} in one turn; waiting for you does not count."


def fresh_text(session: acp.AcpSession) -> str:
    """Return what `/new` says in a conversation that a coding agent answers."""
    return (
        f"{name_of(session)} forgets: what you say next begins afresh, in the same directory. "
        "`/acp close` ends it."
    )


def _others(names: Sequence[str], command: str, who: str, present: str) -> str:
    """Return what else can be chosen, with an example that changes something."""
    if not names:
        return f"{who} does not say which there are: try `/{command} NAME`."
    shown = [f"`{shorten(name, _NAME)}`" for name in names[:_NAMES]]
    left = len(names) - len(shown)
    there = f"{', '.join(shown)} and {left} more" if left else joined(shown)
    usual = _EXAMPLES[command].rpartition(" ")[2]
    other = next((name for name in names if name != present), names[0])
    example = usual if usual in names and usual != present else other
    return f"There is {there}, for example `/{command} {example}`"


def _options(session: acp.AcpSession, begin: str) -> str:
    if not session.options:
        return f"{name_of(session)} offers no options."
    lines = [
        f"`{shorten(name, _NAME)}` {shorten(value, _NAME)}"
        for name, value in sorted(session.options.items())[:8]
    ]
    name = sorted(session.options)[0]
    return "\n".join([f"{begin} has:", *lines, f"`/acp set {name} VALUE` changes one"])
