"""One reader of a subscription: its pulls, what it holds, and how that ends."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import grpc

from atleastonce.adapters.pubsub import faults
from atleastonce.adapters.pubsub.channel import Link, PublishRequest, PubsubMessage, Pulled, PullRequest
from atleastonce.adapters.pubsub.config import MAX_DEADLINE, Config
from atleastonce.adapters.pubsub.leases import Leases
from atleastonce.adapters.pubsub.presence import Presence
from atleastonce.adapters.pubsub.records import PubSubDelivery
from atleastonce.adapters.pubsub.topology import net_of
from atleastonce.channels import Source
from atleastonce.contract import (
    ACK,
    OK,
    STALE,
    Ack,
    Code,
    Delivery,
    Listener,
    Outcome,
    Reject,
    Release,
    Settlement,
    Status,
    Subscription,
    Verdict,
    Window,
    rejected,
)
from atleastonce.errors import AtLeastOnceError, Closed, ConnectionLost, NotFound
from atleastonce.silence import Owed

_MOST: Final = 1000
"""Messages that one pull may ask for."""
_GRACE: Final = 0.25
"""Seconds at close for an answer that is on its way: its messages are leased, and would be lost to others for a lease."""
_QUICK: Final = 0.05
"""Seconds below which an empty answer means that the server does not wait for messages; the next pull is put off."""
_PAUSES: Final = (0.1, 0.2, 0.5, 1.0, 2.0)
_LEAN: Final = 0.1
"""Seconds by which a lease is taken for shorter than it is: it began when the answer left."""


class PubSubSubscription(Subscription):
    """From `PubSubAdapter.subscribe`.

    Args:
        deadline: the subscription's own acknowledgement deadline, with which each pull's leases begin.
        ordered: whether messages of one key come one batch after the other.
        missing: told when the subscription, or its topic, turns out not to be there any more.
    """

    def __init__(
        self,
        config: Config,
        link: Link,
        source: Source,
        window: Window,
        listener: Listener,
        epoch: int,
        *,
        deadline: float,
        ordered: bool,
        missing: Callable[[], None],
    ) -> None:
        self.listener = listener
        self._config = config
        self._link = link
        self._source = source
        self._name = config.subscription(source.name)
        self._window = window
        self._epoch = epoch
        self._deadline = deadline
        self._ordered = ordered
        self._missing = missing
        self._leases = Leases(link, self._name, config.operation_timeout)
        self._presence = Presence(link, source, self._name, config.operation_timeout, self._end)
        self._out: set[Delivery] = set()
        self._out_bytes = 0
        self._buffer: deque[list[PubSubDelivery]] = deque()  # lists of one pull, of one lease each
        self._buffered = 0
        self._pulls: dict[asyncio.Task[None], int] = {}
        self._parallel = 1
        # Half a window: while one half is handled and acknowledged the other one is on its way.
        self._lot = min(_MOST, math.ceil(window.messages / 2))
        self._average = 256.0
        self._not_before = 0.0
        self._failures = 0
        self._blocked = False
        self._changed = asyncio.Event()
        self._ended: AtLeastOnceError | None = None
        self._paused = False
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    # ---------------------------------------------------------------------------------------------------------- receive

    async def receive(self, max_messages: int, max_wait: float) -> Sequence[Delivery]:
        end = time.monotonic() + max_wait
        while True:
            self._check()
            self._changed.clear()
            if not self._paused:
                if found := self._hand_out(max_messages):
                    if self._ended is None:
                        self._pull_more(max_messages, time.monotonic(), ahead=True)
                    return found
                if self._ended is not None:
                    raise self._ended
            now = time.monotonic()
            again = math.inf if self._paused else self._pull_more(max_messages, now)
            if now >= end:
                if all(delivery.lease_until <= now for delivery in self._out):  # what is out may still be acknowledged
                    self._presence.silent(now)
                return ()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(end, again) - now):
                    await self._changed.wait()

    def _check(self) -> None:
        if self._closed:
            raise Closed(f"the subscription to {self._source.name} is closed")

    def _hand_out(self, most: int) -> Sequence[Delivery]:
        now = time.monotonic()
        while self._buffer:
            batch = self._buffer.popleft()
            self._buffered -= len(batch)
            if batch[0].lease_until > now:
                if len(batch) > most:
                    self._buffer.appendleft(batch[most:])
                    self._buffered += len(batch) - most
                    return batch[:most]
                return batch
            for delivery in batch:  # it lay here until its lease was over; it will come again
                delivery.lost = True
                self._drop(delivery)
        return ()

    def _pull_more(self, most: int, now: float, *, ahead: bool = False) -> float:
        """Ask for as much as there is room for; returns when to look again if nothing changes before.

        One pull brings what the reader asks for. Beyond that there are pulls of half a window (a pull costs as much as
        handling a hundred messages), for readers that ask for much: one half is on its way while the other is handled.

        Args:
            ahead: the reader has something to do; nothing but such halves is worth asking for.
        """
        if now < self._not_before:
            return self._not_before
        asked = sum(self._pulls.values())
        room = self._room(now) - asked
        if not self._pulls and not ahead:
            if (share := min(room, most - self._buffered, self._lot)) <= 0:
                return min((delivery.lease_until for delivery in self._out), default=math.inf)
            self._begin_pull(share)
            room -= share
        if 2 * most >= self._lot:
            while len(self._pulls) < self._parallel and room >= self._lot:
                self._begin_pull(self._lot)
                room -= self._lot
        return math.inf

    def _begin_pull(self, most: int) -> None:
        task = asyncio.create_task(self._pull(most))
        self._pulls[task] = most
        task.add_done_callback(self._pulled)

    def _room(self, now: float) -> int:
        """How many more the window has room for. An ended lease counts no longer: others may have the message."""
        out, window = self._out, self._window
        if len(out) >= window.messages or self._out_bytes >= window.bytes:
            for delivery in [delivery for delivery in out if delivery.lease_until <= now]:
                self._drop(delivery)
        bytes_ = window.bytes - self._out_bytes
        return 0 if bytes_ <= 0 else min(window.messages - len(out), math.ceil(bytes_ / self._average))

    def _drop(self, delivery: Delivery) -> None:
        if delivery in self._out:
            self._out.discard(delivery)
            self._out_bytes -= delivery.size

    def _pulled(self, task: asyncio.Task[None]) -> None:
        self._pulls.pop(task, None)
        self._changed.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._ended = ConnectionLost(f"{self._source.name}: {error!r}")

    async def _pull(self, most: int) -> None:
        request = PullRequest(subscription=self._name, max_messages=most)
        began = time.monotonic()
        try:
            answer: Pulled = await self._link.call("Pull", request, seconds=self._config.pull_timeout, wait=True)
        except grpc.RpcError as error:
            self._failed(error)
            return
        except Closed as error:
            self._ended = error
            return
        received = answer.messages
        now = time.monotonic()
        if received:
            self._presence.heard(now)
        self._failures = 0
        if self._blocked:
            self._blocked = False
            self.listener.condition("unblocked", "")
        if not received:
            self._parallel = 1
            if now - began < _QUICK:
                self._not_before = now + _PAUSES[0]
            return
        self._parallel = 1 if self._ordered else self._config.pulls
        lease = self._deadline
        try:
            if self._config.lease < lease:
                lease = float(math.ceil(self._config.lease))
                await self._leases.move([each.ack_id for each in received], int(lease))
        finally:  # also where the pull is ended here: they are ours, and somebody has to give them back
            self._take(received, answer.size, now + lease - min(_LEAN, lease / 20))

    def _take(self, received: Sequence[Any], total: int, lease_until: float) -> None:
        source, stream, epoch = self._source, self._source.channel.name, self._epoch
        # Each is taken to be as large as the average of its pull: asking each would cost more than all else here.
        count = len(received)
        size, rest = divmod(total, count)
        batch = [PubSubDelivery(each, source, stream, epoch, lease_until, size) for each in received]
        batch[0].size += rest
        self._average = max(1.0, total / count)
        self._out.update(batch)
        self._out_bytes += total
        self._buffer.append(batch)
        self._buffered += count

    def _failed(self, error: grpc.RpcError) -> None:
        fault = faults.classify(error)
        if fault.code is Code.TIMEOUT:
            return  # nothing came
        if not fault.retryable:
            self._end(faults.as_error(error, f"reading {self._source.name}", lost=True))
            return
        self._not_before = time.monotonic() + _PAUSES[min(self._failures, len(_PAUSES) - 1)]
        self._failures += 1
        self._parallel = 1
        if fault.code is Code.OVERLOADED and not self._blocked:
            self._blocked = True
            self.listener.condition("blocked", fault.detail)

    def _end(self, error: AtLeastOnceError) -> None:
        self._ended = error
        self._changed.set()
        if isinstance(error, NotFound):
            self._missing()

    # ----------------------------------------------------------------------------------------------------------- settle

    async def settle(self, batch: Sequence[Settlement]) -> Sequence[Outcome]:
        if self._closed:
            return [STALE] * len(batch)
        outcomes: list[Outcome] = [OK] * len(batch)
        now, epoch = time.monotonic(), self._epoch
        acks: list[int] = []
        moves: dict[int, list[int]] = {}
        rejects: list[int] = []
        delivery: Any
        for place, (delivery, verdict) in enumerate(batch):
            if verdict is ACK and delivery.verdict is None and delivery.lease_until > now and delivery.epoch == epoch:
                delivery.verdict = verdict  # nearly always, and so asked first
                acks.append(place)
            elif delivery.epoch != epoch:  # of another subscription
                outcomes[place] = STALE
            elif delivery.verdict is not None:
                pass  # settled before, and the first verdict wins
            elif delivery.lease_until <= now:
                delivery.lost = True
                outcomes[place] = STALE
                self._drop(delivery)
            else:
                delivery.verdict = verdict
                if isinstance(verdict, Ack):
                    acks.append(place)
                elif isinstance(verdict, Release):
                    moves.setdefault(0, []).append(place)
                elif isinstance(verdict, Reject):
                    rejects.append(place)
                elif verdict.delay > MAX_DEADLINE:
                    delivery.verdict = None
                    outcomes[place] = rejected(Code.INVALID, f"Pub/Sub delays by at most {MAX_DEADLINE} s")
                else:
                    seconds = math.ceil(round(verdict.delay, 6))
                    moves.setdefault(seconds, []).append(place)
        for place in rejects:
            if (outcome := await self._bury(batch[place][0])).ok:
                acks.append(place)
            else:
                outcomes[place] = outcome
                batch[place][0].verdict = None  # type: ignore[attr-defined]
        if acks:
            self._ended_with(batch, outcomes, acks, await self._leases.acknowledge(_ids(batch, acks)))
        for seconds, places in moves.items():
            if self._ordered:
                await self._recall({batch[place][0].raw.message.ordering_key for place in places})
            self._ended_with(batch, outcomes, places, await self._leases.move(_ids(batch, places), seconds))
        self._changed.set()  # the window has room
        return outcomes

    def _ended_with(
        self, batch: Sequence[Settlement], outcomes: list[Outcome], places: list[int], told: Sequence[Outcome]
    ) -> None:
        if told.count(OK) == len(places):
            ended = [batch[place][0] for place in places]
            self._out.difference_update(ended)
            self._out_bytes -= sum([delivery.size for delivery in ended])
            return
        for place, outcome in zip(places, told, strict=True):
            delivery = batch[place][0]
            outcomes[place] = outcome
            if outcome.status is Status.UNKNOWN:
                delivery.verdict = None  # type: ignore[attr-defined]  # to be told again
                continue
            if outcome is STALE:
                delivery.lost = True
            self._drop(delivery)

    async def _bury(self, delivery: Delivery) -> Outcome:
        """Do at once what Pub/Sub does after the last attempt: a copy to the dead-letter topic, confirmed."""
        net = net_of(self._source.name)
        if net is None or not self._config.max_delivery_attempts:
            return rejected(Code.INVALID, f"{self._source.name} has no dead-letter topic")
        message = delivery.raw.message
        if not message.message_id:
            return rejected(Code.INVALID, "its body was let go of")
        copy = PubsubMessage(data=message.data, attributes=message.attributes)
        request = PublishRequest(topic=self._config.topic(net), messages=[copy])
        try:
            await self._link.call("Publish", request, seconds=self._config.operation_timeout, wait=True)
        except grpc.RpcError as error:
            return faults.outcome_of(error)
        return OK

    async def _recall(self, keys: set[str]) -> None:
        """What waits here of these keys must not overtake what is given back."""
        waiting = self._unbuffer()
        behind = [delivery for delivery in waiting if delivery.raw.message.ordering_key in keys - {""}]
        gone = set(behind)
        for delivery in waiting:
            if delivery not in gone:
                self._buffer.append([delivery])
                self._buffered += 1
        if behind:
            await self._give_back(behind)

    def _unbuffer(self) -> list[PubSubDelivery]:
        waiting = [delivery for batch in self._buffer for delivery in batch]
        self._buffer.clear()
        self._buffered = 0
        return waiting

    async def _give_back(self, deliveries: Sequence[PubSubDelivery]) -> None:
        verdict: Verdict = Release()
        for delivery in deliveries:
            delivery.verdict = verdict
            self._drop(delivery)
        await self._leases.move([delivery.token for delivery in deliveries], 0)

    async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Outcome]:
        outcomes: list[Outcome] = [STALE] * len(deliveries)
        if self._closed:
            return outcomes
        now = time.monotonic()
        places = [
            place
            for place, delivery in enumerate(deliveries)
            if delivery.epoch == self._epoch and delivery.lease_until > now and delivery.verdict is None  # type: ignore[attr-defined]
        ]
        whole = max(1, min(MAX_DEADLINE, math.ceil(seconds)))
        told = await self._leases.move([deliveries[place].token for place in places], whole)
        for place, outcome in zip(places, told, strict=True):
            outcomes[place] = outcome
            if outcome.ok:
                deliveries[place].lease_until = now + whole
        for delivery, outcome in zip(deliveries, outcomes, strict=True):
            if outcome is STALE:
                delivery.lost = True
        return outcomes

    # -------------------------------------------------------------------------------------------------------- lifecycle

    @property
    def overdue(self) -> Owed | None:
        return self._link.silence.look()

    async def pause(self) -> None:
        self._paused = True

    async def resume(self) -> None:
        self._paused = False
        self._changed.set()

    async def leave(self) -> None:
        self._paused = True
        await self._end_pulls()
        await self._return()

    async def leave_with_rest(self) -> Sequence[Delivery]:
        self._paused = True
        await self._end_pulls()
        rest: list[Delivery] = []
        while found := self._hand_out(self._buffered):
            rest += found
        return rest

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._changed.set()
        await self._end_pulls()
        await self._return()

    async def _end_pulls(self) -> None:
        """Before anything is given back: to a pull that waits it would be handed out once more, and counted once more."""
        await self._presence.close()
        if not self._pulls:
            return
        await asyncio.wait(list(self._pulls), timeout=_GRACE)
        waiting = list(self._pulls)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    async def _return(self) -> None:
        """Give back what was not handed out: nobody renews its lease here."""
        held = [delivery for delivery in self._unbuffer() if delivery.lease_until > time.monotonic()]
        with contextlib.suppress(AtLeastOnceError):  # what could not be given back comes when its lease ends
            await self._give_back(held)


def _ids(batch: Sequence[Settlement], places: Sequence[int]) -> list[str]:
    return [batch[place][0].token for place in places]
