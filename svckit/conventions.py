"""Every name in our traces: of spans, attributes and span events.

Two conventions are followed at once, so that general tracing UIs and those made for models both
show a trace well: the GenAI semantic conventions of OpenTelemetry, and OpenInference. The functions
below give what both call one thing; nobody else writes a name down. Names of our own begin with
`conveyor.`. What metrics are called says `svckit.metrics.definitions`.

Values: names of people and conversations are pseudonyms (`svckit.pseudonyms`), contents are only
there with `telemetry.capture_content`, and a span's name has few values: ids are attributes.
"""

from __future__ import annotations

import json
from asyncio import CancelledError
from collections.abc import Sequence
from typing import TypeAlias

from svckit import pseudonyms
from svckit.errors import ServiceError

Value: TypeAlias = str | bool | int | float | Sequence[str]
Attributes: TypeAlias = dict[str, Value]

TRACER = "conveyor"
"""Instrumentation scope of all spans and metrics."""

# -- Span names -----------------------------------------------------------------------------------

WAIT_SESSION_LANE = "wait session lane"
WAIT_CHILDREN = "wait children"
WAIT_APPROVAL = "wait approval"
WAIT_LIMIT = "wait limit"
WAIT_RETRY = "wait retry"
WAIT_PERMISSION = "wait permission"
RUN_STARTED = "run.started"
RUN_LOST = "run.lost"
RUN_ENDED = "run.ended"


def rpc_span(method: str) -> str:
    """A call (CLIENT), or its service (SERVER): `SchedulerService/EnqueueRuns`.

    Without the package, which `rpc.method` tells: a tree of calls has no room for it.
    """
    return method.rpartition(".")[2]


def enqueue_span(queue: str) -> str:
    """A run was accepted (PRODUCER, scheduler)."""
    return f"enqueue {queue}"


def wait_global_lane_span(lane: str) -> str:
    """A run waited for a slot (scheduler)."""
    return f"wait global lane {lane}"


def run_span(queue: str) -> str:
    """A turn of a run (CONSUMER, worker)."""
    return f"run {queue}"


def announce_span(lane: str) -> str:
    """The end of a child was told to its parent (PRODUCER, scheduler). `lane`: the parent's."""
    return f"announce {lane}"


def agent_span(name: str) -> str:
    """An agent or a harness at work (INTERNAL, or CLIENT when it is another process)."""
    return f"invoke_agent {name}"


def chat_span(model: str) -> str:
    """A model call (CLIENT)."""
    return f"chat {model}"


def tool_span(name: str) -> str:
    """A tool at work (INTERNAL)."""
    return f"execute_tool {name}"


def open_span(harness: str) -> str:
    """A session of a harness is made ready (INTERNAL)."""
    return f"open {harness}"


def accept_span() -> str:
    """A message was taken in (INTERNAL, gateway). Linked to the message before it."""
    return "accept message"


def hook_span(name: str) -> str:
    """A signed call from outside was taken in (INTERNAL, gateway)."""
    return f"hook {name}"


def command_span(name: str) -> str:
    """A command of a conversation, such as `/stop` (INTERNAL, gateway)."""
    return f"command {name}"


def deliver_span(channel_kind: str) -> str:
    """A message was given to a channel (PRODUCER, gateway)."""
    return f"deliver {channel_kind}"


# -- Attributes: general conventions --------------------------------------------------------------

SERVICE_NAME = "service.name"
SERVICE_NAMESPACE = "service.namespace"
SERVICE_INSTANCE_ID = "service.instance.id"
SERVICE_VERSION = "service.version"
ERROR_TYPE = "error.type"
# An event of this name; never with `exception.message`, which may hold anything.
EXCEPTION = "exception"
EXCEPTION_TYPE = "exception.type"
EXCEPTION_STACKTRACE = "exception.stacktrace"
RPC_SYSTEM = "rpc.system"
RPC_METHOD = "rpc.method"
RPC_STATUS_CODE = "rpc.response.status_code"
HTTP_REQUEST_METHOD = "http.request.method"
HTTP_ROUTE = "http.route"
URL_SCHEME = "url.scheme"
HTTP_STATUS_CODE = "http.response.status_code"
PEER_SERVICE = "peer.service"

# -- Attributes: GenAI ----------------------------------------------------------------------------

