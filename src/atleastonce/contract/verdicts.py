"""How a delivery ends, as the engine tells the adapter."""

from __future__ import annotations

from typing import TypeAlias

import msgspec


class Ack(msgspec.Struct, frozen=True, tag=True):
    """Done with it: handled, moved with a confirmed copy, or dropped by an explicit decision."""


class Retry(msgspec.Struct, frozen=True, tag=True):
    """Deliver it again to the same source, not before ``delay`` seconds, and count the delivery.

    Only given where `Capabilities.delay` is ``NATIVE`` and its ``limit`` allows ``delay``. The wait holds up no other message
    (except those of its key on a FIFO channel) and survives a restart of consumer and broker.
    """

    delay: float = 0.0


class Reject(msgspec.Struct, frozen=True, tag=True):
    """Never deliver it again; the broker's own dead-letter net takes it.

    Only given where `Capabilities.dead_letter` is ``NATIVE``. The usual dead letter is a confirmed copy and then an `Ack`.
    """

    reason: str = ""


class Release(msgspec.Struct, frozen=True, tag=True):
    """Not started, or not finished by decision: give it back at once, without counting it where the broker can.

    Attributes:
        died: it may have ended its process, and comes again in its place: it stays counted as handed out, as if the process
            had been killed, wherever hand-outs are counted at all.
    """

    died: bool = False


Verdict: TypeAlias = Ack | Retry | Reject | Release

ACK = Ack()
RELEASE = Release()
DIED = Release(died=True)
