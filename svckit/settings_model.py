"""The keys of `conveyor.toml`, with their defaults and limits.

One class per table. Unknown keys are refused everywhere, values are frozen once loaded, and times
carry their unit in the key. `svckit.settings` reads and reports; this module only describes.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from svckit.postgres import PostgresAddress

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_TOOL_SERVER = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")


def _host_port(value: str) -> str:
    if value.startswith("unix:"):
        return value
    host, colon, port = value.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError('must be "host:port", for example "127.0.0.1:8080"')
    return value


def _host_ports(value: object) -> object:
    """One address or several, as a list or with commas between them."""
    several = _list_of_text(value)
    if not isinstance(several, list) or not several:
        raise ValueError('must be "host:port", or a list of such addresses')
    for address in several:
        _host_port(str(address))
    if len(set(several)) < len(several):
        raise ValueError("must not name an address twice")
    return ",".join(str(address) for address in several)


def _list_of_text(value: object) -> object:
    """From the environment a list comes as text: JSON, or words between commas."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return json.loads(value)
    return [word.strip() for word in value.split(",") if word.strip()]


def _tool_server(value: str) -> str:
    # It begins the names of the server's tools, which providers allow 64 characters of a few kinds.
    if not _TOOL_SERVER.fullmatch(value) or "__" in value:
        raise ValueError("must be 1 to 32 characters of a-z, 0-9, '_' and '-', without '__'")
    return value


def _trace_url(value: str) -> str:
    fits = value.startswith(("http://", "https://")) and value.count("{trace_id}") == 1
    if value and not fits:
        raise ValueError("must be an http or https address with {trace_id} in it, once")
    return value


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError("must be 1 to 64 characters of a-z, 0-9, '_', '.' and '-'")
    return value


Address = Annotated[str, AfterValidator(_host_port)]
"""`host:port`; port 0 means any free port."""
Addresses = Annotated[str, BeforeValidator(_host_ports)]
"""`host:port`, or several with commas between them; in the file also a list."""
OptionalAddress = Annotated[str, AfterValidator(lambda value: value and _host_port(value))]
"""`host:port`, or empty."""
Texts = Annotated[tuple[str, ...], BeforeValidator(_list_of_text)]
"""A list of texts; in the environment JSON, or words between commas."""
Name = Annotated[str, AfterValidator(_name)]
"""An id that names a table."""
ToolServerId = Annotated[str, AfterValidator(_tool_server)]
"""An id that names a table and begins the names of tools."""
QueueMode = Literal["followup", "collect", "steer", "interrupt"]
Approval = Literal["allow", "ask", "deny"]
PermissionMode = Literal["approve-reads", "approve-all", "deny-all", "ask"]
Scope = Literal["read", "send", "control", "admin"]
Seconds = Annotated[float, Field(ge=0, le=86_400 * 366)]