GEN_AI_OPERATION_NAME = "gen_ai.operation.name"
GEN_AI_CONVERSATION_ID = "gen_ai.conversation.id"
GEN_AI_PROVIDER_NAME = "gen_ai.provider.name"
GEN_AI_AGENT_NAME = "gen_ai.agent.name"
GEN_AI_REQUEST_MODEL = "gen_ai.request.model"
GEN_AI_RESPONSE_MODEL = "gen_ai.response.model"
GEN_AI_FINISH_REASONS = "gen_ai.response.finish_reasons"
GEN_AI_INPUT_TOKENS = "gen_ai.usage.input_tokens"
GEN_AI_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
GEN_AI_CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
GEN_AI_CACHE_STORED_TOKENS = "gen_ai.usage.cache_creation.input_tokens"
GEN_AI_STREAM = "gen_ai.request.stream"
GEN_AI_TOOL_NAME = "gen_ai.tool.name"
GEN_AI_TOOL_CALL_ID = "gen_ai.tool.call.id"
GEN_AI_TOOL_TYPE = "gen_ai.tool.type"
# Contents: only with `telemetry.capture_content`.
GEN_AI_INPUT_MESSAGES = "gen_ai.input.messages"
GEN_AI_OUTPUT_MESSAGES = "gen_ai.output.messages"
GEN_AI_SYSTEM_INSTRUCTIONS = "gen_ai.system_instructions"
GEN_AI_TOOL_ARGUMENTS = "gen_ai.tool.call.arguments"
GEN_AI_TOOL_RESULT = "gen_ai.tool.call.result"

# -- Attributes: OpenInference --------------------------------------------------------------------

OPENINFERENCE_SPAN_KIND = "openinference.span.kind"
AGENT, LLM, TOOL, CHAIN = "AGENT", "LLM", "TOOL", "CHAIN"
SESSION_ID = "session.id"
AGENT_NAME = "agent.name"
LLM_MODEL_NAME = "llm.model_name"
LLM_PROVIDER = "llm.provider"
LLM_SYSTEM = "llm.system"
LLM_FINISH_REASON = "llm.finish_reason"
LLM_PROMPT_TOKENS = "llm.token_count.prompt"
LLM_COMPLETION_TOKENS = "llm.token_count.completion"
LLM_TOTAL_TOKENS = "llm.token_count.total"
LLM_CACHED_TOKENS = "llm.token_count.prompt_details.cache_read"
LLM_CACHE_STORED_TOKENS = "llm.token_count.prompt_details.cache_write"
LLM_COST_USD = "llm.cost.total"
TOOL_NAME = "tool.name"
TOOL_ID = "tool.id"
# Contents: only with `telemetry.capture_content`.
INPUT_VALUE = "input.value"
INPUT_MIME_TYPE = "input.mime_type"
OUTPUT_VALUE = "output.value"
OUTPUT_MIME_TYPE = "output.mime_type"
MIME_JSON = "application/json"
MIME_TEXT = "text/plain"

PROVIDERS = {"openai": "openai", "anthropic": "anthropic", "google": "gcp.gemini"}
"""Kinds of providers in the configuration, as GenAI calls them."""
_VENDORS = {"gcp.gemini": "google"}
"""The same in OpenInference, where that differs."""
UNEXPECTED = "unexpected"
"""The error type of what is a fault of ours. Its text stays in our logs."""
OTHER = "other"
"""The error type of a reason that is not one of the contract."""
UNKNOWN_TOOL = "unknown"
"""Stands for every tool that is not there: its name is what a model wrote."""

# -- Attributes: our own --------------------------------------------------------------------------

SPAN_KIND = "conveyor.span_kind"
"""The kind of the span, and below its links, for UIs that keep neither."""
LINKS = "conveyor.links"
"""Links as `trace id:span id`."""
LINKS_LEFT_OUT = "conveyor.links.left_out"

RUN_ID = "conveyor.run.id"
PARENT_RUN_ID = "conveyor.run.parent_id"
FLOW_ID = "conveyor.flow.id"
QUEUE = "conveyor.queue"
LANE = "conveyor.lane"
DEPTH = "conveyor.depth"
TURN = "conveyor.turn"
ATTEMPT = "conveyor.attempt"
WORKER = "conveyor.worker"
CUSTOMER = "conveyor.customer"
OUTCOME = "conveyor.outcome"
"""How a turn ended: complete, suspend, fail or release."""
RESUME_REASON = "conveyor.resume_reason"
CAUSE = "conveyor.cause"
REQUEST_ID = "conveyor.request_id"
"""The id that an unexpected error was answered with, as in the logs."""

WAIT_POSITION = "conveyor.wait.position"
"""Its place in line when it was accepted, from 1; unset when it did not wait."""
WAIT_ESTIMATE = "conveyor.wait.estimate_seconds"
"""How long it was told to wait, all in all, when it was accepted."""
WAIT_ESTIMATE_ERROR = "conveyor.wait.estimate_error_seconds"
"""How much longer than that it took; negative when it was shorter."""
WAIT_LIMIT_NAME = "conveyor.wait.limit"
WAIT_CHILDREN_COUNT = "conveyor.wait.children"
WAIT_QUESTIONS_COUNT = "conveyor.wait.questions"

