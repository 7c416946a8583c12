"""What is the same for every inbox: which ids to ask for, and what the answers mean."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import msgspec

from atleastonce.errors import ConfigurationError, InvalidMessage, StoreUnavailable
from atleastonce.stores.records import Entry, flaw, span_flaw


class Asked(msgspec.Struct, frozen=True):
    """A checked request: all ids as they came, and each once, sorted so that two transactions wait in one order."""

    ids: Sequence[str]
    fingerprints: Sequence[bytes]
    distinct: dict[str, bytes]

    @classmethod
    def of(cls, scope: str, ids: Sequence[str], fingerprints: Sequence[bytes], ttl: float) -> Asked:
        """Raises InvalidMessage: nothing was asked."""
        if len(ids) != len(fingerprints):
            raise InvalidMessage(f"{len(ids)} ids and {len(fingerprints)} fingerprints; give one for each")
        distinct: dict[str, bytes] = {}
        for id, fingerprint in zip(ids, fingerprints, strict=True):
            if wrong := flaw(scope, id, fingerprint):
                raise InvalidMessage(wrong)
            distinct.setdefault(id, fingerprint)
        if wrong := span_flaw("ttl", ttl):
            raise InvalidMessage(wrong)
        return cls(ids, fingerprints, dict(sorted(distinct.items())))


def finish(asked: Asked, new: Collection[str], known: Mapping[str, bytes]) -> list[Entry]:
    """The answer to each id, where ``new`` were inserted now and ``known`` had these fingerprints.

    Raises:
        ConfigurationError: the database named ids that were not asked for: it was not understood. Nothing is seen that it did
            not say was seen, for what is seen is settled without a run.
        StoreUnavailable: an id was neither inserted nor found. It was purged in between, and will be new the next time; or
            something hides the table's rows, and it must not be taken for a duplicate.
    """
    if strange := {*new, *known} - asked.distinct.keys():
        raise ConfigurationError(
            f"the inbox answered for {min(strange)!r}, which was not asked for; give the store a connection that converts "
            "nothing, and its tables the columns of its schema()"
        )
    entries, left = [], set(new)
    for id, fingerprint in zip(asked.ids, asked.fingerprints, strict=True):
        first = asked.distinct[id] if id in new else known.get(id)
        if first is None:
            raise StoreUnavailable(
                f"the inbox neither took {id!r} nor has it: it was purged at this moment, or a trigger, rule or policy of the "
                "table hides rows"
            )
        if first != fingerprint:
            entries.append(Entry.MISMATCH)
        elif id in left:
            left.discard(id)
            entries.append(Entry.NEW)
        else:
            entries.append(Entry.SEEN)
    return entries
