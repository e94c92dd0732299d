"""Reads how long a provider asks to be left alone, in every form that providers use.

In this order: `retry-after-ms`; `retry-after` as seconds, with or without a fraction, or as a date;
the resets of those limits that have nothing left (OpenAI and Groq: durations such as `6m0s`;
Anthropic: times in RFC 3339); `x-ratelimit-reset` and `ratelimit-reset` as seconds, or as a moment
in seconds or milliseconds since 1970.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Iterator, Mapping
from email.utils import parsedate_tz

LONGEST = 86_400.0
"""A longer wait than a day is a mistake of somebody's clock."""
_MOMENT = 1_000_000_000.0  # in seconds since 1970: no duration is that long
_DURATION = re.compile(r"(?P<count>\d+(?:\.\d+)?)(?P<unit>ms|s|m|h|d)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_RFC3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.\d+)?(?:[Zz]|([+-])(\d\d):?(\d\d))"
)
_RESETS = re.compile(
    r"(?:x-ratelimit-reset-(?P<openai>[a-z-]+)|anthropic-ratelimit-(?P<anthropic>[a-z-]+)-reset)"
)


def seconds(headers: Mapping[str, str], now: float) -> float | None:
    """How long to wait from `now`, in seconds since 1970. `None` when no header says so.

    Names of headers are in lower case.
    """
    for wait in _waits(headers, now):
        if wait is not None and wait <= LONGEST:
            return max(0.0, wait)
    return None


def _waits(headers: Mapping[str, str], now: float) -> Iterator[float | None]:
    milliseconds = _number(headers.get("retry-after-ms", ""))
    yield milliseconds / 1000 if milliseconds is not None else None
    plain = headers.get("retry-after", "")
    yield _number(plain)
    yield _until(_date(plain), now)
    yield max(_spent(headers, now), default=None)
    for name in ("x-ratelimit-reset", "ratelimit-reset"):
        yield _delta_or_moment(_number(headers.get(name, "")), now)


def _spent(headers: Mapping[str, str], now: float) -> Iterator[float]:
    """Resets of the limits that are used up: others come back in their own time."""
    for name, value in headers.items():
        found = _RESETS.fullmatch(name)
        if found is None:
            continue
        left = (
            f"x-ratelimit-remaining-{found['openai']}"
            if found["openai"]
            else f"anthropic-ratelimit-{found['anthropic']}-remaining"
        )
        if _number(headers.get(left, "")) != 0:
            continue
        wait = _duration(value)
        if wait is None:
            wait = _until(_rfc3339(value), now)
        if wait is not None:
            yield wait


def _number(text: str) -> float | None:
    """A number that is not negative, written with digits only."""
    text = text.strip()
    return float(text) if re.fullmatch(r"\d{1,15}(?:\.\d{1,9})?", text) else None


def _duration(text: str) -> float | None:
    text = text.strip()
    if (plain := _number(text)) is not None:
        return plain
    parts = list(_DURATION.finditer(text))
    if not parts or "".join(part.group() for part in parts) != text:
        return None
    return sum(float(part["count"]) * _UNITS[part["unit"]] for part in parts)


def _delta_or_moment(value: float | None, now: float) -> float | None:
    if value is None or value < _MOMENT:
        return value
    return _until(value / 1000 if value > 1000 * _MOMENT else value, now)


def _until(moment: float | None, now: float) -> float | None:
    return None if moment is None else moment - now


def _date(text: str) -> float | None:
    """An HTTP date, in any of its three forms. Without a zone it is UTC."""
    found = parsedate_tz(text)
    if found is None:
        return None
    try:
        return calendar.timegm((*found[:6], 0, 0, 0)) - (found[9] or 0)
    except (ValueError, OverflowError):
        return None


def _rfc3339(text: str) -> float | None:
    found = _RFC3339.fullmatch(text.strip())
    if found is None:
        return None
    year, month, day, hour, minute, second = (int(part) for part in found.groups()[:6])
    offset = 0
    if found[7]:
        offset = (int(found[8]) * 60 + int(found[9])) * (60 if found[7] == "+" else -60)
    try:
        return calendar.timegm((year, month, day, hour, minute, second, 0, 0, 0)) - offset
    except (ValueError, OverflowError):
        return None
