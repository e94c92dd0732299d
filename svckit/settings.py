"""Loads `conveyor.toml` and the `CONVEYOR_…` environment, and names every wrong key.

The environment beats the file, the file beats the defaults. A key is its path in the file in
capitals with `__` between levels: `CONVEYOR_LANES__MAIN__LIMIT=1` is `lanes.main.limit = 1`. Lists
come as JSON or as words between commas. Names made of capitals cannot be told from the
environment: they are read in small letters.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.sources import EnvSettingsSource

from svckit import failpoints
from svckit import settings_model as m

ENV_PREFIX = "CONVEYOR_"
DEFAULT_FILE = Path("conveyor.toml")
TOKEN_VARIABLE = "CONVEYOR_TOKEN"  # noqa: S105  (a name)
"""Where the command line looks for its bearer token; no key of the configuration."""
_SECRET_KEYS = ("token", "key", "env", "url", "credential", "secret")


class ConfigError(Exception):
    """The configuration cannot be used. `problems` has one line per wrong key."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class Settings(BaseSettings):
    """The whole configuration. Get it from `load`."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        enable_decoding=False,
    )

    store: m.StoreSettings = m.StoreSettings()
    lanes: m.LanesSettings = m.LanesSettings()
    runs: m.RunsSettings = m.RunsSettings()
    retention: m.RetentionSettings = m.RetentionSettings()
    customers: dict[str, m.CustomerSettings] = {}
    agents: m.AgentsSettings = m.AgentsSettings()
    providers: dict[m.Name, m.ProviderSettings] = {}
    mcp: dict[m.ToolServerId, m.McpSettings] = {}
    acp: m.AcpSettings = m.AcpSettings()
    gateway: m.GatewaySettings = m.GatewaySettings()
    client: m.ClientSettings = m.ClientSettings()
    hooks: dict[m.Name, m.HookSettings] = {}
    channels: dict[m.Name, m.ChannelSettings] = {}
    routes: tuple[m.RouteSettings, ...] = ()
    telemetry: m.TelemetrySettings = m.TelemetrySettings()
    metrics: m.MetricsSettings = m.MetricsSettings()
    services: m.ServicesSettings = m.ServicesSettings()
    scheduler: m.SchedulerServiceSettings = m.SchedulerServiceSettings()
    agent: m.AgentServiceSettings = m.AgentServiceSettings()
    log: m.LogSettings = m.LogSettings()

    @model_validator(mode="before")
    @classmethod
    def _other_name_of_the_subagent_limit(cls, data: Any) -> Any:
        """`agents.defaults.subagents.max_concurrent` is another name for `lanes.subagent.limit`."""
        other = _dig(data, "agents", "defaults", "subagents", "max_concurrent")
        if other is None:
            return data
        limit = _dig(data, "lanes", "subagent", "limit")
        if limit is not None and str(limit) != str(other):
            raise ValueError(
                "agents.defaults.subagents.max_concurrent and lanes.subagent.limit are the same "
                f"limit, but say {other} and {limit}; keep one"
            )
        lanes = dict(data.get("lanes") or {})
        lanes["subagent"] = {**(lanes.get("subagent") or {}), "limit": other}
        return {**data, "lanes": lanes}

    @model_validator(mode="after")
    def _names_that_must_exist(self) -> Self:
        known = self.agents.ids()
        used = [(f"routes.{i}.agent", route.agent) for i, route in enumerate(self.routes)]
        used += [(f"channels.{c}.agent", ch.agent) for c, ch in self.channels.items() if ch.agent]
        used += [(f"hooks.{h}.agent", hook.agent) for h, hook in self.hooks.items() if hook.agent]
        used += [
            (f"agents.list.{owner}.allow_agents", agent_id)
            for owner, agent in self.agents.list.items()
            for agent_id in agent.allow_agents
            if agent_id != "*"
        ]
        for key, agent_id in used:
            if agent_id not in known:
                raise ValueError(f"{key}: no agent {agent_id!r}; known: {', '.join(known)}")
        return self


def load(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Read the configuration.

    `path`: the file; left out, `./conveyor.toml` if it exists. `environ`: left out, the process
    environment. Raises `ConfigError` with every problem found, each naming its key and where the
    value came from.
    """
    environ = os.environ if environ is None else environ
    origin, from_file = _read_file(path)
    ours = {key: value for key, value in environ.items() if key.upper().startswith(ENV_PREFIX)}
    _refuse_unknown_variables(ours)

    class _Source(EnvSettingsSource):
        def _load_env_vars(self) -> Mapping[str, str | None]:
            return {key.lower(): value for key, value in ours.items()}

    class _Load(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return _Source(settings_cls), init_settings

    try:
        return _Load(**from_file)
    except ValidationError as err:
        raise ConfigError([_line(e, ours, origin) for e in err.errors()]) from err


def _read_file(path: Path | None) -> tuple[str, dict[str, Any]]:
    if path is None:
        if not DEFAULT_FILE.is_file():
            return "the defaults", {}
        path = DEFAULT_FILE
    try:
        return str(path), tomllib.loads(path.read_text("utf-8"))
    except OSError as err:
        raise ConfigError([f"{path}: cannot be read: {err.strerror}"]) from err
    except UnicodeDecodeError as err:
        raise ConfigError([f"{path}: is not UTF-8 text"]) from err
    except tomllib.TOMLDecodeError as err:
        raise ConfigError([f"{path}: is not valid TOML: {err}"]) from err


def _refuse_unknown_variables(ours: Mapping[str, str]) -> None:
    """The library only refuses unknown keys below a known table; this is for the tables."""
    unknown = []
    for variable in ours.keys() - {failpoints.VARIABLE, TOKEN_VARIABLE}:
        table, level, _ = variable[len(ENV_PREFIX) :].lower().partition("__")
        if table not in Settings.model_fields:
            unknown.append(f"{table}: unknown key (from {variable})")
        elif not level:
            unknown.append(f"{table}: is a table; name a key in it, as {variable}__… ")
    if unknown:
        raise ConfigError(unknown)


def _line(error: ErrorDetails, ours: Mapping[str, str], origin: str) -> str:
    location = [str(part) for part in error["loc"] if part != "[key]"]
    key = ".".join(location)
    problem = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        problem = "unknown key"
    variable = ENV_PREFIX + "__".join(location).upper()
    # The whole subtree may come from variables: name the first one at or below the key.
    found = next((v for v in sorted(ours) if v.upper().startswith(variable)), None) if key else None
    source = found or origin
    got = _shown(location, error["input"]) if error["type"] != "extra_forbidden" else ""
    return f"{key}: {problem} ({got}from {source})" if key else f"{problem} (from {source})"


def _shown(location: list[str], value: object) -> str:
    """The wrong value, unless it is long or may be a secret."""
    if not isinstance(value, str | int | float) or len(str(value)) > 60:
        return ""
    if any(word in location[-1] for word in _SECRET_KEYS) or "env" in location:
        return ""
    return f"got {value!r}, "


def _dig(data: Any, *keys: str) -> Any:
    for key in keys:
        if isinstance(data, BaseModel):
            data = getattr(data, key, None)
        elif isinstance(data, Mapping):
            data = data.get(key)
        else:
            return None
    return data
