"""What each key is for. `configuration.py` checks that none is missing and none is left over."""

from __future__ import annotations

INTRO = """# Configuration

One file, `conveyor.toml` in the working directory or the one given with `--config`, read by all
services. Without a file the defaults below hold: a complete suite on this machine with the `demo`
model. Every key is also an environment variable: `CONVEYOR_`, then the path in capitals with `__`
between the levels. The environment beats the file.

```sh
CONVEYOR_LANES__MAIN__LIMIT=1 make run     # lanes.main.limit = 1
.venv/bin/conveyor config check            # all problems at once, each with its key
.venv/bin/conveyor config show             # what holds, defaults included
```

Unknown keys are refused, so that a slip of the pen is not a silent default. Secrets are never in the
file: a key that ends in `_env` names the environment variable that holds one, a key that ends in
`_file` the file. Times carry their unit in
the key. `<id>` and the like stand for a name of your choice. *(not yet)* marks keys that are read and
checked, and that nothing acts upon yet.
"""

_LANE_LIMIT = "Most runs that execute at the same time. 0 pauses the lane. `conveyor lanes set` changes it live"
_TURN_SECONDS = "How long a turn is taken to last until some were measured; for estimates"

MEANING = {
    "store.url": "Where state is kept: `sqlite:///<directory>`, in which each service has a file of "
    "its own; `postgresql://user@host:5432/database`, in which each has a schema of its own (see "
    "[how to](../how-to/postgresql.md), also for the password); or `memory:` (tests)",
    "store.password_file": "File that holds the password of the PostgreSQL user, and nothing else",
    "store.leader_lease_seconds": "With PostgreSQL: how long a scheduler leads without renewing. A standby takes over after it. At most half of `runs.lease_seconds`",
    "lanes.main.limit": _LANE_LIMIT,
    "lanes.main.expected_turn_seconds": _TURN_SECONDS,
    "lanes.subagent.limit": _LANE_LIMIT,
    "lanes.subagent.expected_turn_seconds": _TURN_SECONDS,
    "lanes.acp.limit": _LANE_LIMIT,
    "lanes.acp.expected_turn_seconds": _TURN_SECONDS,
    "lanes.session.cap": "Most runs of a session that wait for their first turn",
    "lanes.session.overflow": "What happens to one more: `reject` refuses it with `LANE_FULL`; "
    "`drop_oldest` ends the oldest that waits and tells its sender",
    "lanes.session.debounce_ms": "How long a message in queue mode `collect` waits for another one",
    "runs.max_attempts": "Tries of a turn, the first included, before the run fails",
    "runs.lease_seconds": "How long a worker may be silent before its runs go to another attempt",
    "runs.queue_timeout_seconds": "Longest wait for the first turn",
    "runs.run_timeout_seconds": "Longest executing time of a root run; waiting does not count",
    "runs.backoff.initial_seconds": "Pause before the second attempt",
    "runs.backoff.max_seconds": "Longest pause",
    "runs.backoff.multiplier": "Factor from one pause to the next",
    "retention.events_days": "How long the events of an ended flow are kept; the longer of the two counts",
    "retention.runs_days": "How long ended runs are kept; the longer of the two counts",
    "retention.request_ids_hours": "How long a repeated `request_id` is recognised",
    "customers.<key>.weight": "Share of a lane compared with other customers that wait",
    "agents.defaults.model": "`demo`, `demo-weak`, or `provider:model` with a provider from `[providers]`",
    "agents.defaults.queue_mode": "What a message does when the session is busy: `followup` waits its "
    "turn, `collect` shares a turn with others, `steer` joins the work, `interrupt` stops it",
    "agents.defaults.fallback_models": "Models to try when the first cannot be reached",
    "agents.defaults.strict_model": "A model chosen for one run must answer itself: no fallback, "
    "and no other model of the provider",
    "agents.defaults.approvals": "Tools, or patterns that end in `*`, each with `allow`, `ask` or `deny`: before the rule of the tool server",
    "agents.defaults.approval_timeout_seconds": "How long a person has to answer before a call is denied",
    "agents.defaults.subagents.wait": "What `sessions_spawn` does when the model does not say: wait for "
    "the child, or go on and be told later",
    "agents.defaults.subagents.max_spawn_depth": "Deepest level of sub-agents. 0 forbids spawning, 1 "
    "lets only the first agent spawn",
    "agents.defaults.subagents.max_children_per_agent": "Most live children of one run",
    "agents.defaults.subagents.max_descendants": "Most runs below a root, ended ones included",
    "agents.defaults.subagents.max_concurrent": "Another name for `lanes.subagent.limit`",
    "agents.defaults.subagents.model": "Model of sub-agents. Empty means the agent's own",
    "agents.defaults.subagents.tools": "Tools its sub-agents may use at most, for example `*`. Empty means those it may use itself",
    "agents.defaults.subagents.run_timeout_seconds": "Longest executing time of a sub-agent",
    "agents.defaults.subagents.yield_after_seconds": "After this long a waiting conversation is told so, "
    "and freed when another message is there. 0 means never",
    "agents.defaults.subagents.archive_after_minutes": "When an ended sub-agent leaves the lists; its events stay. 0 means never",
    "agents.defaults.subagents.announce": "When background children are told: together, or each as it ends",
    "agents.defaults.subagents.budget.max_tokens": "Tokens of a flow, read and written",
    "agents.defaults.subagents.budget.max_cost_usd": "Cost of a flow. Calls of models without a known price do not count",
    "agents.defaults.subagents.budget.max_wall_seconds": "Time of a flow from its first start, waiting included",
    "agents.defaults.subagents.budget.reply_reserve": "Share of tokens and cost that sub-agents leave for the root's answer; 0.1 unless set",
    "agents.defaults.guard.mode": "Whether replies that should have delegated and did not are caught",
    "agents.defaults.guard.fallback_model": "Asked when insisting and forcing the tool did not help. Empty means none",
    "agents.defaults.context.compact_at": "Share of the model's context at which the older part of a conversation is summarised. 0 leaves it to the provider to refuse",
    "agents.list.<id>.description": "What it is good for: shown to people, and to agents that may spawn it",
    "agents.list.<id>.prompt": "System prompt, in front of what the suite adds",
    "agents.list.<id>.prompt_file": "File with the system prompt, UTF-8, read at start; instead of `prompt`",
    "agents.list.<id>.tools": "Tools it may use. Empty means all",
    "agents.list.<id>.allow_agents": "Agents it may spawn, `*` for any. Empty means itself only",
    "agents.list.<id>.workspace": "Directory of its tools and harnesses, made at start. Relative to where the suite is started",
    "providers.<id>.kind": "Which protocol it speaks. `openai` is every OpenAI-compatible server",
    "providers.<id>.base_url": "Where it is. Empty means the vendor's own address",
    "providers.<id>.api_key_env": "Environment variable that holds the key. Empty means `OPENAI_API_KEY`, `ANTHROPIC_API_KEY` or `GEMINI_API_KEY`, and none at all with a `base_url`",
    "providers.<id>.api_key_file": "File that holds the key, instead of a variable",
    "providers.<id>.requests_per_minute": "Calls in any minute, shared by all workers. 0 means no limit",
    "providers.<id>.tokens_per_minute": "Tokens in any minute, shared by all workers. 0 means no limit",
    "providers.<id>.rates_per_model": "Whether the two rates hold for each model on its own",
    "providers.<id>.context_tokens": "What its models read at once, in tokens. 0 takes it from the price list; models that are not on it are taken for 32 000",
    "providers.<id>.input_price_usd": "US dollars for a million tokens read, instead of the price list; with the next key",
    "providers.<id>.output_price_usd": "US dollars for a million tokens written",
    "mcp.<id>.command": "Command and arguments of a server that the agent service starts at its first use",
    "mcp.<id>.url": "Address of a server that runs already and speaks streamable HTTP",
    "mcp.<id>.env": "Variables that the command sees, beside what any program needs",
    "mcp.<id>.env_from": "Variables that the command sees, each with the name of ours that holds its value: for secrets",
    "mcp.<id>.env_from_file": "Variables that the command sees, each with the file that holds its value",
    "mcp.<id>.headers_env": "Headers of every request to `url`, each with the name of the variable that holds its value",
    "mcp.<id>.headers_file": "Headers of every request to `url`, each with the file that holds its value",
    "mcp.<id>.approval": "Whether a person is asked before each call. `auto`: not for tools that the server calls read-only",
    "mcp.<id>.start_timeout_seconds": "How long a server may take to start and to list its tools",
    "mcp.<id>.timeout_seconds": "How long a call may take",
    "mcp.<id>.tools.<name>.approval": "As at the server, for one tool. Left out, the server's",
    "mcp.<id>.tools.<name>.idempotent": "Whether a call that a crash interrupted may be made again. Left out, what the server says of the tool",
    "acp.listen": "Where `acp_svc` listens, when not at `services.acp`",
    "acp.worker_name": "Stable name of this worker, unique among services that share a database. Empty: the name of the host",
    "acp.enabled": "Switches harnesses on",
    "acp.permission_mode": "What a harness may do without asking",
    "acp.default_harness": "The harness when none is named",
    "acp.allowed_harnesses": "The harnesses that may be used. Empty means all",
    "acp.workspace_roots": "Directories that harnesses may work in; the doctor checks them",
    "acp.env_names": "Variables of the service that a client may pass on to a harness, which can "
    "read them. Empty means none",
    "acp.max_sessions": "Most sessions with a process; above it the idlest is parked",
    "acp.when_full": "What a run does when no session can be parked: `wait` or `reject`. A spawn "
    "that waits for its answer is always rejected",
    "acp.idle_minutes": "When an idle session is closed",
    "acp.handshake_seconds": "How long a harness has to start and open a session",
    "acp.turn_seconds": "How long one turn may work; waiting for people does not count",
    "acp.quiet_seconds": "How long a harness may work without a word",
    "acp.cancel_seconds": "How long a cancelled turn has before its process is stopped",
    "acp.sandbox": "Whether reading only is enforced from outside: `auto` (where the machine can), "
    "`off` or `require`",
    "acp.permission_timeout_seconds": "How long a person has to answer",
    "acp.harness.<id>.command": "Command and arguments, beside or instead of the built-in ones",
    "acp.harness.<id>.env": "Environment of its process",
    "acp.harness.<id>.env_names": "Variables of the service that its process sees too. Left out "
    "means those that its vendor uses for logging in",
    "acp.harness.<id>.env_from_file": "Variables that its process sees, each with the file that "
    "holds its value, read whenever one starts",
    "acp.harness.<id>.asks": "Its own modes that ask before they act; the first that it offers is set",
    "acp.harness.<id>.skips": "Its own modes that act without asking; it is not used in them unless all is approved",
    "acp.harness.<id>.state": "What it writes of its own, below its home directory; a sandbox lets it",
    "acp.harness.<id>.install": "Command that installs it, shown when it is missing",
    "gateway.http": "Address of HTTP and the console",
    "gateway.grpc": "Address of gRPC for clients",
    "gateway.published": "In a container: the address of the machine at which its ports are published. It decides, instead of the two above, whether tokens are needed",
    "gateway.allowed_origins": "Further web sites whose pages may call the gateway, as `https://host`",
    "gateway.requests_per_minute": "Calls of one token in a minute, streams counted when they open; more are refused with `RATE_LIMITED`. 0 means no limit",
    "gateway.tokens.<name>.token_env": "Environment variable that holds the token",
    "gateway.tokens.<name>.token_file": "File that holds the token, instead of `token_env`",
    "gateway.tokens.<name>.scopes": "What its holder may do; each includes those before it",
    "gateway.tokens.<name>.customer_key": "The customer its holder is: without `admin` it sees nothing of others. Empty means `http:<name>`, and for `admin` whoever each message names",
    "gateway.tokens.<name>.requests_per_minute": "Its own limit, instead of the gateway's",
    "gateway.tls.cert_file": "Certificate, PEM, with the chain behind it. Both HTTP and gRPC then speak TLS only",
    "gateway.tls.key_file": "Its private key, PEM, without a password",
    "gateway.tls.client_ca": "Who must have signed the certificates of clients, PEM. Empty means that clients need none",
    "client.token_env": "Environment variable that holds the token of the command line. `CONVEYOR_TOKEN`, when it is set, counts before",
    "client.token_file": "File that holds it, instead of `token_env`",
    "client.tls": "Whether the gateway is called with TLS. A file below, or `gateway.tls` here, implies it",
    "client.ca_file": "Who signed the gateway's certificate, PEM. Empty means whoever this system trusts",
    "client.cert_file": "Own certificate, PEM, for a gateway that wants one",
    "client.key_file": "Its private key, PEM",
    "client.server_name": "Name in the gateway's certificate, when it is not the one that is dialled",
    "hooks.<name>.secret_env": "Environment variable that holds the secret that calls are signed with; several, one a line, while one replaces another",
    "hooks.<name>.secret_file": "File that holds it, instead of `secret_env`",
    "hooks.<name>.signature": "`standard`: the Standard Webhooks headers. `github`: `X-Hub-Signature-256`",
    "hooks.<name>.tolerance_seconds": "How far the time of a call may be from ours; `github` signs none",
    "hooks.<name>.action": "What a call does: `message` writes to a conversation, `spawn` opens an ACP session with a task, `steer` gives a run or an ACP session a message",
    "hooks.<name>.scopes": "What the hook may do; `spawn`, and to steer a run, needs `control`",
    "hooks.<name>.customer_key": "The customer that it acts for. Empty means `hook:<name>`",
    "hooks.<name>.requests_per_minute": "Its own limit, instead of the gateway's",
    "hooks.<name>.only": "Values of the body, each with those for which the hook does something; other calls are answered and ignored",
    "hooks.<name>.text": "The message",
    "hooks.<name>.agent": "The agent that answers a new conversation. Empty means as the routes say for the channel `hook`",
    "hooks.<name>.session_key": "The conversation. Empty means one of the hook; for `spawn` one that the new session answers, empty for none",
    "hooks.<name>.queue_mode": "What the message does when the conversation is busy; `steer` steers what is at work there",
    "hooks.<name>.harness": "Harness to open a session with. Empty means `acp.default_harness`",
    "hooks.<name>.cwd": "Directory it works in. Empty means the first of `acp.workspace_roots`",
    "hooks.<name>.permission_mode": "What it may do without asking. Empty means `acp.permission_mode`",
    "hooks.<name>.label": "Short name of the session",
    "hooks.<name>.run_id": "The run to steer",
    "hooks.<name>.acp_session_id": "The ACP session to steer",
    "channels.<id>.kind": "Which kind of channel: `web`, `http` and `grpc`; the others *(not yet: refused at start)*",
    "channels.<id>.agent": "The agent that answers there, unless a route names one",
    "channels.<id>.allow_from": "Senders that are known *(not yet)*",
    "channels.<id>.queue_mode": "As at the agents, for this channel",
    "channels.<id>.announce_style": "What a channel that pushes tells of the end of a sub-agent: nothing, a line, or also the beginning of what it said",
    "routes.agent": "The agent that answers",
    "routes.channel": "Matches the channel, as in the session key",
    "routes.account": "Matches the account that was written to, of a channel that pushes and has several",
    "routes.peer": "Matches the peer, as in the session key",
    "telemetry.otlp_endpoint": "OTLP/gRPC collector, for example `http://127.0.0.1:4317`. Empty exports nothing",
    "telemetry.capture_content": "Puts texts of messages into traces",
    "telemetry.sample_ratio": "The part of all flows that is traced, decided once for each",
    "telemetry.continuation": "`parent`: queued work is in the trace of what created it. `link`: it begins a trace of its own that links there",
    "telemetry.ui_url": "Where people see a trace, for example `http://127.0.0.1:16686/trace/{trace_id}`. Empty links nowhere",
    "telemetry.hash_key_file": "File with the secret key of the pseudonyms that stand for people and conversations in traces, metrics and logs. The same for all services; empty uses a public one",
    "telemetry.hash_key_env": "Or the environment variable that has it",
    "metrics.gateway": "Where the gateway answers `GET /metrics` without a token, for Prometheus. Empty: only on its HTTP address",
    "metrics.scheduler": "Where the scheduler answers `GET /metrics`. Empty: nowhere",
    "metrics.agent": "Where `agent_svc` answers `GET /metrics`. Empty: nowhere",
    "metrics.acp": "Where `acp_svc` answers `GET /metrics`. Empty: nowhere",
    "services.scheduler": "Address of `scheduler_svc`. With standbys a list of all of them, or words between commas; needs PostgreSQL",
    "services.agent": "Address of `agent_svc`",
    "services.acp": "Address of `acp_svc`",
    "scheduler.listen": "Where this scheduler listens. Needed when `services.scheduler` names several; best set in the environment of each process",
    "scheduler.advertise": "How others reach this scheduler, if not at its own address: one of `services.scheduler`",
    "agent.listen": "Where `agent_svc` listens, when not at `services.agent`",
    "agent.worker_name": "Stable name of this worker, unique among agent services. Empty: the name of the host",
    "agent.slots": "Turns that this process works on at the same time",
    "log.level": "Least important level that is written. Only `debug` has the texts of exceptions, "
    "which may repeat anything that somebody wrote; the others tell their type, code and place",
    "log.format": "`auto` writes for people on a terminal, else JSON",
}
