"""The guarantee itself, who gets a message, and in what order."""

from __future__ import annotations

from collections.abc import Iterator

from atleastonce.channels import Topic
from atleastonce.check import leaves, wants_order
from atleastonce.consumer import Consumer
from atleastonce.contract import Capabilities, Leasing, Ordering
from atleastonce.durations import readable
from atleastonce.parts import pieces
from atleastonce.patterns.ordering import Ordered


def delivery(consumer: Consumer, capabilities: Capabilities) -> Iterator[str]:
    """How often, and why more than once."""
    yield (
        "At least once: a message is settled after its handler has returned, never before. So the handler may run more than "
        "once for one message, and its effects must bear that."
    )
    if consumer.answering is not None and not capabilities.keeps_requests:
        yield (
            "Requests are the exception: unless their channel asks for it, this broker keeps them nowhere. One that is on its way "
            "when the process dies is lost, and its asker's time runs out."
        )
    if capabilities.lease is Leasing.EXTENDABLE:
        limit = capabilities.lease_limit
        most = f", for {readable(limit)} at most" if limit is not None else ""
        yield (
            f"A message stays with its worker for {readable(capabilities.lease_seconds)}, renewed as long as the handler "
            f"runs{most}. If the process stands still for longer than that, another worker gets the message while this one may "
            "go on: for a moment two handle it."
        )
    elif capabilities.lease is Leasing.FIXED:
        yield (
            f"A message stays with its worker for {readable(capabilities.lease_seconds)}, which nothing prolongs. While its "
            "handler runs for longer than that, another worker gets the message: two handle it, and how the first one's run ends "
            "is not recorded."
        )
    elif capabilities.lease is Leasing.SESSION:
        limit = capabilities.lease_limit
        most = f", and for {readable(limit)} at most unless the server allows more" if limit is not None else ""
        yield (
            f"A message stays with its worker as long as the session with the broker lives{most}. If the session is lost while the "
            "handler runs, another worker gets the message while this one may go on: for a moment two handle it."
        )
    if consumer.transactions:
        yield (
            "What the handler publishes with ctx.publish, the retry or dead letter of its message, and the message's settlement "
            "are one transaction of the broker: exactly once for who reads only what is committed. Other effects of the handler "
            "are not part of it, and are repeated when it runs again."
        )
    elif capabilities.settled_within:
        yield (
            f"What was settled is recorded within {readable(capabilities.settled_within)}: a crash repeats what was settled since."
        )
    bound = f"{consumer.window.messages} messages at most are received and unsettled in one process"
    yield f"{bound}: so many may come again after a crash. {_runs(consumer)}"
    if capabilities.dedupe.limit:
        yield (
            f"The broker drops a second publish of one message id within {readable(capabilities.dedupe.limit)}; what a producer "
            "repeats later is delivered twice."
        )
    else:
        yield "What a producer publishes twice is delivered twice: the broker does not compare message ids."


def _runs(consumer: Consumer) -> str:
    if consumer.batching is not None:
        return (
            f"{consumer.concurrency} batches of up to {consumer.batching.max_messages} are handled at once. If the handler of "
            "a batch raises, its messages run one by one: those that were good run again."
        )
    return f"{consumer.concurrency} {'is' if consumer.concurrency == 1 else 'are'} handled at once."


def recipients(consumer: Consumer) -> Iterator[str]:
    """Who gets it."""
    home = consumer.home
    if isinstance(home.channel, Topic):
        yield (
            f"Every group of topic {home.channel.name} gets each message; the processes of group {home.group_name} share "
            "theirs, and one of them gets it at a time."
        )
        yield f"Retries, dead letters and redriven messages go to group {home.group_name} alone."
    else:
        yield f"The processes that read queue {home.channel.name} share its messages; one of them gets each at a time."


