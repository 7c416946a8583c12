"""A policy against what a broker can: nobody is asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from atleastonce.channels import Channel, Queue, Topic
from atleastonce.check import rules
from atleastonce.check.finding import Finding
from atleastonce.consumer import Consumer
from atleastonce.contract import Capabilities, Leasing, Level, Ordering, Topology
from atleastonce.durations import format_duration, readable, seconds
from atleastonce.errors import ConfigurationError
from atleastonce.parts import pieces
from atleastonce.patterns.once.options import Lease, last_redelivery
from atleastonce.patterns.ordering import Ordered


def policy(consumer: Consumer, capabilities: Capabilities) -> list[Finding]:
    """What ``consumer`` asks for and a broker with ``capabilities`` cannot keep."""
    found = wanted(consumer, capabilities)[1]
    found += _time(consumer)
    found += _memory(consumer)
    found += _leases(consumer, capabilities)
    found += _order(consumer, capabilities)
    found += _transactions(consumer, capabilities)
    if not consumer.dead_letter and consumer.answering is None:
        found.append(
            rules.NO_DEAD_LETTERS.found(
                str(consumer.home),
                "no dead letters are kept: what is given up is lost",
                "leave dead_letter=None away to keep them",
            )
        )
    return found


def wanted(consumer: Consumer, capabilities: Capabilities) -> tuple[Topology | None, list[Finding]]:
    """What ``consumer`` needs on a broker with ``capabilities``; None with the reason where it cannot be had."""
    try:
        return consumer.topology(capabilities), []
    except ConfigurationError as error:
        subject, _, text = str(error).partition(": ")
        rule = rules.NAME_IMPOSSIBLE
        if capabilities.delay.limit is not None and any(
            not capabilities.delay.covers(wait) for wait in consumer.failure.delays
        ):
            rule = rules.DELAY_OVER_LIMIT
        what, _, change = text.partition("; ")
        return None, [rule.found(subject, what, change)]


def together(consumers: Sequence[Consumer], capabilities: Capabilities) -> list[Finding]:
    """What the handlers of one service do to each other."""
    found: list[Finding] = []
    for owner in consumers:
        topology, _ = wanted(owner, capabilities)
        if topology is None:
            continue
        waiting = {delay.channel.name for delay in topology.delays} | {owner.home.suspects_channel.name}
        dead = {queue.name for queue in topology.dead_letters}
        for reader in consumers:
            name = reader.home.name
            if name in waiting:
                found.append(
                    rules.CHANNEL_IN_TWO_ROLES.found(
                        name,
                        f"{reader.binding.name} reads it, and retries of {owner.home} wait in it",
                        "rename one of the two channels",
                    )
                )
            elif name in dead:
                found.append(
                    rules.DEAD_LETTERS_CONSUMED.found(
                        name,
                        f"{reader.binding.name} reads it, and the dead letters of {owner.home} are kept in it",
                        "give that handler a channel of its own, and look at dead letters with `atleastonce dlq`",
                    )
                )
    return found


def _time(consumer: Consumer) -> Iterator[Finding]:
    failure = consumer.failure
    if failure.give_up_after is None or not failure.delays:
        return
    life, total = seconds(failure.give_up_after), 0.0
    shown = f"give_up_after={format_duration(life)}"
    for number, delay in enumerate(failure.delays, 1):
        total += delay
        if total <= life:
            continue
        if number == 1:
            yield rules.CHAIN_OUT_OF_TIME.found(
                str(consumer.home),
                f"{shown} is shorter than the chain's first delay, {format_duration(delay)}",
                f"raise give_up_after to more than {readable(sum(failure.delays))}, or leave the chain away",
            )
        else:
            yield rules.CHAIN_CUT_SHORT.found(
                str(consumer.home),
                f"{shown} ends before delay {number} of {len(failure.delays)} does, {readable(total)} after the "
                "first failure",
                f"raise give_up_after to more than {readable(sum(failure.delays))}, or shorten the chain",
            )
        return


def _memory(consumer: Consumer) -> Iterator[Finding]:
    asked = consumer.idempotency
    if asked is None:
        return
    redrive = asked.redrive_horizon
    needed = last_redelivery(consumer.failure, redrive, dead_letter=consumer.dead_letter)
    remembered = asked.remembered(needed)
    if needed <= remembered:
        return
    name = type(asked).__name__
    yield rules.FORGOTTEN_TOO_EARLY.found(
        str(consumer.home),
        f"{name} forgets after ttl={format_duration(remembered)}, and a message may come again for {readable(needed)}: "
        f"through its retry chain, and from the dead letters within redrive_within={format_duration(redrive)}",
        f"raise {name}'s ttl to {readable(needed)} or more, shorten the chain, or lower redrive_within",
    )


def _transactions(consumer: Consumer, capabilities: Capabilities) -> Iterator[Finding]:
    if not consumer.transactions:
        return
    if not capabilities.transactions:
        yield rules.NO_TRANSACTIONS.found(
            str(consumer.home),
            "transactions=True asks for publishes and settlements in one step, and this broker has no such transactions (Kafka "
            "has)",
            "leave transactions away, and give what the handler publishes ids derived from its input",
        )
    if consumer.idempotency is not None:
        name = type(consumer.idempotency).__name__
        yield rules.TWO_TRANSACTIONS.found(
            str(consumer.home),
            f"transactions=True and idempotency={name}(...) are two transactions, and cannot be one",
            "keep transactions=True where all effects are messages, and idempotency where there are others",
        )


def _leases(consumer: Consumer, capabilities: Capabilities) -> Iterator[Finding]:
    limit, failure = capabilities.lease_limit, consumer.failure
    timeout = None if failure.timeout is None else seconds(failure.timeout)
    if timeout is not None and not consumer.binding.is_async:
        yield rules.TIMEOUT_OF_A_THREAD.found(
            str(consumer.home),
            f"{consumer.binding.name} is a def, which timeout={format_duration(timeout)} cannot stop",
            "make it an async def, or give what it calls a timeout of its own",
        )
    if limit is None:
        return
    if timeout is not None and timeout > limit:
        what = (
            f"a handler may run for {format_duration(timeout)}, and this broker leaves a message with its worker for "
            f"{format_duration(limit)} at most"
        )
        if capabilities.lease in (Leasing.EXTENDABLE, Leasing.FIXED):
            yield rules.TIMEOUT_OVER_LEASE.found(str(consumer.home), what, "shorten timeout=")
        else:  # a server's setting, which may have been raised
            change = "shorten timeout=, or raise the broker's limit"
            yield rules.TIMEOUT_OVER_SERVER_LIMIT.found(str(consumer.home), what, change)
        return
    tries, waits = in_place(consumer)
    held = sum(waits) + tries * (timeout or 0.0)
    if consumer.order is not None and failure.delays:
        total = (len(failure.delays) + 1) * held + sum(failure.delays)
        if total > limit:
            yield rules.CHAIN_OVER_LEASE.found(
                str(consumer.home),
                f"ordered= holds a failing message in its place for {readable(total)}, and this broker leaves it with its worker "
                f"for {format_duration(limit)} at most",
                "shorten the chain",
            )
            return
    if held > limit:
        yield rules.IN_PLACE_OVER_LEASE.found(
            str(consumer.home),
            f"{tries} tries in place may take {readable(held)}, and this broker leaves a message with its worker for "
            f"{format_duration(limit)} at most",
            "shorten in_place=, or move its waits to the chain",
        )


def in_place(consumer: Consumer) -> tuple[int, list[float]]:
    """How often a handler runs within one attempt, and the longest waits between these runs."""
    backoff = consumer.failure.in_place
    if backoff is None or backoff.max_attempts is None:
        return 1, []
    waits = (backoff.wait(number, lambda: 1.0) for number in range(1, backoff.max_attempts))
    return backoff.max_attempts, [wait for wait in waits if wait is not None]


def wants_order(consumer: Consumer) -> str:
    """The argument by which a consumer's channel asks for order; "" if it does not."""
    channel = consumer.home.channel
    if isinstance(channel, Queue | Topic) and channel.fifo:
        return "fifo=True"
    return "single_active=True" if isinstance(channel, Queue | Topic) and channel.single_active else ""


