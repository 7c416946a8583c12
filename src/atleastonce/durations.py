"""Durations, sizes and rates as people write them: ``"5s"``, ``"64MiB"``, ``"500/s"``.

Inside the library a duration is a ``float`` of seconds, a size an ``int`` of bytes and a rate a ``float`` per second.
"""

from __future__ import annotations

import math
import re
from typing import SupportsFloat, TypeAlias

from atleastonce.errors import ConfigurationError

Duration: TypeAlias = str | int | float
"""Seconds as a number, or text such as ``"200ms"``, ``"5s"``, ``"1m30s"``, ``"2h"``, ``"7d"``."""

Size: TypeAlias = str | int
"""Bytes as a number, or text such as ``"64MiB"``, ``"10kB"``."""

Rate: TypeAlias = str | int | float
"""Per second as a number, or text such as ``"500/s"``, ``"60/m"``."""

_MILLIS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", re.IGNORECASE | re.ASCII)
_RATE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*/\s*(s|m|h|d)")


def _number(value: object, name: str, what: str) -> float:
    """``value`` as a float; a number too large for one is infinite, and so out of every range."""
    if isinstance(value, bool) or not isinstance(value, SupportsFloat):
        raise ConfigurationError(f"{name}: {value!r} is a {type(value).__name__}; write {what}")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def seconds(value: Duration, *, name: str = "duration", minimum: float = 0.0) -> float:
    """Return ``value`` in seconds.

    Raises:
        ConfigurationError: the text is no duration, or the value is below ``minimum``, infinite or not a number.
    """
    if isinstance(value, str):
        text = value.strip()
        parts = _DURATION.findall(text)
        if not parts or "".join(number + unit for number, unit in parts) != text:
            raise ConfigurationError(f'{name}: "{value}" is no duration; write "200ms", "5s", "1m30s", "2h" or "7d"')
        result = sum(float(number) * _MILLIS[unit] for number, unit in parts) / 1000
    else:
        result = _number(value, name, 'seconds as a number, or text like "5s"')
    if not math.isfinite(result) or result < minimum:
        raise ConfigurationError(f"{name}: {value!r} is out of range; it must be at least {minimum:g} seconds")
    return result


def format_duration(value: float) -> str:
    """The shortest exact text of ``value`` seconds in one unit (``5.0`` -> ``"5s"``): it names retry channels.

    Fractions of a millisecond are rounded up: a delay may be longer than asked for, never shorter.
    """
    millis = math.ceil(round(value * 1000, 3))
    for unit in ("d", "h", "m", "s"):
        if millis and millis % _MILLIS[unit] == 0:
            return f"{millis // _MILLIS[unit]}{unit}"
    return f"{millis}ms"


def readable(value: float) -> str:
    """``value`` seconds for people, in at most two units, rounded up: ``"1d1m"``, ``"5m30s"``; `seconds` reads it, too."""
    millis = math.ceil(round(value * 1000, 3))
    while True:
        parts, rest = [], millis
        for name, unit in reversed(_MILLIS.items()):
            count, rest = divmod(rest, unit)
            if count:
                parts.append((f"{count}{name}", unit))
        if len(parts) <= 2:
            return "".join(text for text, _ in parts) or "0ms"
        millis = -(-millis // parts[1][1]) * parts[1][1]


def whole(value: object, *, name: str, low: int = 1, high: int | None = None) -> int:
    """Return ``value`` if it is a whole number from ``low`` to ``high``.

    Raises:
        ConfigurationError: it is not.
    """
    if isinstance(value, int) and not isinstance(value, bool) and low <= value and (high is None or value <= high):
        return value
    bounds = f"from {low} to {high}" if high is not None else f"of at least {low}"
    raise ConfigurationError(f"{name}={value!r} is out of range; give a whole number {bounds}")


def size_in_bytes(value: Size, *, name: str = "size") -> int:
    """Return ``value`` in bytes (``"64MiB"`` -> 67108864).

    Raises:
        ConfigurationError: the text is no size, or the result is not positive.
    """
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        if match is None or match[2].lower() not in _BYTES:
            raise ConfigurationError(f'{name}: "{value}" is no size; write bytes, "512KiB", "64MiB" or "1GB"')
        result = float(match[1]) * _BYTES[match[2].lower()]
    else:
        result = _number(value, name, 'bytes as a number, or text like "64MiB"')
    if not 1 <= result < math.inf:
        raise ConfigurationError(f"{name}: {value!r} is out of range; it must be positive")
    return int(result)


def per_second(value: Rate, *, name: str = "rate") -> float:
    """Return a rate per second (``"500/s"`` -> 500.0, ``"60/m"`` -> 1.0).

    Raises:
        ConfigurationError: the text is no rate, or the rate is not positive.
    """
    if isinstance(value, str):
        match = _RATE.fullmatch(value.strip())
        if match is None:
            raise ConfigurationError(f'{name}: "{value}" is no rate; write "500/s", "60/m" or "1000/h"')
        result = float(match[1]) * 1000 / _MILLIS[match[2]]
    else:
        result = _number(value, name, 'a number per second, or text like "500/s"')
    if not math.isfinite(result) or result <= 0:
        raise ConfigurationError(f"{name}: {value!r} is out of range; it must be positive")
    return result
