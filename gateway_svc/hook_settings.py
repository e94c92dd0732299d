"""Reads the hooks of the settings, and refuses those that could not work."""

from __future__ import annotations

from collections.abc import Mapping

from conveyor.acp.v1 import session_pb2 as acp_session
from gateway_svc.domain.commands.queueing import MODES, UNSPECIFIED
from gateway_svc.domain.hooks import Hook
from gateway_svc.domain.principals import Principal, Scope
from gateway_svc.domain.signatures import key_of
from gateway_svc.domain.templates import Template
from svckit.errors import StartError
from svckit.secrets import read_secret
from svckit.settings import Settings
from svckit.settings_model import HookSettings


def hooks_of(settings: Settings, environ: Mapping[str, str] | None = None) -> dict[str, Hook]:
    """Return the configured hooks by name. Raises `StartError` naming the key."""
    return {name: _hook(name, hook, settings, environ) for name, hook in settings.hooks.items()}


def _hook(
    name: str, hook: HookSettings, settings: Settings, environ: Mapping[str, str] | None
) -> Hook:
    key = f"hooks.{name}"
    secrets = read_secret(
        f"{key}.secret", env=hook.secret_env, file=hook.secret_file, environ=environ
    )
    try:
        keys = [key_of(line.strip(), hook.signature) for line in secrets.splitlines()]
    except ValueError as problem:
        raise StartError(
            f"{key}: the secret {problem}; `openssl rand -base64 32` makes one"
        ) from None

    def template(field: str) -> Template | None:
        text: str = getattr(hook, field)
        try:
            return Template.parse(text) if text else None
        except ValueError as problem:
            raise StartError(f"{key}.{field}: {problem}") from None

    text = template("text")
    assert text is not None, "the settings want one"
    mode = hook.permission_mode
    limit = hook.requests_per_minute
    return Hook(
        name=name,
        keys=keys,
        scheme=hook.signature,
        tolerance=hook.tolerance_seconds,
        principal=Principal(
            name=f"hook:{name}",
            scope=max(Scope[each.upper()] for each in hook.scopes),
            customer_key=hook.customer_key or f"hook:{name}",
            requests_per_minute=settings.gateway.requests_per_minute if limit is None else limit,
            is_hook=True,
        ),
        action=hook.action,
        text=text,
        only=hook.only,
        agent_id=hook.agent,
        session_key=template("session_key"),
        queue_mode=MODES[hook.queue_mode] if hook.queue_mode else UNSPECIFIED,
        harness_id=hook.harness,
        cwd=hook.cwd,
        permission_mode=(
            acp_session.PermissionMode.Value(f"PERMISSION_MODE_{mode.upper().replace('-', '_')}")
            if mode
            else acp_session.PERMISSION_MODE_UNSPECIFIED
        ),
        label=template("label"),
        run_id=template("run_id"),
        acp_session_id=template("acp_session_id"),
    )
