"""What calls cost: the configuration first, then the list, and never a guess."""

from __future__ import annotations

from agent_svc.domain.steps import Usage
from agent_svc.prices import Prices
from svckit.settings_model import ProviderSettings

MILLION = Usage(read=1_000_000, written=1_000_000)


def cost(model: str, usage: Usage = MILLION, provider: str = "p", **settings: object) -> int | None:
    table = ProviderSettings.model_validate(settings)
    return Prices({"p": table}).cost(provider, model, usage)


def test_the_list_knows_models_of_the_vendors() -> None:
    priced = cost("gpt-5", kind="openai")
    assert priced is not None
    assert 1_000_000 < priced < 100_000_000, "some dollars for two million tokens"
    cached = cost("gpt-5", Usage(read=1_000_000, cached=1_000_000, written=1_000_000))
    assert cached is not None
    assert cached < priced
    plain = cost("claude-sonnet-4-5", Usage(read=1_000_000), kind="anthropic")
    stored = cost("claude-sonnet-4-5", Usage(read=1_000_000, stored=1_000_000), kind="anthropic")
    assert plain is not None
    assert stored is not None
    assert stored > plain, "putting a prompt into a cache has its own price"


def test_a_model_that_the_list_does_not_know_has_no_price() -> None:
    assert cost("no-such-model") is None
    assert cost("gpt-5", provider="unknown") is None


def test_a_server_of_ones_own_is_not_billed_like_the_vendor() -> None:
    assert cost("gpt-5", base_url="http://127.0.0.1:8000/v1") is None
    assert cost("gpt-5", base_url="https://api.openai.com/v1") == cost("gpt-5")


def test_prices_of_the_configuration_come_first() -> None:
    usage = Usage(read=3, written=2)
    assert cost("gpt-5", usage, input_price_usd=0.5, output_price_usd=4) == 10
    assert cost("gpt-5", usage, input_price_usd=0, output_price_usd=0) == 0


def test_the_demo_models_cost_nothing() -> None:
    assert cost("demo", provider="demo") == 0
