"""How a relay works."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from atleastonce.durations import Duration, seconds, whole

# A lease below this is over before its renewal, at a third of it, has had its round trip on a busy machine.
_SHORTEST_LEASE = 1.0


@dataclass(frozen=True)
class RelayOptions:
    """Of one relay.

    Args:
        batch: messages in one confirmed publish, 1 to 10000. Smaller: round trips show. Larger: more is repeated after a crash.
        poll: how long it waits between two looks at an outbox in which nothing was, at most; the first looks come sooner. Shorter:
            more looks at nothing. Longer: what nobody tells it of waits as long (PostgreSQL tells).
        lease: how long its slots stay its own without being renewed (at a third of it). Shorter: a pause of the process lets
            another relay publish the same rows. Longer: after a crash they wait as long, if another relay is there.
        blocking: what a row that the broker refuses for good does to later rows of its key. False: they go on without it. True:
            they wait until it was redriven or discarded.
        ordered: whether the rows of one key leave one at a time, each confirmed before the next. False: together, which is faster
            where there are few keys; one that the broker did not take at first is then overtaken by later ones of its key.

    Raises:
        ConfigurationError: a value out of range.
    """

    _: KW_ONLY
    batch: int = 500
    poll: Duration = "500ms"
    lease: Duration = "15s"
    blocking: bool = False
    ordered: bool = True

    def __post_init__(self) -> None:
        whole(self.batch, name="batch", high=10_000)
        seconds(self.poll, name="poll", minimum=0.001)
        seconds(self.lease, name="lease", minimum=_SHORTEST_LEASE)