class Table(BaseModel):
    """A table of the file: frozen, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class StoreSettings(Table):
    """`[store]`: where state is kept. `password_file` holds the password of a PostgreSQL user."""

    url: str = "sqlite:///./data"
    password_file: str = ""
    leader_lease_seconds: float = Field(default=5, ge=0.5, le=10)

    @model_validator(mode="after")
    def _known_kind(self) -> Self:
        if not self.url.startswith(("sqlite:///", "postgresql://", "memory:")):
            raise ValueError(
                'url must be "sqlite:///<directory>", "postgresql://…" or "memory:" (tests only)'
            )
        if self.url.startswith("postgresql:"):
            try:
                address = PostgresAddress.parse(self.url)
            except ValueError as err:
                raise ValueError(f"url {err}") from None
            if self.password_file and address.password is not None:
                raise ValueError("password_file is set, and url holds a password; keep one")
        elif self.password_file:
            raise ValueError("password_file goes with a postgresql url only")
        return self

    @property
    def postgres(self) -> PostgresAddress:
        """The address of the PostgreSQL database. Only for `postgresql:` addresses."""
        return PostgresAddress.parse(self.url, password_file=self.password_file)

    @property
    def directory(self) -> Path:
        """Directory of the SQLite files. Only for `sqlite:` addresses."""
        if not self.url.startswith("sqlite:///"):
            raise ValueError("only a sqlite store has a directory")
        return Path(self.url.removeprefix("sqlite:///"))

    def file(self, service: str) -> Path:
        """SQLite file of one service, for example `data/agent.db`."""
        return self.directory / f"{service}.db"

    def database(self, service: str) -> str | PostgresAddress:
        """What one service keeps its state in, as `Database.open` takes it."""
        if self.url.startswith("memory:"):
            return ":memory:"
        return str(self.file(service)) if self.url.startswith("sqlite:///") else self.postgres


class LaneSettings(Table):
    """`[lanes.<name>]`: a global lane."""

    limit: int = Field(default=4, ge=0, le=100_000)
    expected_turn_seconds: float = Field(default=5, gt=0, le=86_400)


class SubagentLane(LaneSettings):
    """`[lanes.subagent]`."""

    limit: int = Field(default=8, ge=0, le=100_000)


class SessionLaneSettings(Table):
    """`[lanes.session]`: every session lane."""

    cap: int = Field(default=50, ge=1, le=1000)
    overflow: Literal["reject", "drop_oldest"] = "reject"
    debounce_ms: int = Field(default=1000, ge=0, le=5000)


class LanesSettings(BaseModel):
    """`[lanes]`: the named global lanes, any number of further ones, and the session lanes."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, LaneSettings] = Field(init=False)

    main: LaneSettings = LaneSettings()
    subagent: SubagentLane = SubagentLane()
    acp: LaneSettings = LaneSettings()
    session: SessionLaneSettings = SessionLaneSettings()

    @model_validator(mode="after")
    def _names(self) -> Self:
        for name in self.__pydantic_extra__ or {}:
            _name(name)
        return self

    def all(self) -> dict[str, LaneSettings]:
        """Every global lane by name, `main`, `subagent` and `acp` first."""
        own = {"main": self.main, "subagent": self.subagent, "acp": self.acp}
        return own | dict(self.__pydantic_extra__ or {})


class BackoffSettings(Table):
    """`[runs.backoff]`: pauses between attempts of a turn."""

    initial_seconds: float = Field(default=1, ge=0, le=3600)
    max_seconds: float = Field(default=30, ge=0, le=3600)
    multiplier: float = Field(default=2, ge=1, le=100)


class RunsSettings(Table):
    """`[runs]`: attempts, leases and time limits. 0 means no limit."""

    max_attempts: int = Field(default=3, ge=1, le=10)
    backoff: BackoffSettings = BackoffSettings()
    lease_seconds: float = Field(default=15, ge=1, le=600)
    queue_timeout_seconds: Seconds = 0
    run_timeout_seconds: Seconds = 900


class RetentionSettings(Table):
    """`[retention]`: how long ended things are kept."""

    events_days: float = Field(default=30, gt=0)
    runs_days: float = Field(default=30, gt=0)
    request_ids_hours: float = Field(default=48, gt=0)


class CustomerSettings(Table):
    """`[customers.<key>]`."""

    weight: int = Field(default=1, ge=1, le=100)


class BudgetSettings(Table):
    """`[agents.….subagents.budget]`: caps of a flow. Left out means no cap."""

    max_tokens: int | None = Field(default=None, ge=1)
    max_cost_usd: float | None = Field(default=None, gt=0)
    max_wall_seconds: float | None = Field(default=None, gt=0)
    reply_reserve: float | None = Field(default=None, ge=0, le=0.5)


class SubagentSettings(Table):
    """`[agents.….subagents]`: what an agent's spawns may do.

    `tools`: what its sub-agents may use at most, empty for what it may use itself.
    """

    wait: bool = True
    max_spawn_depth: int = Field(default=1, ge=0, le=16)
    max_children_per_agent: int = Field(default=5, ge=0, le=100)
    max_descendants: int = Field(default=50, ge=0, le=10_000)
    max_concurrent: int | None = Field(default=None, ge=0, le=100_000)
    model: str = ""
    tools: Texts = ()
    run_timeout_seconds: Seconds = 900
    yield_after_seconds: Seconds = 20
    archive_after_minutes: float = Field(default=60, ge=0)
    announce: Literal["all", "each"] = "all"
    budget: BudgetSettings = BudgetSettings()


class GuardSettings(Table):
    """`[agents.….guard]`: what happens to replies that should have delegated and did not.

    `fallback_model`: asked when insisting and forcing did not help; empty for none.
    """

    mode: Literal["on", "off"] = "on"
    fallback_model: str = ""


