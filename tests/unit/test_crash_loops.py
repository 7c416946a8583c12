"""Who ended the process: over a simulated broker that only counts hand-outs, with processes that die, lose connections and stop
at any moment, the killers end in the dead letters and nobody else does."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from atleastonce import FailurePolicy, Queue, RetryChain, wire
from atleastonce.bound import Bound
from atleastonce.channels import Source
from atleastonce.consumer import Consumer, define
from atleastonce.contract import NONE, Ability, Capabilities, Counting, Delivery, Leasing, Level, Ordering
from atleastonce.engine.decision import Decision
from atleastonce.engine.turnstile import Turnstile
from atleastonce.message import Headers, Message
from atleastonce.patterns.crash_loops import ACCIDENTS, RELEASES, is_guilty, suspect_copy, suspected_from
from atleastonce.patterns.history import read_history
from atleastonce.suspects import Suspects

JOBS: Queue[Any] = Queue("jobs", dict)
HOME = Source(JOBS)
COUNTING = Capabilities(delay=NONE, delivery_count=Counting.EXACT, lease=Leasing.SESSION, order=Ordering.STREAM)
DELAYING = Capabilities(
    delay=Ability(Level.NATIVE), delivery_count=Counting.EXACT, lease=Leasing.SESSION, order=Ordering.NONE
)


def consumer(policy: FailurePolicy) -> Consumer:
    async def handle(job: dict[str, Any]) -> None: ...

    return define(handle, JOBS, {"failure": policy, "max_in_flight": 100}, service="s", default=policy)


def suspects(policy: FailurePolicy, capabilities: Capabilities = COUNTING) -> Suspects:
    bound = Bound(consumer(policy), capabilities, compose=lambda *_: None, service="s")  # type: ignore[arg-type]
    return Suspects(bound, capabilities, moved=lambda: None, turnstile=Turnstile())


@dataclass(eq=False)
class Held:
    """A message as the broker has it: who holds it, and how often it was handed out."""

    message: Message
    count: int = 0
    holder: int | None = None


@dataclass
class Broker:
    """Channels that count hand-outs. What a process held when it died is handed out again, counted once more."""

    channels: dict[str, list[Held]] = field(default_factory=dict)

    def publish(self, channel: str, message: Message) -> None:
        self.channels.setdefault(channel, []).append(Held(message))

    def hand_out(self, channel: str, holder: int, most: int) -> list[Held]:
        found = [held for held in self.channels.get(channel, []) if held.holder is None][:most]
        for held in found:
            held.holder = holder
            held.count += 1
        return found

    def settle(self, channel: str, held: Held) -> None:
        self.channels[channel].remove(held)

    def forget(self, holder: int) -> None:
        for channel in self.channels.values():
            for held in channel:
                if held.holder == holder:
                    held.holder = None

    def ids(self, channel: str) -> list[str]:
        return [held.message.id for held in self.channels.get(channel, [])]


class World(RuleBasedStateMachine):
    """Three processes of one service. ``k…`` messages kill whoever runs them, all others are innocent.

    The rules that a process keeps are those of the engine: suspects are not run from the main channel; one suspect at a time
    is taken, while nothing else of the process runs, and let go before anything else does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.broker = Broker()
        self.policy = FailurePolicy(in_place=None, crash_limit=2)
        self.made = 0
        self.done: set[str] = set()
        self.crashes = 0
        self.refiled = 0
        self.returned = 0
        self.lives = [suspects(self.policy) for _ in range(3)]
        self.main: list[list[Held]] = [[], [], []]
        self.lost: defaultdict[str, set[Suspects]] = defaultdict(set)

    processes = st.integers(0, 2)

    # ------------------------------------------------------------------------------------ what happens

    @rule(killers=st.integers(0, 1), innocents=st.integers(1, 5), past=st.integers(0, 3))
    def publish(self, killers: int, innocents: int, past: int) -> None:
        """With any count: what raised it is of no matter to the rules."""
        for kind in ["k"] * killers + ["i"] * innocents:
            self.made += 1
            self.broker.publish("jobs", Message(f"{kind}{self.made}", b""))
            self.broker.channels["jobs"][-1].count = past

    @rule(process=processes, most=st.integers(1, 10))
    def receive(self, process: int, most: int) -> None:
        for held in self.broker.hand_out("jobs", process, most):
            if held.count >= self.lives[process].suspicion.hand_outs:
                self.move(held, self.lives[process].move(self.delivery(held, HOME)))
            else:
                self.main[process].append(held)

    @rule(process=processes, which=st.integers(0, 9))
    def run(self, process: int, which: int) -> None:
        if not self.main[process]:
            return
        held = self.main[process].pop(which % len(self.main[process]))
        if held.message.id.startswith("k"):
            self.die(process)
        else:
            self.broker.settle("jobs", held)
            self.done.add(held.message.id)

    @rule(process=processes, ends=st.sampled_from(["well", "well", "failed", "stopped", "disconnected"]))
    def visit(self, process: int, ends: str) -> None:
        """One suspect, alone: nothing of this process runs meanwhile, though it holds others."""
        for held in self.broker.hand_out("jobs.suspects", process, 1):
            life = self.lives[process]
            delivery = self.delivery(held, Source(HOME.suspects_channel))
            verdict = life.judge(delivery)
            if isinstance(verdict, Decision):
                self.move(held, verdict)
            elif held.message.id.startswith("k"):
                self.die(process)
            elif ends == "stopped":
                self.move(held, life.give_back(delivery))
                self.refiled += 1
            elif (
                ends == "disconnected" and len(losers := self.lost[held.message.id] | {life}) < self.policy.crash_limit
            ):
                # A connection that is lost while it runs alone. Each process remembers its own; but in as many different
                # processes as the limit, without a run that ends in between, they look like deaths.
                self.lost[held.message.id] = losers
                held.holder = None
            elif ends == "failed":
                self.broker.settle("jobs.suspects", held)
                self.broker.publish("jobs", held.message)
                self.returned += 1
            else:
                self.broker.settle("jobs.suspects", held)
                self.done.add(held.message.id)

    @rule(process=processes)
    def killed_from_outside(self, process: int) -> None:
        """By a person or a machine, at any moment at which no suspect runs alone."""
        self.die(process)

    @rule(process=processes)
    def disconnected(self, process: int) -> None:
        self.main[process].clear()
        self.broker.forget(process)

    @rule(process=processes)
    def released(self, process: int) -> None:
        """Where giving back counts as a hand-out, as on most brokers."""
        for held in self.main[process]:
            held.holder = None
        self.main[process].clear()

    # ---------------------------------------------------------------------------------------- the parts

    def delivery(self, held: Held, source: Source) -> Delivery:
        return Delivery(held.message, source, source.name, 1, 0, held, held.count)

    def move(self, held: Held, decision: Decision) -> None:
        (copy,) = decision.copies
        self.lost.pop(held.message.id, None)
        self.broker.publish(copy.destination.name, copy.message)
        self.broker.settle(held_in(self.broker, held), held)

    def die(self, process: int) -> None:
        self.crashes += 1
        self.main[process].clear()
        self.broker.forget(process)
        self.lives[process] = suspects(self.policy)

    # ---------------------------------------------------------------------------------------- what holds

    @invariant()
    def no_innocent_is_a_dead_letter(self) -> None:
        assert all(name.startswith("k") for name in self.broker.ids("jobs.dlq"))

    @invariant()
    def every_message_is_somewhere_and_once(self) -> None:
        found = [name for channel in self.broker.channels for name in self.broker.ids(channel)] + list(self.done)
        assert len(found) == len(set(found)) == self.made

    @invariant()
    def no_killer_is_done(self) -> None:
        assert all(name.startswith("i") for name in self.done)

    def teardown(self) -> None:
        """With nothing more from outside: a bounded number of crashes, every innocent done, every killer dead."""
        killers = sum(name.startswith("k") for name in self.all_waiting())
        before = self.crashes
        for _ in range(50 * (self.made + 1)):
            if not self.all_waiting():
                break
            for process in range(3):
                self.visit(process, "well")
                self.receive(process, 10)
                self.run(process, 0)
        assert self.all_waiting() == []
        self.no_innocent_is_a_dead_letter()
        assert self.crashes - before <= killers * (ACCIDENTS + self.policy.crash_limit)

    def all_waiting(self) -> list[str]:
        return self.broker.ids("jobs") + self.broker.ids("jobs.suspects")


