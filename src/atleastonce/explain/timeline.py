"""When a message that keeps failing is tried, and where each one ends."""

from __future__ import annotations

from collections.abc import Iterator

from atleastonce.check import in_place, leaves
from atleastonce.consumer import Consumer
from atleastonce.contract import Capabilities, Level
from atleastonce.durations import readable, seconds
from atleastonce.explain.model import Attempt
from atleastonce.patterns.crash_loops import ACCIDENTS
from atleastonce.patterns.failure import room


def attempts(consumer: Consumer, capabilities: Capabilities) -> list[Attempt]:
    """When each attempt begins, if every run fails at once. What runs take comes on top."""
    failure, rooms = consumer.failure, consumer.rooms(capabilities)
    backoff = failure.in_place
    here = 0.0
    if backoff is not None and backoff.max_attempts is not None:
        waits = (backoff.wait(number, lambda: 0.0) for number in range(1, backoff.max_attempts))
        here = sum(wait for wait in waits if wait is not None)
    life = None if failure.give_up_after is None else seconds(failure.give_up_after)
    found, at = [Attempt(1, 0.0, 0.0)], 0.0
    for number, wait in enumerate(failure.delays, 2):
        at += here + wait
        if life is not None and at > life:
            break
        where = ""
        if leaves(consumer, wait, capabilities) and rooms:
            where = consumer.home.retry_channel(room(rooms, wait)).name
        found.append(Attempt(number, at, wait, where))
    return found


def tries(consumer: Consumer) -> str:
    """How often the handler runs in one attempt."""
    number, waits = in_place(consumer)
    if number == 1:
        return "The handler runs once in each attempt."
    least = [wait / (1 + consumer.failure.in_place.jitter) for wait in waits] if consumer.failure.in_place else waits
    shown = ", ".join(readable(wait) for wait in least)
    kept = "the message" if consumer.order is None else "the message, and its key,"
    return (
        f"The handler runs up to {number} times in each attempt, {shown} apart, with {kept} kept from everybody else."
    )


def ends(consumer: Consumer, capabilities: Capabilities) -> Iterator[str]:
    """Where a message ends, for each way to end."""
    failure, home = consumer.failure, consumer.home
    dead = f"is kept in {home.dead_letter_channel.name}" if consumer.dead_letter else "is lost"
    last = len(attempts(consumer, capabilities))
    accidents = consumer.suspected_from(capabilities) - 1
    # A broker that counts hand-outs counts others as well: so many more must be no accidents.
    others = {
        "its retries": capabilities.delay.level is Level.NATIVE and bool(failure.delays),
        "what was given back": capabilities.counts_releases,
    }
    more = " and ".join(name for name, counts in others.items() if counts)
    retried = f", {more} counted in," if accidents > ACCIDENTS and consumer.order is None else ""
    if consumer.answering is not None:
        dead = f"is answered with an error and {dead}" if consumer.dead_letter else "is answered with an error"
        yield "Its asker has stopped waiting before it is its turn: it is settled without a run, and counted as late."
    yield "Handled: it is settled, and gone for this group."
    yield "`raise Discard(...)`: it is settled, and counted as discarded."
    fatal = ", ".join(kind.__name__ for kind in failure.give_up_on)
    yield (
        f"A body that does not decode, `raise DeadLetter(...)`{', or ' + fatal if fatal else ''}: it {dead} at once, without "
        "another attempt."
    )
    yield f"Attempt {last} fails: it {dead}."
    if failure.give_up_after is not None:
        life = readable(seconds(failure.give_up_after))
        yield f"A wait could not end within {life} of the first failure: it {dead} before that wait (stage expired)."
    if failure.timeout is not None:
        limit = readable(seconds(failure.timeout))
        if consumer.binding.is_async:
            yield f"A run takes longer than {limit}: it is cancelled and has failed."
        else:
            yield f"A run takes longer than {limit}: that is logged, and the run goes on; a thread cannot be stopped."
    else:
        yield "A run that never ends keeps its place for good: no timeout= is set."
    yield (
        f"It ends its process: after {accidents} such ends{retried} it runs alone, with nothing else in its process; when it "
        f"has ended {failure.crash_limit} processes that way, it {dead} (stage crash-loop)."
    )
    if consumer.order is not None:
        yield (
            "What runs alone was moved aside: later messages of its key do not wait for it."
            + (
                " Unstarted messages that are given back count as such ends, too."
                if capabilities.counts_releases
                else ""
            )
        )
    if capabilities.dead_letter is Level.NATIVE:
        yield "Beneath all that the broker itself takes away what was handed out too often, should no process live to decide."
    if consumer.order is not None and consumer.order.park:
        yield (
            f"A message of its key before it was given up: it {dead} without a run (stage parked), until that one was redriven and "
            "handled, the channel was resumed by hand, or this process has ended."
        )
    policy = failure.dead_letter
    if policy is not None and (policy.max_consecutive is not None or policy.max_share is not None):
        limits = []
        if policy.max_consecutive is not None:
            limits.append(f"{policy.max_consecutive} in a row")
        if policy.max_share is not None:
            limits.append(f"{policy.max_share:.0%} of the last {policy.over}")
        yield (
            f"More than {' or '.join(limits)} would be dead letters: the source is paused and they are held, until a probe "
            "succeeds or somebody resumes it."
        )


def lost(consumer: Consumer) -> Iterator[str]:
    """What is gone by design."""
    if consumer.answering is not None:
        yield "An answer whose asker is gone is dropped, and counted as unheard. Nobody but its asker is told of a failed request."
    elif not consumer.dead_letter:
        yield (
            "dead_letter=None: whatever is given up (undecodable, refused, failed for the last time, out of time, a crash loop) "
            "is logged as an error, counted as dropped, and gone. Nobody can look at it or send it back."
        )
    yield "What the handler discards is gone: that is its decision."