class ContextSettings(Table):
    """`[agents.….context]`: what is done about long conversations.

    `compact_at`: share of the model's context at which the older part is summarised; 0 leaves it
    to the provider to refuse.
    """

    compact_at: float = Field(default=0.7, ge=0, le=0.95)


class AgentDefaults(Table):
    """`[agents.defaults]`: what every agent has unless its own table says otherwise.

    `approvals`: rule by the name of a tool, or by a pattern that ends in `*`; the longest that fits
    counts, before the rule of the tool server.
    """

    model: str = Field(default="demo", min_length=1)
    queue_mode: QueueMode = "followup"
    fallback_models: Texts = ()
    context: ContextSettings = ContextSettings()
    strict_model: bool = False
    approvals: dict[str, Approval] = {}
    approval_timeout_seconds: float = Field(default=300, ge=10, le=86_400)
    subagents: SubagentSettings = SubagentSettings()
    guard: GuardSettings = GuardSettings()


class AgentSettings(AgentDefaults):
    """`[agents.list.<id>]`: one agent. Read it through `AgentsSettings.get`, which fills it in.

    `description`: what it is good for, for the agents that may spawn it. `prompt_file`: a file with
    the prompt, instead of `prompt`. `tools`: names of the tools it may use, empty for all.
    `allow_agents`: ids it may spawn, `*` for any, empty for itself only. `workspace`: directory
    that its tools and harnesses work in.
    """

    description: str = Field(default="", max_length=500)
    prompt: str = ""
    prompt_file: str = ""
    tools: Texts = ()
    allow_agents: Texts = ()
    workspace: str = ""

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if self.prompt and self.prompt_file:
            raise ValueError("needs prompt or prompt_file, not both")
        return self


DEFAULT_AGENT = "main"
"""The agent that answers when no session key and no route names one."""


class AgentsSettings(Table):
    """`[agents]`."""

    defaults: AgentDefaults = AgentDefaults()
    list: dict[Name, AgentSettings] = {}

    @model_validator(mode="after")
    def _one_lane_limit(self) -> Self:
        for agent_id, agent in self.list.items():
            if agent.subagents.max_concurrent is not None:
                raise ValueError(
                    f"list.{agent_id}.subagents.max_concurrent: the limit is of the whole lane; "
                    "set lanes.subagent.limit instead"
                )
        return self

    def ids(self) -> tuple[str, ...]:
        """Ids of all agents, in the order of the file; the built-in one when none is listed."""
        return tuple(self.list) or (DEFAULT_AGENT,)

    def get(self, agent_id: str) -> AgentSettings | None:
        """Settings of one agent over the defaults, or None when there is no such agent."""
        if agent_id not in self.ids():
            return None
        merged = _explicit(self.defaults)
        if agent_id in self.list:
            _merge(merged, _explicit(self.list[agent_id]))
        return AgentSettings.model_validate(merged)


def _explicit(table: BaseModel) -> dict[str, Any]:
    return table.model_dump(exclude_unset=True)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value


class ProviderSettings(Table):
    """`[providers.<id>]`: a model provider.

    Rates of 0 mean no limit; with `rates_per_model` they hold for each model on its own. Prices, in
    US dollars for a million tokens, replace those of the price list; set both or none.
    `context_tokens`: how much its models read at once, 0 for what the same list says. The table
    `[providers.demo]` limits the demo models.
    """

    kind: Literal["openai", "anthropic", "google"] = "openai"
    base_url: str = ""
    api_key_env: str = ""
    api_key_file: str = ""
    requests_per_minute: int = Field(default=0, ge=0)
    tokens_per_minute: int = Field(default=0, ge=0)
    rates_per_model: bool = False
    input_price_usd: float | None = Field(default=None, ge=0)
    output_price_usd: float | None = Field(default=None, ge=0)
    context_tokens: int = Field(default=0, ge=0, le=100_000_000)

    @model_validator(mode="after")
    def _http(self) -> Self:
        if self.base_url and not self.base_url.startswith(("http://", "https://")):
            raise ValueError("base_url must start with http:// or https://")
        return self

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if self.api_key_env and self.api_key_file:
            raise ValueError("needs api_key_env or api_key_file, not both")
        return self

    @model_validator(mode="after")
    def _both_prices(self) -> Self:
        if (self.input_price_usd is None) != (self.output_price_usd is None):
            raise ValueError("needs both input_price_usd and output_price_usd, or none")
        return self


