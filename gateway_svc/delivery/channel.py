"""What a push channel is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from gateway_svc.domain.deliveries import DeliveryKind
from gateway_svc.domain.reply_route import ReplyAddress


@dataclass(frozen=True, slots=True)
class Delivery:
    """One thing to tell one recipient.

    `idempotency_key` is the same for every attempt; a crash while sending may repeat an attempt
    that succeeded. `text` is Markdown.
    """

    address: ReplyAddress
    kind: DeliveryKind
    text: str
    run_id: str
    idempotency_key: str
    attempt: int


class DeliveryFailed(Exception):
    """The channel could not deliver now. It will be asked again, after `retry_after` seconds.

    `problem` is a constant text for operators, without secrets or the peer.
    """

    def __init__(self, problem: str, retry_after: float | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.retry_after = retry_after


class Undeliverable(DeliveryFailed):
    """The channel will never deliver this: the recipient is gone, or refuses the content."""


class Channel(Protocol):
    """A channel that pushes messages to people."""

    @property
    def name(self) -> str:
        """Id in the configuration; `ReplyAddress.channel` of what it delivers."""
        ...

    async def deliver(self, delivery: Delivery) -> None:
        """Hand a delivery over; returns once the other side has it.

        Raises `DeliveryFailed` or `Undeliverable`. Called for one recipient at a time, for several
        recipients side by side.
        """
        ...
