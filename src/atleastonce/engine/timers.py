"""Everything in a worker that waits for a time, on one task: runs in place, holds until due, repeated publishes,
timeouts."""

from __future__ import annotations

import time
from collections.abc import Callable

from atleastonce.contract import Delivery
from atleastonce.engine.decision import Decision
from atleastonce.engine.schedule import Schedule
from atleastonce.wake import Bell

# A step of the wall clock (NTP, a suspended laptop) is noticed after this long.
_WALL_CLOCK_CHECK = 1.0
# A step back by this much is one. What is held is looked at anew then: its due time may be further ahead than is believed, or
# the time at which it was to be looked at again is. Smaller steps: it is held so much longer. Too small: a clock that is being
# slewed has everything looked at all the time.
_STEP_BACK = 1.0
# How often timeouts of running handlers are looked at. A handler may overrun its timeout by this much.
_TIMEOUT_CHECK = 0.05


class Timers:
    """The waiting deliveries of one worker and the task that wakes them.

    Args:
        run_again: given deliveries whose wait is over, or is to be told anew, since the wall clock has been put back.
        publish_again: given deliveries whose copies are to be published once more.
        tick: called about 20 times a second while ``ticking`` says so, with the monotonic time.
    """

    def __init__(
        self,
        *,
        run_again: Callable[[list[Delivery]], None],
        publish_again: Callable[[Delivery, Decision], None],
        tick: Callable[[float], None],
        ticking: Callable[[], bool],
    ) -> None:
        self._run_again = run_again
        self._publish_again = publish_again
        self._tick = tick
        self._ticking = ticking
        self._in_place: Schedule[Delivery] = Schedule()  # monotonic
        self._held: Schedule[Delivery] = Schedule()  # wall clock: due times come from other machines
        self._copies: Schedule[tuple[Delivery, Decision]] = Schedule()  # monotonic
        self._offset = 0.0  # of the wall clock to the monotonic one, when it was last looked at
        self._bell = Bell()

    def again(self, delivery: Delivery, wait: float) -> None:
        """Run ``delivery`` in place after ``wait`` seconds."""
        self._in_place.add(time.monotonic() + wait, delivery)
        self._bell.ring()

    def hold(self, delivery: Delivery, due: float) -> None:
        """Run ``delivery`` when the wall clock says ``due``."""
        if not self._held:
            self._offset = time.time() - time.monotonic()
        self._held.add(due, delivery)
        self._bell.ring()

    def publish_later(self, wait: float, delivery: Delivery, decision: Decision) -> None:
        """Publish the copies of ``decision`` again after ``wait`` seconds."""
        self._copies.add(time.monotonic() + wait, (delivery, decision))
        self._bell.ring()

    def poke(self) -> None:
        """Something began to run whose timeout is to be watched."""
        self._bell.ring()

    def purge(self, unwanted: Callable[[Delivery], bool]) -> list[Delivery]:
        """Remove and return every delivery that waits to run and is ``unwanted``."""
        return self._in_place.purge(unwanted) + self._held.purge(unwanted)

    def hold_no_more(self, size: int, may: Callable[[Delivery], bool]) -> list[Delivery]:
        """Remove and return what is held and ``may`` be, the latest due first, until it has ``size`` bytes together."""
        removed: set[Delivery] = set()
        for delivery in self._held.latest_first():
            if size <= 0:
                break
            if may(delivery):
                removed.add(delivery)
                size -= delivery.size
        return self._held.purge(removed.__contains__) if removed else []

    def purge_copies(self, unwanted: Callable[[Delivery], bool]) -> list[Delivery]:
        """Remove and return every delivery whose copies wait to be published once more and that is ``unwanted``."""
        return [delivery for delivery, _ in self._copies.purge(lambda entry: unwanted(entry[0]))]

    def hasten(self, wanted: Callable[[Delivery], bool]) -> None:
        """Run what waits in place and is ``wanted`` now."""
        if ready := self._in_place.purge(wanted):
            self._run_again(ready)

    @property
    def holding(self) -> int:
        """How many deliveries wait here."""
        return len(self._in_place) + len(self._held) + len(self._copies)

    async def run(self) -> None:
        """Wake what is due until cancelled."""
        while True:
            await self._bell.heard(self._pause())
            now = time.monotonic()
            ready = self._in_place.pop_due(now) + self._let_go(now)
            if ready:
                self._run_again(ready)
            for delivery, decision in self._copies.pop_due(now):
                self._publish_again(delivery, decision)
            if self._ticking():
                self._tick(now)

    def _let_go(self, now: float) -> list[Delivery]:
        """What is held no longer."""
        wall = time.time()
        back, self._offset = self._offset - (wall - now), wall - now
        return self._held.purge(lambda _: True) if back >= _STEP_BACK else self._held.pop_due(wall)

    def _pause(self) -> float | None:
        now = time.monotonic()
        waits = [due - now for due in (self._in_place.next_due(), self._copies.next_due()) if due is not None]
        held = self._held.next_due()
        if held is not None:
            waits.append(min(held - time.time(), _WALL_CLOCK_CHECK))
        if self._ticking():
            waits.append(_TIMEOUT_CHECK)
        return max(0.0, min(waits)) if waits else None
