"""What a harness offers and is set to: modes, models, options, however it tells of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, TypeAlias

from acp import schema

from acp_svc.harness.types import Update

Option: TypeAlias = schema.SessionConfigOptionSelect | schema.SessionConfigOptionBoolean
MOST = 100
"""Most modes, models and options of each that are taken note of."""
LONGEST = 256
"""Of an id or a value."""


class Offers:
    """The state of one session, as last told."""

    def __init__(self) -> None:
        self.modes: tuple[str, ...] = ()
        self.mode = ""
        self.mode_option = ""
        """The option that holds the mode. Empty when the mode is set as a mode."""
        self.models: tuple[str, ...] = ()
        self.model = ""
        self.model_option = ""
        """The option that holds the model. Empty when it is set as a model, or not at all."""
        self.options: dict[str, str] = {}
        """All others."""
        self.told = False
        """Set when an update tells of the mode. Cleared by whoever wants to know."""
        self._booleans: set[str] = set()

    def all_options(self) -> dict[str, str]:
        """Return all options with their values, those for mode and model among them."""
        found = dict(self.options)
        if self.mode_option:
            found[self.mode_option] = self.mode
        if self.model_option:
            found[self.model_option] = self.model
        return found

    def opened(
        self, modes: schema.SessionModeState | None, options: Sequence[Option] | None
    ) -> None:
        """Take what was said when the session was opened."""
        if modes is not None:
            self.modes = _fitting(mode.id for mode in modes.available_modes)
            self.mode = _fit(modes.current_mode_id)
        if options is not None:
            self.configured(options)

    def old_models(self, models: dict[str, Any] | None) -> None:
        """Take what was said of models in the way that is older than options."""
        if models is None or self.model_option:
            return
        offered = models.get("availableModels")
        current = models.get("currentModelId")
        self.models = _fitting(
            one.get("modelId")
            for one in (offered if isinstance(offered, list) else ())
            if isinstance(one, dict)
        )
        self.model = _fit(current)

    def configured(self, options: Sequence[Option]) -> None:
        """Take the list of options, which is always whole."""
        self.options = {}
        self._booleans = set()
        for option in options[:MOST]:
            if not _fit(option.id):
                continue
            if isinstance(option, schema.SessionConfigOptionBoolean):
                self._booleans.add(option.id)
                self.options[option.id] = "true" if option.current_value else "false"
            elif option.category == "mode":
                self.mode_option = option.id
                self.modes, self.mode = _values(option), _fit(option.current_value)
            elif option.category == "model":
                self.model_option = option.id
                self.models, self.model = _values(option), _fit(option.current_value)
            else:
                self.options[option.id] = _fit(option.current_value)

    def heard(self, update: Update) -> bool:
        """Take what an update says of them; returns whether it said something."""
        if isinstance(update, schema.CurrentModeUpdate):
            self.mode = _fit(update.current_mode_id)
            self.told = True
        elif isinstance(update, schema.ConfigOptionUpdate):
            self.configured(update.config_options)
        else:
            return False
        return True

    def value(self, name: str, text: str) -> str | bool:
        """Return an option's value as the protocol has it. Raises `ValueError`."""
        if name not in self._booleans:
            return text
        if text not in ("true", "false"):
            raise ValueError(text)
        return text == "true"


def _fit(given: object) -> str:
    """Return an id or a value if it can be kept and shown; else empty, for it cannot be cut."""
    fits = isinstance(given, str) and len(given) <= LONGEST and given.isprintable()
    return str(given) if fits else ""


def _fitting(ids: Iterable[object]) -> tuple[str, ...]:
    return tuple(islice(filter(None, map(_fit, ids)), MOST))


def _values(option: schema.SessionConfigOptionSelect) -> tuple[str, ...]:
    return _fitting(_flat(option.options))


def _flat(
    options: Iterable[schema.SessionConfigSelectOption | schema.SessionConfigSelectGroup],
) -> Iterable[str]:
    for one in options:
        if isinstance(one, schema.SessionConfigSelectGroup):
            yield from (inner.value for inner in one.options)
        else:
            yield one.value