class McpToolSettings(Table):
    """`[mcp.<id>.tools.<name>]`: one tool of a server. Left out follows the server."""

    approval: Approval | None = None
    idempotent: bool | None = None


class McpSettings(Table):
    """`[mcp.<id>]`: a tool server, started by `command` or found at `url`.

    Approval `auto` allows the tools that the server calls read-only and asks for all others. A
    command sees the variables in `env`, those in `env_from` (its name to the name of ours) and in
    `env_from_file` (its name to the file that holds the value), and of the others only what any
    program needs. `headers_env`, `headers_file`: header to the variable or the file that holds it.
    """

    command: Texts = ()
    url: str = ""
    env: dict[str, str] = {}
    env_from: dict[str, str] = {}
    env_from_file: dict[str, str] = {}
    headers_env: dict[str, str] = {}
    headers_file: dict[str, str] = {}
    approval: Literal["auto", "allow", "ask", "deny"] = "auto"
    start_timeout_seconds: float = Field(default=20, gt=0, le=600)
    timeout_seconds: float = Field(default=60, gt=0, le=3600)
    tools: dict[str, McpToolSettings] = {}

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if bool(self.command) == bool(self.url):
            raise ValueError("needs exactly one of command and url")
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ValueError("url must start with http:// or https://")
        if "@" in self.url.partition("//")[2].partition("/")[0]:
            raise ValueError("url must hold no name and password; use headers_env or headers_file")
        if self.url and (self.env or self.env_from or self.env_from_file):
            raise ValueError(
                "env, env_from and env_from_file are of a command; "
                "a url has headers_env and headers_file"
            )
        if self.command and (self.headers_env or self.headers_file):
            raise ValueError(
                "headers_env and headers_file are of a url; "
                "a command has env, env_from and env_from_file"
            )
        if twice := (self.env_from.keys() | self.env.keys()) & self.env_from_file.keys():
            raise ValueError(f"env_from_file.{min(twice)}: is in env or env_from too; keep one")
        if twice := self.headers_env.keys() & self.headers_file.keys():
            raise ValueError(f"headers_file.{min(twice)}: is in headers_env too; keep one")
        return self


class HarnessSettings(Table):
    """`[acp.harness.<id>]`: how a harness is started. `install` is shown when it is missing.

    `env_names`: variables of the service that its process sees too, in the place of those that the
    registry names for its login; an empty list for none. `env_from_file`: variables that it sees,
    each with the file that holds its value, read when a process starts. `asks` and `skips`: its own
    modes that ask before they act, and that do not. `state`: what it writes of its own, below its
    home directory.
    """

    command: Texts = ()
    env: dict[str, str] = {}
    env_names: Texts | None = None
    env_from_file: dict[str, str] = {}
    asks: Texts = ()
    skips: Texts = ()
    state: Texts = ()
    install: str = ""

    @model_validator(mode="after")
    def _of_its_own(self) -> Self:
        if both := set(self.asks) & set(self.skips):
            raise ValueError(f"mode {min(both)!r} is in asks and in skips")
        for path in self.state:
            if path.startswith(("/", "~")) or ".." in path.split("/"):
                raise ValueError(f"state {path!r} is not a path below the home directory")
        return self


class AcpSettings(Table):
    """`[acp]`: external coding agents. An empty list of harnesses allows all.

    `listen`: where the service listens, when not where it is dialled. `worker_name`: each service
    that shares a database has its own; empty for the name of the host.

    `env_names`: variables of the service that whoever spawns a session may pass on to it.
    """

    listen: OptionalAddress = ""
    worker_name: str = Field(default="acp-0", max_length=64)
    enabled: bool = True
    permission_mode: PermissionMode = "approve-reads"
    default_harness: str = ""
    allowed_harnesses: Texts = ()
    workspace_roots: Texts = ()
    env_names: Texts = ()
    max_sessions: int = Field(default=8, ge=1, le=1000)
    when_full: Literal["wait", "reject"] = "wait"
    idle_minutes: float = Field(default=120, gt=0)
    permission_timeout_seconds: float = Field(default=300, ge=10, le=86_400)
    handshake_seconds: float = Field(default=60, ge=1, le=600)
    turn_seconds: float = Field(default=1800, ge=1, le=86_400)
    quiet_seconds: float = Field(default=600, ge=1, le=86_400)
    cancel_seconds: float = Field(default=10, ge=0.5, le=120)
    sandbox: Literal["auto", "off", "require"] = "auto"
    harness: dict[Name, HarnessSettings] = {}


