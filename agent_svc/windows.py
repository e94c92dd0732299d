"""How much a model can read at once: from the configuration, or from the list that comes with us.

The list is the data of PyPI `genai-prices` (MIT), as of the installed version: nothing is fetched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from svckit.settings_model import ProviderSettings

UNKNOWN = 32_000
"""Tokens that a model is taken for when nobody says: most models that are run at home read as
much, and a larger one only summarises earlier than it would have to."""


class Windows:
    """Knows the context of models, in tokens: what is read and what is written, together."""

    def __init__(self, providers: Mapping[str, ProviderSettings]) -> None:
        self._providers = providers
        self._known: dict[str, int] = {}

    async def known(self, name: str) -> int:
        """The context of a model, by its full name; 0 when it is not known."""
        if name not in self._known:
            provider_id, _, model = name.rpartition(":")
            settings = self._providers.get(provider_id or "demo")
            found = settings.context_tokens if settings is not None else 0
            if not found and provider_id and settings is not None:
                # In a thread: reading the list takes half a second the first time.
                found = await asyncio.to_thread(_listed, model, settings)
            self._known[name] = found
        return self._known[name]

    async def of(self, name: str) -> int:
        """The context of a model, or what it is taken for."""
        return await self.known(name) or UNKNOWN


def _listed(model: str, settings: ProviderSettings) -> int:
    from genai_prices.data_snapshot import get_snapshot

    by_kind = None if settings.base_url else settings.kind
    try:
        _, found = get_snapshot().find_provider_model(
            model, None, by_kind, settings.base_url or None
        )
    except LookupError:
        return 0
    return found.context_window or 0