def _order(consumer: Consumer, capabilities: Capabilities) -> Iterator[Finding]:
    asked, home = wants_order(consumer), str(consumer.home)
    if consumer.order is not None:
        yield from _kept_order(consumer, consumer.order, capabilities)
        return
    if not asked:
        return
    if asked == "fifo=True" and capabilities.order is Ordering.NONE:
        yield rules.ORDER_IMPOSSIBLE.found(
            home, "fifo=True asks for order per key, and this broker keeps no order", "leave fifo away"
        )
    elif leaving := [wait for wait in consumer.failure.delays if leaves(consumer, wait, capabilities)]:
        yield rules.ORDER_LOST_IN_CHAIN.found(
            home,
            f"{asked} asks for order, and a message that waits {format_duration(leaving[0])} waits in "
            f"{home}.retry.{format_duration(leaving[0])}, while later ones go by",
            "hold it in its place with ordered=True, or leave the chain away and retry in place with in_place=Backoff(...), or do "
            "without order",
        )


def _kept_order(consumer: Consumer, order: Ordered, capabilities: Capabilities) -> Iterator[Finding]:
    """``ordered=``: whether one process at a time has what is in line."""
    home, channel = str(consumer.home), consumer.home.channel
    kind = type(channel).__name__
    if change := _missing_for_order(channel, capabilities):
        yield rules.ORDER_NOT_ACROSS.found(
            home,
            "ordered= promises order per key, and the messages of one key may be with several processes at a time",
            change if change.startswith("leave") else f'declare {kind}("{channel.name}", {change})',
        )
    if isinstance(consumer.idempotency, Lease):
        yield rules.ORDER_WITH_LEASE.found(
            home,
            "a message whose Lease another process still holds waits for it, while later ones of its key go by",
            "use an Inbox, which claims when the handler runs, or leave ordered= or idempotency= away",
        )
    parts = len(pieces(channel)) if capabilities.parts else 1
    if capabilities.single_file and consumer.concurrency > parts:
        what = "each of its parts" if parts > 1 else "a single_active=True channel"
        more = f"partitions={consumer.concurrency}" if parts > 1 else "partitions=8, each of which has one message out"
        yield rules.ORDER_IN_SINGLE_FILE.found(
            home,
            f"concurrency={consumer.concurrency}, and this broker has one message of {what} out at a time",
            f"set concurrency={parts}, or declare {more}" if capabilities.parts else "set concurrency=1",
        )
    if order.by is not None and capabilities.order is not Ordering.STREAM:
        yield rules.ORDER_BY_PAYLOAD.found(
            home,
            "its order is by something in the payload, and across processes the broker keeps order by message key",
            "publish all messages of one such key with the same message key",
        )


def _missing_for_order(channel: Channel[Any], capabilities: Capabilities) -> str:
    """What the channel's declaration lacks for order per key across processes; "" where it lacks nothing."""
    if capabilities.order is Ordering.KEY:
        return ""
    if capabilities.order is Ordering.GROUP:
        return "" if getattr(channel, "fifo", False) else "fifo=True"
    if capabilities.order is Ordering.STREAM and capabilities.single_active:
        return "" if getattr(channel, "single_active", False) else "single_active=True"
    return "leave ordered= away: this broker hands the messages of one key to any process that reads"


def leaves(consumer: Consumer, wait: float, capabilities: Capabilities) -> bool:
    """Whether a message that waits so long is copied to another channel meanwhile."""
    if consumer.order is not None:
        return False
    return capabilities.delay.level is not Level.NATIVE or not capabilities.delay.covers(wait)