class TokenSettings(Table):
    """`[gateway.tokens.<name>]`: a bearer token, from a variable or a file.

    `customer_key`: the customer its holder is; left out `http:<name>`, and for `admin` whoever it
    names. `requests_per_minute`: left out, that of the gateway.
    """

    token_env: str = ""
    token_file: str = ""
    scopes: Annotated[tuple[Scope, ...], BeforeValidator(_list_of_text)] = ("read", "send")
    customer_key: str = Field(default="", max_length=128)
    requests_per_minute: int | None = Field(default=None, ge=0, le=1_000_000)

    @model_validator(mode="after")
    def _one_place_and_some_scope(self) -> Self:
        if bool(self.token_env) == bool(self.token_file):
            raise ValueError("needs exactly one of token_env and token_file")
        if not self.scopes:
            raise ValueError("scopes must name at least one of read, send, control, admin")
        if not self.customer_key.isprintable():
            raise ValueError("customer_key must hold printable characters only")
        return self


class TlsSettings(Table):
    """`[gateway.tls]`: PEM files. `client_ca` makes clients show a certificate."""

    cert_file: str = ""
    key_file: str = ""
    client_ca: str = ""

    @model_validator(mode="after")
    def _pair(self) -> Self:
        if bool(self.cert_file) != bool(self.key_file):
            raise ValueError("needs both cert_file and key_file")
        if self.client_ca and not self.cert_file:
            raise ValueError("client_ca needs cert_file and key_file")
        return self


class GatewaySettings(Table):
    """`[gateway]`: the edge. Without tokens only the loopback address is safe.

    `published`: for a gateway in a container, the address of the machine at which its ports are
    published. It counts in the place of those that the gateway listens on.
    """

    http: Address = "127.0.0.1:8080"
    grpc: Address = "127.0.0.1:50050"
    published: str = Field(default="", max_length=253)
    allowed_origins: Texts = ()
    requests_per_minute: int = Field(default=1200, ge=0, le=1_000_000)
    tokens: dict[Name, TokenSettings] = {}
    tls: TlsSettings = TlsSettings()


class ClientSettings(Table):
    """`[client]`: how the command line reaches a gateway that wants tokens or TLS.

    `tls`: also without a file, for certificates that the system trusts. `server_name`: the name in
    the certificate, when it is not the one that is dialled.
    """

    token_env: str = ""
    token_file: str = ""
    tls: bool = False
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    server_name: str = ""

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        if self.token_env and self.token_file:
            raise ValueError("needs token_env or token_file, not both")
        if bool(self.cert_file) != bool(self.key_file):
            raise ValueError("needs both cert_file and key_file")
        return self


class HookSettings(Table):
    """`[hooks.<name>]`: signed calls to `/hooks/<name>` start or steer something.

    `session_key`, `label`, `run_id`, `acp_session_id` and `text` may have places for values of the
    body, for example `{repository.full_name}`.
    """

    secret_env: str = ""
    secret_file: str = ""
    signature: Literal["standard", "github"] = "standard"
    tolerance_seconds: float = Field(default=300, ge=1, le=3600)
    action: Literal["message", "spawn", "steer"] = "message"
    scopes: Annotated[tuple[Scope, ...], BeforeValidator(_list_of_text)] = ("send",)
    customer_key: str = Field(default="", max_length=128)
    requests_per_minute: int | None = Field(default=None, ge=0, le=1_000_000)
    only: dict[str, Texts] = {}
    text: str = Field(min_length=1)
    agent: str = ""
    session_key: str = ""
    queue_mode: QueueMode | None = None
    harness: str = ""
    cwd: str = ""
    permission_mode: PermissionMode | None = None
    label: str = ""
    run_id: str = ""
    acp_session_id: str = ""

    @model_validator(mode="after")
    def _one_secret(self) -> Self:
        if bool(self.secret_env) == bool(self.secret_file):
            raise ValueError("needs exactly one of secret_env and secret_file")
        return self

    @model_validator(mode="after")
    def _what_goes_with_the_action(self) -> Self:
        own = {
            "message": {"agent", "session_key", "queue_mode"},
            "spawn": {"harness", "cwd", "permission_mode", "label", "session_key"},
            "steer": {"run_id", "acp_session_id"},
        }
        for name in sorted(set().union(*own.values()) - own[self.action]):
            if getattr(self, name):
                raise ValueError(f"{name} does not go with action = {self.action!r}")
        if self.action == "steer" and bool(self.run_id) == bool(self.acp_session_id):
            raise ValueError("needs exactly one of run_id and acp_session_id to steer")
        return self

    @model_validator(mode="after")
    def _allowed_to(self) -> Self:
        needed = "control" if self.action == "spawn" or self.run_id else "send"
        enough = ("send", "control", "admin")
        if not set(self.scopes).intersection(enough[enough.index(needed) :]):
            raise ValueError(f"scopes must hold {needed!r}, which this action needs")
        return self


