"""What became of every message: computed at the end from what was published, the ledgers and the dead letters, never
from the counters of a process, for processes are killed here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec

ENDINGS = ("done", "done_after_retry", "redriven", "discarded", "dead", "lost")
"""From best to worst. A message that several services read is counted once, under the worst of its endings."""


class ServiceAccount(msgspec.Struct, frozen=True):
    """One service's part.

    Attributes:
        name: of the service.
        endings: messages by ending; the sum is the number of messages published.
        suppressed: deliveries of messages that had had their effect already, and so had none.
        dead: ids of the messages in its dead letters.
        lost: ids that are nowhere.
    """

    name: str
    endings: Mapping[str, int]
    suppressed: int
    dead: Collection[str] = ()
    lost: Collection[str] = ()


class Account(msgspec.Struct, frozen=True):
    """The closing account. ``published`` is the sum of the six endings."""

    broker: str
    published: int
    unconfirmed: int
    endings: Mapping[str, int]
    duplicates_suppressed: int
    seconds: float
    services: tuple[ServiceAccount, ...]

    @property
    def lost(self) -> int:
        return self.endings["lost"]

    def report(self) -> dict[str, Any]:
        """The fixed shape of ``demo --json``."""
        order = ("done", "done_after_retry", "redriven", "dead", "discarded")
        return {
            "broker": self.broker,
            "published": self.published,
            "unconfirmed": self.unconfirmed,
            **{name: self.endings[name] for name in order},
            "duplicates_suppressed": self.duplicates_suppressed,
            "lost": self.lost,
            "seconds": round(self.seconds, 1),
        }


def settle_account(
    *,
    broker: str,
    published: Collection[str],
    unconfirmed: int,
    ledgers: Mapping[str, Mapping[str, str]],
    suppressed: Mapping[str, int],
    dead: Mapping[str, Collection[str]],
    seconds: float,
) -> Account:
    """Give every published message its one ending.

    Args:
        broker: the URL, without secrets.
        published: ids that the broker confirmed.
        unconfirmed: messages whose publish ended unknown until the end.
        ledgers: by service, how each message id ended by its ledger.
        suppressed: by service, repetitions without effect.
        dead: by service, the ids in its dead letters. A message that has had its effect is not dead, even if a
            second copy of it lies there.
        seconds: how long it all took.
    """
    rank = {ending: place for place, ending in enumerate(ENDINGS)}
    worst = dict.fromkeys(published, 0)
    services: list[ServiceAccount] = []
    for name, ledger in ledgers.items():
        counts = dict.fromkeys(ENDINGS, 0)
        lost: list[str] = []
        for message_id in worst:
            ending = ledger.get(message_id) or ("dead" if message_id in dead[name] else "lost")
            counts[ending] += 1
            worst[message_id] = max(worst[message_id], rank[ending])
            if ending == "lost":
                lost.append(message_id)
        services.append(ServiceAccount(name, counts, suppressed[name], frozenset(dead[name]), lost))
    endings = dict.fromkeys(ENDINGS, 0)
    for place in worst.values():
        endings[ENDINGS[place]] += 1
    return Account(
        broker=broker,
        published=len(worst),
        unconfirmed=unconfirmed,
        endings=endings,
        duplicates_suppressed=sum(suppressed.values()),
        seconds=seconds,
        services=tuple(services),
    )
