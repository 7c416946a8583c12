"""Settings of the demo's own, where a broker's usual ones make a killed process's messages wait longer than a tour
lasts. A URL that sets them itself is left alone.
"""

from __future__ import annotations

from atleastonce.errors import ConfigurationError
from atleastonce.urls import BrokerUrl

# How soon a broker gives a killed process's messages to another. Shorter than these, a busy machine's pauses are taken
# for deaths and messages are handled twice; that costs time, and nothing else.
_SETTINGS = {
    "sqlite": {"lease": "3s"},
    "redis": {"lease": "3s"},
    "pubsub": {"lease": "10s"},
    "sqs": {"lease": "5s", "wait": "2s"},
    "kafka": {"session.timeout.ms": "6000", "heartbeat.interval.ms": "1000"},
}


def tuned(url: str) -> str:
    """``url`` with the demo's settings added to its query.

    Raises:
        ConfigurationError: ``url`` is none, or of a broker that lives in one process.
    """
    parsed = BrokerUrl.parse(url)
    if parsed.scheme == "memory":
        raise ConfigurationError(
            "the demo's processes cannot share memory://; leave --broker away, or give sqlite:///file.db"
        )
    missing = [
        f"{name}={value}" for name, value in _SETTINGS.get(parsed.scheme, {}).items() if name not in parsed.query
    ]
    if not missing:
        return url
    return f"{url}{'&' if '?' in url else '?'}{'&'.join(missing)}"
