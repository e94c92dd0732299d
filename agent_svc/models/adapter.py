"""Between our prompt and pydantic-ai, which only this module and `judging` import, on first use.

Our tool call ids (`turn.step.index`) are written with underscores on the wire, since some providers
take no dots. The ids a provider makes up are dropped here: they may repeat, within a reply too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pydantic_ai import messages as wire
from pydantic_ai.direct import model_request_stream
from pydantic_ai.models import Model as WireModel
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition

from agent_svc.domain.prompt import Answered, Prompt, Said, ToolAnswer
from svckit.usage import believable

MOST_NAME_CHARS = 128
"""Of a model's name as its provider tells it: it stands in spans and events."""
CONNECT_SECONDS = 5.0
# Between two pieces of a reply: the deadlines of a whole one are set with each call.
GOOGLE_SECONDS = 600.0


@dataclass(frozen=True)
class Built:
    """A model that can be asked, and how its connections are closed."""

    model: WireModel
    close: Callable[[], Awaitable[None]]
    # True for providers that keep a prompt only when they are told where it may be cut. The others
    # find the beginnings that they know by themselves.
    marks_cache: bool = False


@dataclass(frozen=True)
class Answer:
    """A whole reply, taken apart."""

    text: str
    calls: tuple[tuple[str, str], ...]
    read: int
    cached: int
    stored: int
    written: int
    finish_reason: str
    # The model that answered, as the provider names it. Empty when it does not say.
    served: str = ""


def build(*, kind: str, provider_id: str, model: str, base_url: str, api_key: str) -> Built:
    """Make the model of a provider. The SDK's own retries are off."""
    if kind == "anthropic":
        from anthropic import AsyncAnthropic
        from pydantic_ai.models.anthropic import AnthropicModel
        from pydantic_ai.providers.anthropic import AnthropicProvider

        claude = AsyncAnthropic(api_key=api_key, base_url=base_url or None, max_retries=0)
        return Built(
            AnthropicModel(model, provider=AnthropicProvider(anthropic_client=claude)),
            claude.close,
            marks_cache=True,
        )
    if kind == "google":
        return _build_google(model, base_url, api_key)
    from openai import AsyncOpenAI
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider
    from pydantic_ai.providers.openai_compatible import OpenAICompatibleProvider

    client = AsyncOpenAI(api_key=api_key, base_url=base_url or None, max_retries=0)
    if base_url:
        compatible = OpenAICompatibleProvider(provider_id, openai_client=client)
        return Built(OpenAIChatModel(model, provider=compatible), client.close)
    own = OpenAIProvider(openai_client=client)
    return Built(OpenAIChatModel(model, provider=own), client.close)


def _build_google(model: str, base_url: str, api_key: str) -> Built:
    import httpx2
    from pydantic_ai.models.google import GoogleModel
    from pydantic_ai.providers.google import GoogleProvider

    # A client of ours, so that it can be closed; without retries, which are off unless asked for.
    web = httpx2.AsyncClient(timeout=httpx2.Timeout(GOOGLE_SECONDS, connect=CONNECT_SECONDS))
    provider = GoogleProvider(api_key=api_key, http_client=web, base_url=base_url or None)
    return Built(GoogleModel(model, provider=provider), web.aclose)


async def stream(
    built: Built,
    prompt: Prompt,
    on_text: Callable[[str], None],
    on_other: Callable[[], None],
    first_token_seconds: float,
    whole_seconds: float,
) -> Answer:
    """Ask, and pass on the text as it comes. `on_other` tells that anything else came."""
    settings = ModelSettings(
        first_event_timeout=first_token_seconds, request_timeout=whole_seconds, max_retries=0
    )
    if built.marks_cache:
        settings["cache"] = True
    if prompt.has_tool(prompt.force_tool):
        settings["tool_choice"] = [prompt.force_tool]
    parameters = ModelRequestParameters(
        function_tools=[
            ToolDefinition(
                name=tool.name,
                description=tool.description,
                parameters_json_schema=dict(tool.parameters),
                # Optional arguments stay optional; strict schemas would make them all required.
                strict=False,
            )
            for tool in prompt.tools
        ]
    )
    async with model_request_stream(
        built.model,
        to_wire(prompt),
        model_settings=settings,
        model_request_parameters=parameters,
        instrument=False,
    ) as events:
        async for event in events:
            text = _clean(_text_of(event))
            if text:
                on_text(text)
            elif isinstance(event, wire.PartStartEvent | wire.PartDeltaEvent):
                on_other()
        response = events.get()
    return _take_apart(response)


def to_wire(prompt: Prompt) -> list[wire.ModelMessage]:
    """Write a prompt in the library's messages."""
    found: list[wire.ModelMessage] = []
    parts: list[wire.ModelRequestPart] = [wire.SystemPromptPart(prompt.system)]
    for message in prompt.messages:
        if isinstance(message, Answered):
            if parts:
                found.append(wire.ModelRequest(parts))
                parts = []
            found.append(_reply(message))
        else:
            parts.append(_request_part(message))
    if parts:
        found.append(wire.ModelRequest(parts))
    return found


def wire_id(call_id: str) -> str:
    """A tool call id that every provider takes."""
    return "call_" + call_id.replace(".", "_")


def _reply(message: Answered) -> wire.ModelResponse:
    parts: list[wire.ModelResponsePart] = []
    if message.text or not message.calls:
        parts.append(wire.TextPart(message.text or "(no text)"))
    parts.extend(
        wire.ToolCallPart(call.name, call.arguments or "{}", wire_id(call.id))
        for call in message.calls
    )
    return wire.ModelResponse(parts)


def _request_part(message: Said | ToolAnswer) -> wire.ModelRequestPart:
    if isinstance(message, ToolAnswer):
        return wire.ToolReturnPart(
            message.tool,
            message.content,
            wire_id(message.call_id),
            outcome="failed" if message.failed else "success",
        )
    if not message.attachments:
        return wire.UserPromptPart(message.text)
    content: list[wire.UserContent] = [message.text] if message.text else []
    for part in message.attachments:
        if part.data:
            content.append(wire.BinaryContent(part.data, media_type=part.media_type))
        else:
            kind = f" ({part.media_type})" if part.media_type else ""
            content.append(f"[attached: {part.uri}{kind}]")
    return wire.UserPromptPart(content)


def _text_of(event: object) -> str:
    if isinstance(event, wire.PartStartEvent) and isinstance(event.part, wire.TextPart):
        return event.part.content
    if isinstance(event, wire.PartDeltaEvent) and isinstance(event.delta, wire.TextPartDelta):
        return event.delta.content_delta
    return ""


def _clean(text: str) -> str:
    """Replace lone halves of surrogate pairs: servers cut emoji in two, and no store takes them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _take_apart(response: wire.ModelResponse) -> Answer:
    texts = [part.content for part in response.parts if isinstance(part, wire.TextPart)]
    calls = [
        # Text that is no JSON is kept as it came: the model is told what is wrong with it.
        (
            part.tool_name,
            _clean(part.args if isinstance(part.args, str) else part.args_as_json_str()),
        )
        for part in response.parts
        if isinstance(part, wire.ToolCallPart)
    ]
    usage = response.usage
    return Answer(
        text=_clean("".join(texts)),
        calls=tuple(calls),
        read=believable(usage.input_tokens),
        cached=believable(usage.cache_read_tokens),
        stored=believable(usage.cache_write_tokens),
        written=believable(usage.output_tokens),
        finish_reason=response.finish_reason or "",
        served=_clean(response.model_name or "")[:MOST_NAME_CHARS],
    )
