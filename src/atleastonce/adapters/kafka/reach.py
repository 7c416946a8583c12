"""Whether a handle still finds its brokers, and whether it ever will.

The client tells when its last broker went away and never when one came back: so it is asked.

And a handle can be lost for good. A broker that starts or is being fenced answers that there are topics and no brokers; the client
then throws away every broker that it knows. It begins anew with its bootstrap servers when its last broker goes down, which is not
noticed of one that has not been up since the last time (librdkafka issue 5301, open as of 2.16; with
``metadata.recovery.strategy=none`` it never begins anew). Nothing tells of it, and nothing but a new handle helps. The proof: a
fresh handle finds a broker, again and again, and this one does not.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from atleastonce.adapters.kafka.config import CLIENT_LOG, Settings

# How often a handle without a broker looks for one, and how long a look may hold up its thread.
PROBE_SECONDS = 1.0
_LOOK_SECONDS = 0.1

# How long it is given to find one by itself before a fresh handle looks, too. Shorter: a connection more for every restart.
_PATIENCE_SECONDS = 4.0

# How many times in a row the fresh one must find a broker where this one, given a second, does not. Fewer: a busy machine is
# taken for a lost handle, and what is in flight is repeated. More: as many seconds more without service.
_PROOFS = 3
_SURE_SECONDS = 1.0

# A fresh handle can be lost in the same way.
_FRESH_SECONDS = 10.0


class Handle(Protocol):
    """A client of any kind."""

    def list_topics(self, topic: str | None = ..., timeout: float = ...) -> Any:
        """The cluster, as some broker sees it."""


class Reach:
    """What one handle reaches. All of it is called on the thread that polls the handle.

    Args:
        handle: in question.
        settings: for another one.
    """

    def __init__(self, handle: Handle, settings: Settings) -> None:
        self.connected = True
        self.lost = False
        """Whether the handle will never find a broker again; it is to be replaced."""
        self._handle = handle
        self._settings = settings
        self._since = 0.0
        self._look_at = 0.0
        self._proofs = 0
        self._other: AdminClient | None = None
        self._other_since = 0.0

    def down(self) -> None:
        """The client says that all brokers are away."""
        if self.connected:
            self.connected = False
            self._since = time.monotonic()
            self._look_at = self._since + _LOOK_SECONDS
            self._proofs = 0

    def up(self) -> None:
        """A broker has answered."""
        self.connected = True
        self._other = None

    def look(self, now: float, topic: str | None) -> bool:
        """Look for a broker, if it is time to; whether one is there.

        Args:
            now: of the monotonic clock.
            topic: what brokers are asked about; None asks for every topic of the cluster.
        """
        if self.connected or now < self._look_at:
            return self.connected
        self._look_at = now + PROBE_SECONDS
        if self.ask(topic, _LOOK_SECONDS):
            self.up()
        elif now < self._since + _PATIENCE_SECONDS or not self._another_finds(topic, now):
            self._proofs = 0
        elif self.ask(topic, _SURE_SECONDS):
            self.up()
        else:
            self._proofs += 1
            self.lost = self._proofs >= _PROOFS
        return self.connected

    def ask(self, topic: str | None, seconds: float) -> bool:
        """Whether a broker answers the handle, and knows a broker to serve it."""
        return _found(self._handle, topic, seconds)

    def _another_finds(self, topic: str | None, now: float) -> bool:
        if self._other is None or now > self._other_since + _FRESH_SECONDS:
            self._other = AdminClient(self._settings.common(), logger=CLIENT_LOG)
            self._other_since = now
        self._other.poll(0)  # where it logs in by a callback
        return _found(self._other, topic, _LOOK_SECONDS)


def _found(handle: Handle, topic: str | None, seconds: float) -> bool:
    try:
        found = handle.list_topics(topic, timeout=seconds) if topic else handle.list_topics(timeout=seconds)
    except KafkaException:
        return False
    return bool(found.brokers)
