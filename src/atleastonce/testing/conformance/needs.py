"""What cases need: predicates over a broker's capabilities, its optional abilities and what its harness can do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from atleastonce.contract import Adapter, Browses, Capabilities, Counting, Deletes, Leasing, Level, Ordering, Purges
from atleastonce.testing.conformance.harness import Harness

MIB = 1024 * 1024
LARGEST_TRIED = 20 * MIB
"""Limits on the size of a message above this are not tried out: the case would measure the machine's memory."""


@dataclass(frozen=True, slots=True)
class Need:
    """Something a broker may lack. ``name`` completes the sentence "not supported: needs ..."."""

    name: str
    met: Callable[[Harness, Adapter], bool]


def _capability(name: str, test: Callable[[Capabilities], bool]) -> Need:
    return Need(name, lambda _, adapter: test(adapter.capabilities))


NATIVE_DELAY = _capability("redelivery after a delay by the broker itself", lambda c: c.delay.level is Level.NATIVE)
DELAYS = _capability("delays by the broker itself", lambda c: c.delay.level is not Level.NONE)
DELAY_CHANNELS = _capability("delay channels that the broker empties", lambda c: c.delay.level is Level.EMULATED)
PUBLISH_DELAY = _capability("delayed publishing", lambda c: c.publish_delay.level is not Level.NONE)
EXACT_COUNT = _capability("an exact delivery count", lambda c: c.delivery_count is Counting.EXACT)
ANY_COUNT = _capability("a delivery count", lambda c: c.delivery_count is not Counting.NONE)
LEASES = _capability("a lease per message", lambda c: c.lease is Leasing.EXTENDABLE)
SESSIONS = _capability("leases that live as long as the session", lambda c: c.lease is Leasing.SESSION)
ORDER = _capability("some order", lambda c: c.order is not Ordering.NONE)
KEY_ORDER = _capability("order per key across consumers", lambda c: c.order in (Ordering.KEY, Ordering.GROUP))
KEPT_ORDER = _capability(
    "order per key across processes", lambda c: c.order in (Ordering.KEY, Ordering.GROUP) or c.single_active
)
KEY_LOCKS = _capability("keys that the broker locks while one of theirs is out", lambda c: c.order is Ordering.GROUP)
DEAD_LETTER = _capability("a dead-letter net of the broker", lambda c: c.dead_letter is Level.NATIVE)
DEDUPE = _capability("dropping of repeated publishes", lambda c: c.dedupe.level is not Level.NONE)
GROUP_ADDRESSES = _capability("sending to one group alone", lambda c: c.addresses_groups)
BINARY_HEADERS = _capability("binary header values", lambda c: c.binary_headers)
HEADER_COUNT_LIMIT = _capability("a limit on the number of headers", lambda c: c.max_headers is not None)
HEADER_SIZE_LIMIT = _capability("a limit on the size of headers", lambda c: c.max_header_bytes is not None)
SIZE_LIMIT = _capability(
    f"a limit on the size of messages (of at most {LARGEST_TRIED // MIB} MiB, to be tried)",
    lambda c: c.max_message_bytes is not None and c.max_message_bytes <= LARGEST_TRIED,
)

PURGES = Need("purging", lambda _, adapter: isinstance(adapter, Purges))
DELETES = Need("deleting", lambda _, adapter: isinstance(adapter, Deletes))
BROWSES = Need("browsing", lambda _, adapter: isinstance(adapter, Browses))

STORED_WHEN_ANSWERED = Need("settlements that are stored when answered", lambda harness, _: not harness.settle_lag)
SERVICES = Need("an address that services can open", lambda harness, _: bool(harness.url))
OTHER_PROCESSES = Need("a broker that other processes reach", lambda harness, _: harness.other_processes)
RAW_CLIENT = Need("a raw client", lambda harness, _: harness.raw is not None)
OWN_BROKER = Need("a broker process of its own, to be killed", lambda harness, _: harness.killable)
NOBODY_THERE = Need("an address where no broker listens", lambda harness, _: harness.unreachable() is not None)
WRONG_CREDENTIALS = Need("credentials to be refused", lambda harness, _: harness.unauthorised() is not None)
CONFLICTING = Need("settings that can differ", lambda harness, _: harness.conflicting("x") is not None)
