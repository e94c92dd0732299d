"""`configuration.md`: every key with its default and rule, from the settings model."""

from __future__ import annotations

import inspect
import json
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types as at
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from docgen import NOTE, cell
from docgen.configuration_texts import INTRO, MEANING
from svckit.settings import Settings
from svckit.settings_model import AgentDefaults

_RULES = {at.Ge: "at least", at.Gt: "above", at.Le: "at most", at.Lt: "below"}


def render() -> str:
    """The document. Fails when a key has no meaning, or a meaning no key."""
    sections, seen = [], set()
    for path, table in _tables("", Settings):
        rows = []
        for name, field in table.model_fields.items():
            if _table_of(field.annotation) is not None:
                continue
            if path == "agents.list.<id>" and name in AgentDefaults.model_fields:
                continue  # described once, at the defaults
            key = f"{path}.{name}" if path else name
            seen.add(key)
            rows.append(
                f"| `{name}` | {_default(field)} | {cell(_rule(field))} "
                f"| {cell(MEANING.get(key, ''))} |\n"
            )
        if rows:
            about = inspect.cleandoc(table.__doc__ or "").split("\n\n")[0].partition(": ")[2]
            text = (about[:1].upper() + about[1:]).partition(" Read it through ")[0]
            heading = f"[[{path}]]" if path == "routes" else f"[{path}]"
            sections.append(
                f"\n## `{heading}`\n\n"
                + (f"{text}\n\n" if text else "")
                + "| Key | Default | Allowed | Meaning |\n|---|---|---|---|\n"
                + "".join(rows)
            )
    if wrong := seen ^ set(MEANING):
        raise SystemExit(
            f"scripts/docgen/configuration_texts.py does not fit the settings: {sorted(wrong)}"
        )
    return NOTE + INTRO + "".join(sections)


def _tables(path: str, table: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    if path:
        yield path, table
    for name, field in table.model_fields.items():
        found = _table_of(field.annotation)
        if found is None or (path == "agents.list.<id>" and name in AgentDefaults.model_fields):
            continue
        many, inner = found
        below = f"{path}.{name}" if path else name
        yield from _tables(f"{below}.<{_what(below)}>" if many else below, inner)


def _what(path: str) -> str:
    return {
        "customers": "key",
        "gateway.tokens": "name",
        "hooks": "name",
        "mcp.<id>.tools": "name",
    }.get(path, "id")


def _table_of(annotation: Any) -> tuple[bool, type[BaseModel]] | None:
    """The table behind an annotation, and whether there are many of it by name."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return False, annotation
    if get_origin(annotation) is dict:
        value = get_args(annotation)[1]
        if inspect.isclass(value) and issubclass(value, BaseModel):
            return True, value
    if get_origin(annotation) is tuple:
        value = get_args(annotation)[0]
        if inspect.isclass(value) and issubclass(value, BaseModel):
            return False, value
    return None


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return ""
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"`{json.dumps(value)}`"


def _rule(field: FieldInfo) -> str:
    return _type_rule(field.annotation, field.metadata)


def _type_rule(annotation: Any, metadata: list[Any]) -> str:
    origin = get_origin(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if origin in (Union, types.UnionType):
        inner = [a for a in get_args(annotation) if a is not type(None)]
        return _type_rule(inner[0], metadata)
    if hasattr(annotation, "__metadata__"):
        return _type_rule(annotation.__origin__, [*annotation.__metadata__, *metadata])
    if origin is tuple:
        item = _type_rule(get_args(annotation)[0], [])
        return "list of texts" if item == "text" else f"list of {item}"
    if origin is dict:
        return "table of texts"
    if any("_host_port" in repr(m) for m in metadata):
        return "`host:port`"
    words = {bool: "`true`, `false`", int: "whole number", float: "number", str: "text"}
    rules = [words[annotation]]
    for item in _flat(metadata):
        for kind, word in _RULES.items():
            if isinstance(item, kind):
                value = getattr(item, kind.__name__.lower())
                rules.append(f"{word} {value:,}".replace(",", " "))
        if isinstance(item, at.MaxLen):
            rules.append(f"at most {item.max_length} characters")
    return ", ".join(rules)


def _flat(metadata: list[Any]) -> Iterator[Any]:
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from _flat(item.metadata)
        else:
            yield item
