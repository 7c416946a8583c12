"""A service's status as Prometheus metrics, for a registry that the application has already.

```python
from prometheus_client import REGISTRY, start_http_server

from atleastonce.observe.prometheus import StatusCollector

REGISTRY.register(StatusCollector(service.status))
start_http_server(9090, addr="127.0.0.1")
```

Everything is read when somebody asks: handlers pay nothing for it. Names and types follow Prometheus' conventions
(https://prometheus.io/docs/practices/naming/): base units, ``_total`` for what only grows. What waits with the broker is not among
them, since asking the broker is not done within a scrape: `atleastonce lag` and KEDA's triggers ask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from atleastonce.errors import ConfigurationError
from atleastonce.runtime import ConsumerStatus

try:
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.exposition import CONTENT_TYPE_LATEST
    from prometheus_client.registry import Collector
except ModuleNotFoundError as missing:
    raise ConfigurationError("metrics need prometheus-client: pip install 'atleastonce[prometheus]'") from missing

_READER = ("source", "handler")

# Each has a series, 1 for the present one and 0 for the others, so that a query on one of them never finds nothing.
_STATES = (
    *("starting", "running", "disconnected", "blocked", "paused", "draining", "stopping", "stopped"),
    *("waiting", "standing by"),  # relays
)

# What a relay counts anew at each look is no counter.
_ROWS = {"waiting": "waiting", "delayed": "delayed", "parked now": "parked"}


class StatusCollector(Collector):
    """Metrics out of what ``service.status()`` says at that moment.

    | metric | type | labels besides ``source`` and ``handler`` |
    |---|---|---|
    | ``atleastonce_messages_total`` | counter | ``event``: received, done, retried, dead and so on, as in `ConsumerStatus` |
    | ``atleastonce_in_flight_messages`` | gauge | |
    | ``atleastonce_in_flight_bytes`` | gauge | |
    | ``atleastonce_state`` | gauge, 1 or 0 | ``state`` |
    | ``atleastonce_outbox_rows`` | gauge, of relays | ``state``: waiting, delayed, parked |
    | ``atleastonce_hot_key_ratio`` | gauge, 0.0 to 1.0 | ``key``; ``of``: messages or time |

    Counters begin at 0 with each start of the service, as counters of a process do.

    Args:
        status: a service's `Service.status`.
        hot_keys: whether keys that stand out are shown by name: five of a consumer at most. Their names are users' data, and each
            makes two series for as long as it stands out.

    Raises:
        ConfigurationError: ``hot_keys`` is neither True nor False.
    """

    def __init__(self, status: Callable[[], Iterable[ConsumerStatus]], *, hot_keys: bool = True) -> None:
        if not isinstance(hot_keys, bool):
            raise ConfigurationError(f"StatusCollector hot_keys={hot_keys!r} must be True or False")
        self._status = status
        self._hot_keys = hot_keys

    def describe(self) -> list[Metric]:
        """The metrics without a value, so that registering asks nothing of a service that has not started."""
        return _Families().all()

    def collect(self) -> list[Metric]:
        """Called by the registry at each scrape, from any thread."""
        families = _Families()
        for reader in self._status():
            families.add(reader, hot_keys=self._hot_keys)
        return families.all()


def exposition(status: Callable[[], Iterable[ConsumerStatus]]) -> tuple[bytes, str]:
    """What a scrape is answered where no registry is: `StatusCollector`'s metrics alone, as text, and its content type."""
    registry = CollectorRegistry()
    registry.register(StatusCollector(status))
    return generate_latest(registry), CONTENT_TYPE_LATEST


class _Families:
    """The metrics of one scrape."""

    def __init__(self) -> None:
        self._messages = CounterMetricFamily(
            "atleastonce_messages", "Messages by what became of them.", labels=(*_READER, "event")
        )
        self._in_flight = GaugeMetricFamily(
            "atleastonce_in_flight_messages", "Messages received and not settled.", labels=_READER
        )
        self._bytes = GaugeMetricFamily("atleastonce_in_flight_bytes", "Their bytes.", labels=_READER)
        self._state = GaugeMetricFamily("atleastonce_state", "1 for the present state.", labels=(*_READER, "state"))
        self._rows = GaugeMetricFamily(
            "atleastonce_outbox_rows", "Rows of an outbox, as its relay counted last.", labels=(*_READER, "state")
        )
        self._hot = GaugeMetricFamily(
            "atleastonce_hot_key_ratio",
            "Share of the messages, or of the time in handlers, of a key that stands out.",
            labels=(*_READER, "key", "of"),
        )

    def add(self, reader: ConsumerStatus, *, hot_keys: bool) -> None:
        labels = (reader.source, reader.handler)
        for event, count in reader.counts.items():
            if (rows := _ROWS.get(event)) is not None:
                self._rows.add_metric((*labels, rows), count)
            else:
                self._messages.add_metric((*labels, event), count)
        self._in_flight.add_metric(labels, reader.in_flight)
        self._bytes.add_metric(labels, reader.bytes)
        for state in dict.fromkeys((*_STATES, reader.state)):
            self._state.add_metric((*labels, state), state == reader.state)
        for hot in reader.hot_keys if hot_keys else ():
            self._hot.add_metric((*labels, hot.key, "messages"), hot.messages)
            self._hot.add_metric((*labels, hot.key, "time"), hot.time)

    def all(self) -> list[Metric]:
        return [self._messages, self._in_flight, self._bytes, self._state, self._rows, self._hot]