def order(consumer: Consumer, capabilities: Capabilities) -> Iterator[str]:
    """What order there is."""
    if consumer.order is not None:
        yield from _kept(consumer, consumer.order, capabilities)
        return
    asked, kept = wants_order(consumer), capabilities.order
    several = consumer.concurrency > 1 or consumer.batching is not None
    if kept is Ordering.NONE or (kept is Ordering.GROUP and not asked):
        hint = "" if kept is Ordering.NONE else " (the channel asks for none; fifo=True would)"
        yield f"None: messages may be handled in any order{hint}."
        return
    unit = "key" if kept is not Ordering.STREAM else "queue"
    yield f"The broker hands out the messages of one {unit} in order" + (
        ", as long as one process reads it." if kept is Ordering.STREAM else ", to whichever process."
    )
    if several:
        yield (
            f"{consumer.concurrency} handlers run at once in each process, so that messages which are handed out together may be "
            "handled, and end, in any order; ordered=True keeps those of one key in line."
        )
    else:
        yield "One handler runs at a time in each process: what is handed out in order is handled in order."
    out = [wait for wait in consumer.failure.delays if leaves(consumer, wait, capabilities)]
    if out or (consumer.failure.delays and not asked):
        yield "A message that failed and waits is overtaken by those behind it, and comes back behind them."
    elif consumer.failure.delays:
        yield "A message that failed and waits holds up the later ones of its key, and no others."
    yield "A message that is redelivered after a crash, or redriven, comes later than it was published."


def _kept(consumer: Consumer, order: Ordered, capabilities: Capabilities) -> Iterator[str]:
    """What ``ordered=`` promises, and what it does not."""
    yield (
        f"Messages of one {_key(order)} run one at a time, in the order in which the broker keeps them; "
        f"{_in_parallel(consumer, capabilities)}"
    )
    if consumer.batching is not None:
        yield "A batch has one message of each key: the next one of a key comes in a later batch."
    yield _across(consumer, order, capabilities)
    yield "A message without a key is in line with no other. One whose key cannot be read is a dead letter (stage key)."
    if consumer.failure.delays:
        yield (
            "A message that failed waits in its place, and later messages of its key wait behind it; other keys run on. All of "
            f"them count in the window: with {consumer.window.messages} messages waiting, nothing is received."
        )
    if consumer.dead_letter and order.park:
        yield "When a message is given up, later messages of its key follow it into the dead letters, in their order."
    else:
        yield "When a message is given up, its key goes on without it."
    yield (
        "A message that comes again after a crash or a lost session may come after later ones of its key have been handled, and is "
        "then a repeat. A message that is redriven comes later than it was published, and may run beside a later one of its key."
    )


def _parts(consumer: Consumer, capabilities: Capabilities) -> int:
    return len(pieces(consumer.home)) if capabilities.parts else 1


def _in_parallel(consumer: Consumer, capabilities: Capabilities) -> str:
    if not capabilities.single_file:
        return f"up to {consumer.concurrency} keys run in parallel in each process."
    if (parts := _parts(consumer, capabilities)) > 1:
        return f"up to {parts} keys run in parallel, over all processes: this broker has one message of each part out at a time."
    return "keys do not run in parallel either: this broker has one message of such a channel out at a time."


def _key(order: Ordered) -> str:
    if order.by is None:
        return "message key"
    if callable(order.by):
        return "key (by a function of the payload)"
    return order.by if isinstance(order.by, str) else " and ".join(order.by)


def _across(consumer: Consumer, order: Ordered, capabilities: Capabilities) -> str:
    """How far it holds."""
    if capabilities.order is Ordering.STREAM and (parts := _parts(consumer, capabilities)) > 1:
        first, last = pieces(consumer.home)[0], pieces(consumer.home)[-1]
        return (
            f"It holds across processes: a key is always in the same one of {parts} parts, {first} to {last}, and one process at a "
            "time has anything of a part. When a part moves, what was begun of it ends first."
        )
    if capabilities.order is Ordering.STREAM:
        return (
            f"It holds across processes: one of them at a time has anything of {consumer.home}, and the others stand by. When it "
            "leaves, what it had begun ends first, within drain."
        )
    same = "" if order.by is None else " It needs producers to give all messages of one such key the same message key."
    if capabilities.order is Ordering.GROUP:
        return f"It holds across processes: while one has a message of a key, the broker gives no other one the next.{same}"
    return (
        "It holds across processes: one of them has all of a key. When keys move to another process, what was begun ends first, "
        f"within drain; a handler that runs longer than that may overlap with its own message elsewhere.{same}"
    )
