"""Which harnesses exist for this installation: the registry, changed by the configuration."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from acp_svc.domain.builtin import BUILT_IN
from acp_svc.domain.install import Installer
from acp_svc.domain.modes import Modes
from acp_svc.domain.registry import Harness, guessed_state


class CatalogError(ValueError):
    """The configuration names a harness that cannot exist. The text names the key."""


@dataclass(frozen=True, slots=True)
class Override:
    """What `[acp.harness.<id>]` says. Empty leaves the registry's value."""

    command: Sequence[str] = ()
    """Program and arguments, or one text that is split as a shell does."""
    env: Mapping[str, str] = field(default_factory=dict)
    install: str = ""
    env_names: Sequence[str] | None = None
    """None leaves the registry's, and an empty list takes them away."""
    env_from_file: Mapping[str, str] = field(default_factory=dict)
    asks: Sequence[str] = ()
    skips: Sequence[str] = ()
    state: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Catalog:
    """All harnesses by id, and which of them may be spawned."""

    harnesses: Mapping[str, Harness]
    allowed_ids: frozenset[str]
    default_id: str | None

    @classmethod
    def build(
        cls,
        overrides: Mapping[str, Override],
        *,
        allowed: Sequence[str] = (),
        default: str = "",
        built_in: Mapping[str, Harness] = BUILT_IN,
    ) -> Catalog:
        """Combine registry and configuration. An empty `allowed` allows all.

        Raises `CatalogError` for a harness without a command, or an unknown id in
        `acp.allowed_harnesses` or `acp.default_harness`.
        """
        harnesses = dict(built_in)
        for harness_id, override in overrides.items():
            harnesses[harness_id] = _apply(harness_id, override, harnesses.get(harness_id))
        for harness_id in allowed:
            if harness_id not in harnesses:
                raise CatalogError(
                    f"acp.allowed_harnesses names {harness_id!r}, which is not in the registry; "
                    f"add [acp.harness.{harness_id}] with a command"
                )
        allowed_ids = frozenset(allowed or harnesses)
        if default and default not in allowed_ids:
            raise CatalogError(
                f"acp.default_harness is {default!r}, which is unknown or not in "
                "acp.allowed_harnesses"
            )
        return cls(MappingProxyType(harnesses), allowed_ids, default or None)

    def __iter__(self) -> Iterator[Harness]:
        return iter(self.harnesses.values())

    def usable(self, harness_id: str) -> Harness | None:
        """Return the harness if it is known and allowed. An empty id means the default one."""
        chosen = harness_id or self.default_id
        if not chosen or chosen not in self.allowed_ids:
            return None
        return self.harnesses.get(chosen)

    def to_examine(self) -> tuple[Harness, ...]:
        """Return the default harness, or all allowed ones where there is no default."""
        if self.default_id:
            return (self.harnesses[self.default_id],)
        return tuple(h for h in self if h.harness_id in self.allowed_ids)

    def wanted(self) -> tuple[str, ...]:
        """Return the ids that the configuration names: those have to be installed."""
        named = self.allowed_ids if self.allowed_ids != frozenset(self.harnesses) else frozenset()
        return (*sorted(named), *([self.default_id] if self.default_id else []))


def _apply(harness_id: str, override: Override, base: Harness | None) -> Harness:
    command = tuple(override.command)
    if len(command) == 1:
        try:
            command = tuple(shlex.split(command[0]))
        except ValueError as error:
            raise CatalogError(
                f"acp.harness.{harness_id}.command cannot be split into words; give a list of words"
            ) from error
    if base is None:
        if not command:
            raise CatalogError(
                f"acp.harness.{harness_id}.command is missing: the registry has no such harness"
            )
        base = Harness(
            harness_id,
            harness_id,
            command,
            Installer("text", f"install {command[0]}, or correct acp.harness.{harness_id}.command"),
            "From the configuration.",
            state=guessed_state(harness_id),
        )
    elif command:
        base = replace(base, command=command)
    if override.install:
        base = replace(base, installer=Installer("text", override.install))
    if override.asks or override.skips:
        base = replace(base, modes=Modes(tuple(override.asks), frozenset(override.skips)))
    if override.state:
        base = replace(base, state=tuple(override.state))
    if override.env_names is not None:
        base = replace(base, env_names=tuple(override.env_names))
    if override.env_from_file:
        base = replace(base, env_from_file=MappingProxyType(dict(override.env_from_file)))
    if override.env:
        base = replace(base, env=MappingProxyType({**base.env, **override.env}))
    return base
