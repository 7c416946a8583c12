"""When the channel of suspects is looked at, where the broker cannot say what waits in it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import msgspec
import pytest
from engine_kit import LEASED, Rig, ScriptedAdapter, ScriptedSubscription, delivery, until

from atleastonce.contract import RELEASE, Code, Delivery, Window, rejected
from atleastonce.engine import quarantine, turnstile
from atleastonce.engine.decision import DONE, Decision
from atleastonce.engine.guest import Guest
from atleastonce.engine.quarantine import Quarantine
from atleastonce.engine.shared_window import SharedWindow
from atleastonce.engine.turnstile import Turnstile
from atleastonce.errors import PermissionDenied


class Looks:
    """A quarantine over a broker that says nothing, with a short lease, and the visits that it made."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.adapter = ScriptedAdapter(msgspec.structs.replace(LEASED, lease_seconds=0.2))
        window = Window(1, 2**20, counted=True)
        self.shared = SharedWindow(Window(10, 2**20), 1)
        self.source = self.shared.of_source(lambda: None)
        guest = Guest(self.shared)
        rig = Rig(self._run, adapter=self.adapter, concurrency=1, window=window, make_meter=lambda _: guest)
        self.turnstile = Turnstile()
        self.quarantine = Quarantine(self.adapter, rig.worker, self.turnstile, guest)

    async def _run(self, item: Delivery) -> Decision:
        self.ran.append(item.message.id)
        return DONE

    @property
    def visits(self) -> int:
        return sum(each.closed for each in self.adapter.subscriptions)

    def with_message(self, name: str) -> ScriptedSubscription:
        found = ScriptedSubscription()
        found.feed([delivery(name)])
        return found


@pytest.fixture
async def looks(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Looks]:
    monkeypatch.setattr(quarantine, "_LEASED_WAIT", 0.02)
    monkeypatch.setattr(quarantine, "_NEXT_WAIT", 0.02)
    monkeypatch.setattr(quarantine, "_BLIND_SLACK", 0.05)
    made = Looks()
    yield made
    await made.quarantine.stop(1.0)


async def test_what_a_dead_process_had_in_hand_is_found_when_its_lease_is_over(looks: Looks) -> None:
    looks.adapter.prepared.extend([ScriptedSubscription(), looks.with_message("held")])
    await looks.quarantine.start(1.0)
    assert (looks.visits, looks.ran) == (1, [])
    await until(lambda: looks.ran == ["held"])


async def test_after_that_it_looks_seldom(looks: Looks) -> None:
    await looks.quarantine.start(1.0)
    await until(lambda: looks.visits == 2)
    await asyncio.sleep(1.0)  # time in which a third look would show
    assert looks.visits == 2
    looks.adapter.prepared.append(looks.with_message("called"))
    looks.quarantine.call()
    await until(lambda: looks.ran == ["called"])


async def test_seldom_is_not_never(looks: Looks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "_BLIND_SECONDS", 0.3)
    looks.adapter.prepared.extend([ScriptedSubscription(), ScriptedSubscription(), looks.with_message("late")])
    await looks.quarantine.start(1.0)
    await until(lambda: looks.ran == ["late"])


async def test_suspects_that_may_not_be_settled_are_visited_no_more(
    looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each visit would run one, count it, and in the end blame it for what it did not do."""
    monkeypatch.setattr(quarantine, "_BUSY_SECONDS", 0.01)
    suspect = looks.with_message("suspect")
    suspect.answers.append(lambda batch: [rejected(Code.PERMISSION, "no right to it")] * len(batch))
    looks.adapter.prepared.extend([suspect, looks.with_message("again")])
    await looks.quarantine.start(1.0)
    with pytest.raises(PermissionDenied, match="may not ack: no right to it"):
        await asyncio.wait_for(looks.quarantine.wait(), 2)
    looks.quarantine.call()
    await asyncio.sleep(0.1)  # time in which it would be visited again
    assert (looks.visits, looks.ran) == (1, ["suspect"])
    assert looks.quarantine.worker.state == ("stopped", "orders: may not ack: no right to it")


class Busy:
    """A reader whose handler never ends, and how long it was kept from starting another one."""

    def __init__(self) -> None:
        self.pool = self
        self.busy = 1
        self.halts: list[float] = []
        self._since: float | None = None

    def halt(self) -> None:
        if self._since is None:
            self._since = time.monotonic()

    def let_go(self) -> None:
        if self._since is not None:
            self.halts.append(time.monotonic() - self._since)
            self._since = None


@pytest.fixture
def busy(looks: Looks, monkeypatch: pytest.MonkeyPatch) -> Busy:
    """After the start, and with a twentieth of all times."""
    for name in ("BRIEF", "_PATIENCE", "_BUSY_SECONDS"):
        monkeypatch.setattr(quarantine, name, getattr(quarantine, name) / 20)
    monkeypatch.setattr(turnstile, "BRIEF", turnstile.BRIEF / 20)
    return Busy()


async def test_where_nothing_is_known_to_be_a_suspect_nobody_is_held_up_for_longer_than_a_moment(
    looks: Looks, busy: Busy
) -> None:
    await looks.quarantine.start(1.0)
    looks.turnstile.add(busy)  # type: ignore[arg-type]
    await until(lambda: len(busy.halts) == 3)
    assert max(busy.halts) < 0.5  # a suspect is waited for for 1.5 s
    assert looks.visits == 1
    busy.busy = 0
    looks.adapter.prepared.append(looks.with_message("held"))
    await until(lambda: looks.ran == ["held"])


async def test_a_suspect_that_is_known_to_be_there_is_waited_for_longer(looks: Looks, busy: Busy) -> None:
    await looks.quarantine.start(1.0)
    looks.turnstile.add(busy)  # type: ignore[arg-type]
    looks.quarantine.call()
    await until(lambda: len(busy.halts) == 1)
    assert busy.halts[0] >= 1.5
    looks.adapter.prepared.append(looks.with_message("moved"))
    busy.busy = 0
    await until(lambda: looks.ran == ["moved"], within=20.0)


async def test_a_suspect_waits_for_room_and_one_that_does_not_fit_is_given_back_and_comes_again(
    looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "_BUSY_SECONDS", 0.01)
    await looks.quarantine.start(1.0)
    looks.source.take(9, 9 * 2**16, 2**16)
    large = looks.with_message("large")
    large.waiting[0][0].size = 2**20 - 2**16  # type: ignore[index]
    looks.adapter.prepared.append(large)
    looks.quarantine.call()
    await until(lambda: large.verdicts() == {"large": RELEASE})
    assert looks.ran == []
    again = looks.with_message("again")
    looks.adapter.prepared.append(again)
    await asyncio.sleep(0.1)  # time in which it would be visited
    assert again.receives == 0
    looks.source.give(8, 8 * 2**16)
    await until(lambda: looks.ran == ["again"])
