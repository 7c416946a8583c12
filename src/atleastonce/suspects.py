"""What happens with the suspects of one consumer: into their channel, judged before they run, and out of it again."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable

from atleastonce import wire
from atleastonce.bound import Bound
from atleastonce.contract import Capabilities, Delivery, Outgoing
from atleastonce.engine.aside import Suspicion
from atleastonce.engine.decision import Decision
from atleastonce.engine.turnstile import Turnstile
from atleastonce.errors import CrashLoop
from atleastonce.patterns.crash_loops import is_guilty, suspect_copy
from atleastonce.patterns.history import read_history

log = logging.getLogger("atleastonce")

# How many messages this process remembers to have been handed alone. Too few: one that comes back after a lost connection looks
# as if it had ended a process.
_REMEMBERED = 10_000


class Suspects:
    """The suspects of one consumer.

    Args:
        bound: the consumer.
        capabilities: of its broker.
        moved: told that something is on its way into the channel.
        turnstile: of the service.
    """

    def __init__(
        self, bound: Bound, capabilities: Capabilities, moved: Callable[[], None], turnstile: Turnstile
    ) -> None:
        self._bound = bound
        self._home = bound.consumer.home
        self._policy = bound.policy
        self._moved = moved
        self._outlived: OrderedDict[str, None] = OrderedDict()
        self.suspicion = Suspicion(bound.consumer.suspected_from(capabilities), self.move, turnstile)
        """For the workers that read everything else."""

    def move(self, delivery: Delivery) -> Decision:
        """Into the channel of suspects, instead of running now."""
        log.warning(
            "%s: %s was handed out %d times and not settled; it will run alone",
            self._home,
            delivery.message.id,
            delivery.count - 1,
        )
        self._moved()
        return self._again(delivery, "suspected")

    def judge(self, delivery: Delivery) -> float | Decision:
        """Of a delivery from the channel of suspects, before it runs: that it may (0.0), or what becomes of it instead."""
        identity = delivery.message.id
        if delivery.count > 1 and identity in self._outlived:
            # It was handed to this very process before, and the process lives: a connection was lost, or a lease. What the
            # broker has counted so far proves nothing any more.
            return self._again(delivery, "suspected")
        deaths = self._deaths(delivery)
        if is_guilty(self._policy, delivery.count + deaths):
            runs = delivery.count - 1 + deaths
            error = CrashLoop(f"ended its process {runs} times; crash_limit is {self._policy.crash_limit}")
            log.error("%s: %s goes to the dead letters: %s", self._home, identity, error)
            return self._bound.condemned(delivery, error)
        self._outlived[identity] = None
        self._outlived.move_to_end(identity)
        if len(self._outlived) > _REMEMBERED:
            self._outlived.popitem(last=False)
        return 0.0

    def give_back(self, delivery: Delivery) -> Decision:
        """What becomes of a suspect that was cut off: a copy that was never handed out, since a `Release` counts on some
        brokers."""
        return self._again(delivery, "released")

    def exited(self, delivery: Delivery, sure: bool = True) -> Decision:
        """What becomes of a message whose handler raised ``SystemExit``: if that is ``sure`` to be its doing it counts as a death,
        and no suspicion is needed. Of a list all are suspects: no broker counts such an end, and the next process would meet it
        again."""
        who = "has" if sure else "or another one of its list has"
        log.error("%s: %s %s ended the service; it will run alone", self._home, delivery.message.id, who)
        return self._again(delivery, "suspected", died=int(sure))

    def _deaths(self, delivery: Delivery) -> int:
        if delivery.source.name != self._home.suspects_channel.name:  # anybody may have written it
            return 0
        return wire.read_int(delivery.message.headers, wire.DEATHS, default=0, low=0, high=wire.MAX_ATTEMPT)

    def _again(self, delivery: Delivery, name: str, *, died: int = 0) -> Decision:
        # Without the broker's count: what it says of retries cannot be told from accidents any more, and an accident burns no
        # attempt.
        history, deaths = read_history(delivery, self._home, counted=False), self._deaths(delivery) + died
        copy = suspect_copy(delivery, self._home, history, now=time.time(), deaths=deaths)
        return Decision(copies=(Outgoing(self._home.suspects_channel, copy),), name=name)