def held_in(broker: Broker, held: Held) -> str:
    return next(name for name, channel in broker.channels.items() if any(each is held for each in channel))


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)


# ------------------------------------------------------------------------------------------ the rules, one by one


def test_two_accidents_make_a_suspect_and_retries_that_the_broker_counts_are_none() -> None:
    policy = FailurePolicy(chain=RetryChain("1s", "2s"))
    assert suspected_from(policy, counted=False) == 3
    assert suspected_from(policy, counted=True) == 5
    assert suspected_from(policy, counted=False, releases=True) == 3 + RELEASES
    assert suspects(policy, DELAYING).suspicion.hand_outs == 5


def test_guilty_is_who_was_handed_out_alone_more_often_than_the_limit() -> None:
    policy = FailurePolicy(crash_limit=2)
    assert [is_guilty(policy, count) for count in (0, 1, 2, 3, 4)] == [False, False, False, True, True]


def test_a_condemned_message_says_so() -> None:
    gate = suspects(FailurePolicy(crash_limit=1))
    message = Message("k1", b"body", b"key", Headers({"tenant": "a"}))
    home = Delivery(message, HOME, "jobs", 7, 0, None, 3)
    (copy,) = gate.move(home).copies
    assert copy.destination == HOME.suspects_channel
    alone = Delivery(copy.message, Source(HOME.suspects_channel), "jobs.suspects", 1, 0, None, 1)
    assert gate.judge(alone) == 0.0
    alone.count = 2
    decision = suspects(FailurePolicy(crash_limit=1)).judge(alone)  # another process: this one would know that it lives
    assert isinstance(decision, Decision)
    assert decision.name == "dead"
    dead = decision.copies[0]
    assert dead.destination == HOME.dead_letter_channel
    assert (dead.message.id, dead.message.body, dead.message.key) == ("k1", b"body", b"key")
    assert dead.message.headers.get("tenant") == "a"
    assert dead.message.headers.get(wire.ERROR_STAGE) == "crash-loop"
    assert dead.message.headers.get(wire.ERROR_TYPE) == "CrashLoop"
    assert dead.message.headers.get(wire.ORIGIN) == "jobs/7"