CHILD_STATE = "conveyor.child.state"
CHILD_RUN_ID = "conveyor.child.run_id"
LIVE_SIBLINGS = "conveyor.child.live_siblings"

WAITS_FOR = "conveyor.waits_for"
"""What a turn that was suspended waits for: children, approval or limit."""
TOOL_CALLS = "conveyor.tool.calls"
"""How many calls of a reply a tool span stands for."""
TOOL_CALLS_FAILED = "conveyor.tool.calls_failed"
TOOL_CALL_IDS = "conveyor.tool.call_ids"
"""The ids of the calls, where a tool span stands for several."""
TOOLS_LEFT_OUT = "conveyor.tools.left_out"
"""How many tools of a turn have no span, because there are so many."""
CHILDREN_STARTED = "conveyor.children.started"
STEP = "conveyor.step"
MODEL_CALL = "conveyor.model.call"
"""Which call of the turn: the number of the step that its reply becomes, for example."""
MODEL_PROVIDER_ID = "conveyor.model.provider_id"
"""The provider's table in the configuration."""
MODEL_ATTEMPT = "conveyor.model.attempt"
"""How often the model was called."""
MODEL_FALLBACK = "conveyor.model.fallback"
RETRY_REASON = "conveyor.model.retry_reason"
RETRY_AFTER = "conveyor.model.retry_after_seconds"
YIELDED = "conveyor.yielded"
PROBE_PROMPT = "conveyor.probe.prompt"

GUARD_TRIGGER = "conveyor.guard.trigger"
GUARD_STEP = "conveyor.guard.step"
GUARD_MODEL = "conveyor.guard.model"
GUARD_RESOLVED = "conveyor.guard.resolved"

STEERED_INPUTS = "conveyor.steered.inputs"
STEERED_FROM = "conveyor.steered.from"
"""Trace ids of those who sent it."""
COMPACTED_EXCHANGES = "conveyor.compacted.exchanges"
QUESTION_ID = "conveyor.question.id"
QUESTION_KIND = "conveyor.question.kind"
QUESTION_OUTCOME = "conveyor.question.outcome"

ACP_SESSION_ID = "conveyor.acp.session.id"
ACP_HARNESS = "conveyor.acp.harness"
ACP_PERMISSION_MODE = "conveyor.acp.permission_mode"
ACP_PERMISSION_ALLOWED = "conveyor.acp.permission.allowed"
ACP_PERMISSION_RULE = "conveyor.acp.permission.rule"
ACP_STOP_REASON = "conveyor.acp.stop_reason"

CHANNEL_KIND = "conveyor.channel.kind"
CHANNEL = "conveyor.channel"
COMMAND = "conveyor.command"
HOOK = "conveyor.hook"
RECIPIENT = "conveyor.recipient"
ACCEPT_OUTCOME = "conveyor.accept.outcome"
"""What came of a message: queued, steered, collected ... as the contract names it."""
DEDUPLICATED = "conveyor.accept.deduplicated"
HOOK_ACTION = "conveyor.hook.action"
DELIVERY_KIND = "conveyor.delivery.kind"
DELIVERY_WAITED = "conveyor.delivery.waited_seconds"
DELIVERED, POSTPONED, GIVEN_UP = "delivered", "postponed", "given_up"
DELIVERY_ATTEMPT = "conveyor.delivery.attempt"
DELIVERY_OUTCOME = "conveyor.delivery.outcome"

# -- Events on spans ------------------------------------------------------------------------------

EVENT_GUARD = "delegation guard"
EVENT_LIMIT = "waits for a limit"
EVENT_STEERED = "steered"
EVENT_QUESTION = "question asked"
EVENT_ANSWER = "question answered"
EVENT_YIELD = "yields"
EVENT_MODEL_FAILED = "model call failed"
EVENT_NOT_RUN = "tool not run"
EVENT_COMPACTED = "conversation summarised"
EVENT_PERMISSION = "permission decided"

# -- What both conventions call one thing ---------------------------------------------------------


def conversation(session_key: str) -> Attributes:
    """Which conversation a span belongs to; nothing when it belongs to none."""
    if not session_key:
        return {}
    pseudonym = pseudonyms.of(session_key)
    return {GEN_AI_CONVERSATION_ID: pseudonym, SESSION_ID: pseudonym}


def agent_turn(name: str, session_key: str) -> Attributes:
    """An agent or a harness at work on a turn."""
    return {
        GEN_AI_OPERATION_NAME: "invoke_agent",
        OPENINFERENCE_SPAN_KIND: AGENT,
        GEN_AI_AGENT_NAME: name,
        AGENT_NAME: name,
        **conversation(session_key),
    }


