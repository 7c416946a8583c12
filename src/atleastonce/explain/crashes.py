"""What a process that dies repeats, for each point at which it can die."""

from __future__ import annotations

from collections.abc import Iterator

from atleastonce.check import leaves
from atleastonce.consumer import Consumer
from atleastonce.contract import Capabilities, Leasing, Level
from atleastonce.durations import readable
from atleastonce.explain.model import Crash, Guard
from atleastonce.patterns.once.options import Inbox


def crashes(consumer: Consumer, capabilities: Capabilities) -> list[Crash]:
    """In the order of a message's way."""
    return list(_Points(consumer, capabilities).all())


class _Points:
    def __init__(self, consumer: Consumer, capabilities: Capabilities) -> None:
        self._consumer = consumer
        self._capabilities = capabilities
        self._again = _again(capabilities)
        # Where the broker counts the attempts, it counts each hand-out.
        counted = capabilities.delay.level is Level.NATIVE and consumer.order is None
        self._cost = " That hand-out has cost one of its attempts." if counted and consumer.failure.delays else ""
        self._repeat = _repeat(consumer)
        # Who cannot ask for a Context cannot publish through it.
        self._outbox = isinstance(consumer.idempotency, Inbox) and consumer.binding.context is not None
        self._together = consumer.transactions

    def all(self) -> Iterator[Crash]:
        yield Crash(
            "before-handler",
            "after it was received, before its handler starts",
            f"Nothing is repeated: it comes again {self._again}.{self._cost}",
            False,
        )
        yield Crash(
            "in-handler",
            "while its handler runs",
            f"It comes again {self._again}. {self._repeat}{self._cost}",
            True,
        )
        yield Crash(
            "before-settle",
            "after its handler has returned, before it is settled",
            f"It comes again {self._again}. {self._repeat}{self._outputs()}{self._cost}",
            True,
        )
        if self._outbox:
            yield Crash(
                "in-relay",
                "while a relay publishes what its handler wrote into the outbox, before the row is removed",
                "It is published again, under the same alo-id, by another relay, or by this one started again, once the lease has "
                "ended. Its handler does not run again.",
                False,
            )
        yield self._hop()
        yield self._dead_letter()
        if self._consumer.dead_letter:
            yield Crash(
                "in-redrive",
                "during a redrive, after a dead letter's copy is confirmed and before the letter is removed",
                f"The copy is delivered, and the letter is still in {self._consumer.home.dead_letter_channel.name}: the next "
                f"redrive sends it again. {self._repeat}",
                True,
            )
        yield self._settled()

    def _outputs(self) -> str:
        """What becomes of what the handler published."""
        if self._consumer.binding.context is None:
            return ""
        if self._outbox:
            return (
                " What it published with ctx.publish are rows of the same transaction: written once if it committed, and not at "
                "all if it did not."
            )
        if self._together:
            return (
                " What the handler publishes with ctx.publish is published once: the transaction of this run was not committed, "
                "and who reads only what is committed sees nothing of it."
            )
        return (
            " What the handler publishes with ctx.publish leaves only after it has returned without an error, before its message "
            "is settled, and may be published twice: name an id derived from the input, so that consumers can tell."
        )

    def _hop(self) -> Crash:
        point, when = "hop-before-settle", "after a failure, when its retry is arranged and it is not settled yet"
        leaving = [wait for wait in self._consumer.failure.delays if leaves(self._consumer, wait, self._capabilities)]
        if not self._consumer.failure.delays:
            return Crash(point, when, "There is no chain, and so no such moment.", False)
        if self._consumer.order is not None:
            return Crash(
                point,
                when,
                f"There is no copy: it waits in its place, in this process alone. It comes again {self._again}, instead of after "
                f"the chain's wait, and its attempts are counted from the first. {self._repeat}",
                True,
            )
        if not leaving:
            return Crash(
                point,
                when,
                "There is no copy: the broker itself delays the message, or was not told to. If not, it comes again "
                f"{self._again}, instead of after the chain's wait. {self._repeat}{self._cost}",
                True,
            )
        channel = self._consumer.home.retry_channel(leaving[0]).name
        if self._together:
            return self._one_step(point, when, f"its copy is in {channel} (say)")
        return Crash(
            point,
            when,
            f"It is in two places: its copy waits (in {channel}, say) and goes on with the next attempt, and the original comes "
            f"again {self._again} and repeats this one. If that fails as well, two copies go through the rest of the chain. "
            f"{self._repeat}",
            True,
        )

    def _dead_letter(self) -> Crash:
        point = "dead-letter-before-settle"
        when = "after it was given up, when its copy in the dead letters is confirmed and it is not settled yet"
        if not self._consumer.dead_letter:
            return Crash(
                point,
                "after it was given up, before it is settled",
                f"There is no copy. It comes again {self._again} and is given up again. {self._repeat}",
                True,
            )
        name = self._consumer.home.dead_letter_channel.name
        if self._together:
            return self._one_step(point, when, f"it is in {name}")
        return Crash(
            point,
            when,
            f"It is in {name}, and comes again {self._again}. {self._repeat} If that fails, {name} has two letters of one "
            "alo-id; if it succeeds, one letter of a message that was handled.",
            True,
        )

    def _one_step(self, point: str, when: str, copied: str) -> Crash:
        return Crash(
            point,
            when,
            f"There is no such moment: the copy and the settlement are one transaction. Either {copied} and the original is "
            f"settled, or there is no copy, and the original comes again {self._again}. {self._repeat}",
            True,
        )

    def _settled(self) -> Crash:
        late = 0.0 if self._together else self._capabilities.settled_within
        then = "Nothing is repeated."
        if late:
            then = f"Nothing is repeated of what was settled more than {readable(late)} before. What was settled since comes "
            then += f"again. {self._repeat}"
        return Crash("after-settle", "after it is settled", then, bool(late))


def _again(capabilities: Capabilities) -> str:
    if capabilities.lease is Leasing.FIXED:
        return f"when its connection is closed or its lease is over, within {readable(capabilities.lease_seconds)}"
    if capabilities.lease is Leasing.EXTENDABLE:
        return f"when its lease is over, within {readable(capabilities.lease_seconds)}"
    return "when the broker has noticed that the process is gone"


def _repeat(consumer: Consumer) -> str:
    guard: object = consumer.idempotency
    if isinstance(guard, Guard):
        return guard.on_repeat()
    if guard is not None:
        return (
            f"Its handler is guarded by idempotency={type(guard).__name__}(...), which decides whether it runs again."
        )
    return "Its handler runs again from the beginning, and does again what it had done."