def test_a_process_that_lives_knows_that_its_suspect_did_not_kill_it() -> None:
    gate = suspects(FailurePolicy(crash_limit=1))
    alone = Delivery(Message("i1", b""), Source(HOME.suspects_channel), "jobs.suspects", 1, 0, None, 1)
    assert gate.judge(alone) == 0.0
    alone.count = 9  # a lease or a connection was lost, again and again
    decision = gate.judge(alone)
    assert isinstance(decision, Decision)
    assert [copy.destination for copy in decision.copies] == [HOME.suspects_channel]


def test_a_message_that_exits_its_process_is_judged_by_its_deaths() -> None:
    gate = suspects(FailurePolicy(crash_limit=2))
    home = Delivery(Message("m", b"", None, Headers({wire.DEATHS: "900"})), HOME, "jobs", 1, 0, None, 1)
    (first,) = gate.exited(home).copies  # what anybody may have written counts for nothing
    assert first.message.headers.get(wire.DEATHS) == "1"
    alone = Delivery(first.message, Source(HOME.suspects_channel), "jobs.suspects", 1, 0, None, 1)
    assert gate.judge(alone) == 0.0
    (given_back,) = gate.give_back(alone).copies
    assert given_back.message.headers.get(wire.DEATHS) == "1"
    (second,) = gate.exited(alone).copies
    decision = gate.judge(Delivery(second.message, Source(HOME.suspects_channel), "jobs.suspects", 2, 0, None, 1))
    assert isinstance(decision, Decision)
    dead = decision.copies[0].message.headers
    assert (dead.get(wire.ERROR_STAGE), dead.get(wire.DEATHS), dead.get(wire.SUSPECTED_AT)) == (
        "crash-loop",
        None,
        None,
    )


def test_what_others_wrote_of_our_fields_is_not_believed_in_the_channel_of_suspects() -> None:
    forged = Headers(
        {wire.ATTEMPT: "900", wire.FIRST_FAILED: "1", wire.DUE: "9999999999999", wire.REDRIVES: "7", "x": "y"}
    )
    delivery = Delivery(Message("m", b"", None, forged), HOME, "jobs", 1, 0, None, 3)
    copy = suspect_copy(delivery, HOME, read_history(delivery, HOME, counted=False), now=1.0)
    assert copy.headers.get("x") == "y"
    assert copy.headers.get(wire.ATTEMPT) == "1"
    for name in (wire.FIRST_FAILED, wire.DUE, wire.REDRIVES):
        assert copy.headers.get(name) is None


def test_a_suspect_that_only_fails_goes_back_where_the_broker_delays_by_itself() -> None:
    policy = FailurePolicy(in_place=None, chain=RetryChain("5s"))
    bound = Bound(consumer(policy), DELAYING, compose=lambda *_: None, service="s")  # type: ignore[arg-type]
    alone = Delivery(Message("m", b""), Source(HOME.suspects_channel), "jobs.suspects", 1, 0, None, 1)
    decision = bound.failed(alone, ValueError("no"))
    assert [copy.destination for copy in decision.copies] == [JOBS]


def test_a_suspect_that_fails_for_good_is_an_ordinary_dead_letter() -> None:
    policy = FailurePolicy(in_place=None)
    bound = Bound(consumer(policy), COUNTING, compose=lambda *_: None, service="s")  # type: ignore[arg-type]
    alone = Delivery(Message("m", b""), Source(HOME.suspects_channel), "jobs.suspects", 1, 0, None, 1)
    decision = bound.failed(alone, ValueError("no"))
    assert decision.name == "dead"
    assert decision.copies[0].message.headers.get(wire.ERROR_STAGE) == "handler"
