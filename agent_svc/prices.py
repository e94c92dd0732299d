"""What a model call costs: from the configuration, or from the price list that comes with us.

The list is the data of PyPI `genai-prices` (MIT), as of the installed version: nothing is fetched.
It is loaded before the first call of a provider, in a thread, for it takes about half a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from decimal import ROUND_HALF_UP, Decimal

from agent_svc.domain.steps import Usage
from svckit.settings_model import ProviderSettings

MILLION = Decimal(1_000_000)


class Prices:
    """Prices calls of configured providers."""

    def __init__(self, providers: Mapping[str, ProviderSettings]) -> None:
        self._providers = providers
        self._loaded = False

    async def load(self) -> None:
        """Make the list ready, without holding up the event loop."""
        if not self._loaded:
            await asyncio.to_thread(_listed, "gpt-5", ProviderSettings(), Usage(read=1))
            self._loaded = True

    def cost(self, provider_id: str, model: str, usage: Usage) -> int | None:
        """Cost in millionths of a US dollar; `None` when the price is not known.

        The demo models cost nothing. A provider with a `base_url` of its own is known by that
        address only: a local server is not billed like the vendor whose protocol it speaks.
        """
        settings = self._providers.get(provider_id)
        if provider_id == "demo":
            return 0
        if settings is None:
            return None
        if settings.input_price_usd is not None and settings.output_price_usd is not None:
            # Dollars for a million tokens are millionths of a dollar for one.
            read = Decimal(str(settings.input_price_usd)) * usage.read
            return _whole(read + Decimal(str(settings.output_price_usd)) * usage.written)
        return _listed(model, settings, usage)


def _listed(model: str, settings: ProviderSettings, usage: Usage) -> int | None:
    from genai_prices import Usage as Tokens
    from genai_prices import calc_price

    tokens = Tokens(
        input_tokens=usage.read,
        cache_read_tokens=usage.cached,
        cache_write_tokens=usage.stored,
        output_tokens=usage.written,
    )
    try:
        if settings.base_url:
            found = calc_price(tokens, model_ref=model, provider_api_url=settings.base_url)
        else:
            found = calc_price(tokens, model_ref=model, provider_id=settings.kind)
    except (LookupError, ValueError):
        return None
    return _whole(Decimal(found.total_price) * MILLION)


def _whole(micros: Decimal) -> int:
    return int(micros.quantize(Decimal(1), ROUND_HALF_UP))
