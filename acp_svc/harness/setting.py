"""Puts a harness in its modes, models and options, and reads back what came of it."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from acp import RequestError
from pydantic import ValidationError

from acp_svc.domain.modes import Refused, Situation, choose, judge, switched
from acp_svc.harness.peer import AUTH_REQUIRED, Peer

T = TypeVar("T")


class NotSet(Exception):
    """The harness refused a setting, or says afterwards that it has another value."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        """For people; holds nothing that the harness said but its own names."""


async def fit(peer: Peer, situation: Situation, own: str) -> str:
    """Put it in the mode that fits, `own` where that is not empty; return the mode, or empty.

    Raises `NotSet`, `Gone`.
    """
    offers = peer.offers
    chosen = choose(situation, own, offers.mode)
    if isinstance(chosen, Refused):
        raise NotSet(chosen.message)
    if chosen and chosen != offers.mode:
        await set_mode(peer, chosen)
    for name, value in switched(situation, offers.options).items():
        await set_option(peer, name, value)
    refused = judge(situation, chosen, offers.mode)
    if refused is not None:
        raise NotSet(refused.message)
    return chosen


async def set_mode(peer: Peer, mode: str) -> None:
    """Change its mode. Raises `NotSet`, `Gone`."""
    offers = peer.offers
    if offers.mode_option:
        await set_option(peer, offers.mode_option, mode)
    else:
        offers.told = False
        call = peer.conn.set_session_mode(session_id=peer.session_id, mode_id=mode)
        await _ask(peer, call, f"its mode {mode!r}")
        # The answer does not say the mode. A harness that stays in another one tells of that, and
        # then that is what counts; one that tells nothing has kept to the protocol.
        if not offers.told:
            offers.mode = mode
    if offers.mode != mode:
        raise NotSet(f"it was told to go to its mode {mode!r} and is in {offers.mode!r}")


async def set_model(peer: Peer, model: str) -> None:
    """Change its model. Raises `NotSet`, `Gone`."""
    offers = peer.offers
    if offers.model_option:
        await set_option(peer, offers.model_option, model)
    elif offers.models:
        # The way before options, which many still have and the SDK no longer.
        params = {"sessionId": peer.session_id, "modelId": model}
        call = peer.conn._conn.send_request("session/set_model", params)
        await _ask(peer, call, f"model {model!r}")
        offers.model = model
    else:
        raise NotSet("it does not offer a choice of models")
    if offers.model != model:
        raise NotSet(f"it was told to use model {model!r} and uses {offers.model!r}")


async def set_option(peer: Peer, name: str, value: str) -> None:
    """Change an option. Raises `NotSet`, `Gone`."""
    offers = peer.offers
    known = offers.all_options()
    if name not in known:
        raise NotSet(f"it has no option {name!r}; it has: {', '.join(sorted(known)) or 'none'}")
    try:
        meant = offers.value(name, value)
    except ValueError:
        raise NotSet(f"option {name!r} must be 'true' or 'false'") from None
    call = peer.conn.set_config_option(config_id=name, session_id=peer.session_id, value=meant)
    answer = await _ask(peer, call, f"{name} {value!r}")
    if answer is not None:
        offers.configured(answer.config_options)
    now = offers.all_options().get(name)
    if now != value:
        raise NotSet(f"it was told to set {name} to {value!r} and has {now!r}")


async def _ask(peer: Peer, call: Coroutine[Any, Any, T], what: str) -> T | None:
    """Return the answer; None for one that says nothing."""
    try:
        return await peer.ask(call)
    except RequestError as error:
        if error.code == AUTH_REQUIRED:
            raise
        raise NotSet(f"it does not take {what}") from error
    except ValidationError:
        return None