class ChannelSettings(BaseModel):
    """`[channels.<id>]`: where messages come from. Further keys name credentials, as `*_env`."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, str] = Field(init=False)

    kind: Literal["web", "http", "grpc", "whatsapp", "slack", "telegram", "discord"]
    agent: str = ""
    allow_from: Texts = ()
    queue_mode: QueueMode | None = None
    announce_style: Literal["off", "status", "full"] = "status"

    @model_validator(mode="after")
    def _credentials(self) -> Self:
        for key in self.__pydantic_extra__ or {}:
            if not key.endswith("_env"):
                raise ValueError(f"unknown key {key!r}; credentials are named by keys in _env")
        return self

    @property
    def credentials(self) -> dict[str, str]:
        """Key without `_env` to the name of the environment variable that holds the secret."""
        return {k.removesuffix("_env"): v for k, v in (self.__pydantic_extra__ or {}).items()}


class RouteSettings(Table):
    """One of `[[routes]]`: the first that matches names the agent. Empty matches anything."""

    agent: str = Field(min_length=1)
    channel: str = ""
    account: str = ""
    peer: str = ""


class TelemetrySettings(Table):
    """`[telemetry]`: where traces go. Content of messages is left out unless asked for.

    `sample_ratio`: the part of all flows that is traced, decided once for each. `continuation`:
    whether queued work is below what created it, in one trace, or begins a trace with a link.
    `ui_url`: where a person sees a trace, with `{trace_id}` in it. `hash_key_file`: with the key of
    the pseudonyms that stand for people and conversations, or `hash_key_env`, the variable that has
    it; the same for all services.
    """

    otlp_endpoint: str = ""
    capture_content: bool = False
    sample_ratio: float = Field(default=1.0, ge=0, le=1)
    continuation: Literal["parent", "link"] = "parent"
    ui_url: Annotated[str, AfterValidator(_trace_url)] = ""
    hash_key_env: str = ""
    hash_key_file: str = ""

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if self.hash_key_env and self.hash_key_file:
            raise ValueError("needs hash_key_env or hash_key_file, not both")
        return self


class MetricsSettings(Table):
    """`[metrics]`: where each service answers `GET /metrics`, for Prometheus. Empty: nowhere.

    The gateway answers on its HTTP address too, to whoever may read.
    """

    gateway: OptionalAddress = ""
    scheduler: OptionalAddress = ""
    agent: OptionalAddress = ""
    acp: OptionalAddress = ""


class ServicesSettings(Table):
    """`[services]`: where the inner services listen and are dialled."""

    scheduler: Addresses = "127.0.0.1:50051"
    agent: Address = "127.0.0.1:50052"
    acp: Address = "127.0.0.1:50053"

    @property
    def schedulers(self) -> tuple[str, ...]:
        """The addresses of all schedulers; one, unless there are standbys."""
        return tuple(self.scheduler.split(","))


class SchedulerServiceSettings(Table):
    """`[scheduler]`: this scheduler among several."""

    listen: OptionalAddress = ""
    advertise: OptionalAddress = ""


class AgentServiceSettings(Table):
    """`[agent]`: the agent service's own worker.

    `listen`: where it listens, when not where it is dialled. `worker_name`: empty for the name of
    the host, which differs from container to container.
    """

    listen: OptionalAddress = ""
    worker_name: str = Field(default="agent-0", max_length=64)
    slots: int = Field(default=16, ge=1, le=64)


class LogSettings(Table):
    """`[log]`: `auto` writes for people on a terminal, else JSON."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"