def model(name: str, provider: str) -> Attributes:
    """The model that is asked for, by its name at its provider, which is one of `PROVIDERS`."""
    return {GEN_AI_REQUEST_MODEL: name, GEN_AI_PROVIDER_NAME: provider}


def model_call(name: str, provider: str) -> Attributes:
    """A model is asked. See `model`."""
    vendor = _VENDORS.get(provider, provider)
    return {
        GEN_AI_OPERATION_NAME: "chat",
        OPENINFERENCE_SPAN_KIND: LLM,
        **model(name, provider),
        GEN_AI_STREAM: True,
        LLM_MODEL_NAME: name,
        LLM_PROVIDER: vendor,
        LLM_SYSTEM: vendor,
    }


def used(*, read: int, written: int, cached: int = 0, stored: int = 0) -> Attributes:
    """Tokens that were read, cached ones included, and written."""
    found: Attributes = {
        GEN_AI_INPUT_TOKENS: read,
        LLM_PROMPT_TOKENS: read,
        GEN_AI_OUTPUT_TOKENS: written,
        LLM_COMPLETION_TOKENS: written,
        LLM_TOTAL_TOKENS: read + written,
    }
    if cached:
        found[GEN_AI_CACHED_TOKENS] = found[LLM_CACHED_TOKENS] = cached
    if stored:
        found[GEN_AI_CACHE_STORED_TOKENS] = found[LLM_CACHE_STORED_TOKENS] = stored
    return found


def model_answered(
    name: str, *, read: int, written: int, cached: int = 0, stored: int = 0, finish_reason: str
) -> Attributes:
    """A model answered: which one, why it stopped, and what it used."""
    return {
        GEN_AI_RESPONSE_MODEL: name,
        LLM_MODEL_NAME: name,
        GEN_AI_FINISH_REASONS: [finish_reason],
        LLM_FINISH_REASON: finish_reason,
        **used(read=read, written=written, cached=cached, stored=stored),
    }


def tool_call(name: str, call_ids: Sequence[str]) -> Attributes:
    """A tool at work, for one call or for several that go together."""
    return {
        GEN_AI_OPERATION_NAME: "execute_tool",
        OPENINFERENCE_SPAN_KIND: TOOL,
        GEN_AI_TOOL_TYPE: "function",
        **tool_name(name),
        **call_id(call_ids),
    }


def tool_name(name: str) -> Attributes:
    """Which tool, or of what kind."""
    return {GEN_AI_TOOL_NAME: name, TOOL_NAME: name}


def call_id(call_ids: Sequence[str]) -> Attributes:
    """Which call of a tool, or which ones."""
    if len(call_ids) == 1:
        return {GEN_AI_TOOL_CALL_ID: call_ids[0], TOOL_ID: call_ids[0]}
    return {TOOL_CALLS: len(call_ids), TOOL_CALL_IDS: list(call_ids)}


def error_type(error: BaseException) -> str:
    """What a failure is called: its reason where it has one, never its text."""
    if isinstance(error, ServiceError):
        return error.reason
    if isinstance(error, CancelledError):
        return "cancelled"
    return "timeout" if isinstance(error, TimeoutError) else UNEXPECTED


# Contents: only with `telemetry.capture_content`.


def asked(messages: str, text: str) -> Attributes:
    """What was said to a model or an agent: as messages (JSON), and as a person reads it."""
    return {GEN_AI_INPUT_MESSAGES: messages, INPUT_VALUE: text, INPUT_MIME_TYPE: _mime(text)}


def answered(messages: str, text: str) -> Attributes:
    """What a model or an agent said. See `asked`."""
    return {GEN_AI_OUTPUT_MESSAGES: messages, OUTPUT_VALUE: text, OUTPUT_MIME_TYPE: _mime(text)}


def instructions(text: str) -> Attributes:
    """What a model is told to be."""
    parts = [{"type": "text", "content": text}]
    return {GEN_AI_SYSTEM_INSTRUCTIONS: json.dumps(parts, ensure_ascii=False)}


def tool_arguments(text: str) -> Attributes:
    """What a tool is called with."""
    return {GEN_AI_TOOL_ARGUMENTS: text, INPUT_VALUE: text, INPUT_MIME_TYPE: _mime(text)}


def tool_result(text: str) -> Attributes:
    """What a tool returned."""
    return {GEN_AI_TOOL_RESULT: text, OUTPUT_VALUE: text, OUTPUT_MIME_TYPE: _mime(text)}


def _mime(text: str) -> str:
    try:
        json.loads(text)
    except (ValueError, RecursionError):  # of brackets without end, say
        return MIME_TEXT
    return MIME_JSON
