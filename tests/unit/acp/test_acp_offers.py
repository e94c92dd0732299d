"""What is taken note of among what a harness offers."""

from __future__ import annotations

import pytest
from acp import schema

from acp_svc.harness.offers import LONGEST, MOST, Offers


def modes(current: str, *offered: str) -> schema.SessionModeState:
    return schema.SessionModeState(
        current_mode_id=current,
        available_modes=[schema.SessionMode(id=one, name=one) for one in offered],
    )


@pytest.mark.parametrize("odd", ["x" * (LONGEST + 1), "half \ud800", "zero \0", "two\nlines", ""])
def test_what_cannot_be_kept_or_shown_is_not_offered(odd: str) -> None:
    offers = Offers()
    offers.opened(modes(odd, "ask", odd, "plan"), None)
    assert (offers.modes, offers.mode) == (("ask", "plan"), "")
    offers.old_models(
        {"availableModels": [{"modelId": odd}, {"modelId": 7}, 7], "currentModelId": odd}
    )
    assert (offers.models, offers.model) == ((), "")
    option = schema.SessionConfigOptionSelect(
        id="effort", name="Effort", type="select", current_value=odd, options=[]
    )
    offers.configured([option, option.model_copy(update={"id": odd})])
    assert offers.all_options() == {"effort": ""}


def test_of_thousands_the_first_are_offered() -> None:
    offers = Offers()
    offers.opened(modes("m0", *(f"m{number}" for number in range(5000))), None)
    assert (len(offers.modes), offers.mode) == (MOST, "m0")
