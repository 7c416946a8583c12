"""The one failure policy of a consumer: what happens to a message whose handler failed.

The library fixes the order in which the parts act; there is no stack of middlewares to misorder::

    the handler's own decision (RetryLater, DeadLetter, Discard)
    -> fatal?  (give_up_on, undecodable)                       straight to the dead letters
    -> in place (short waits, lease held, nobody else sees it)
    -> the chain (long waits, in the broker)
    -> dead letters

``KeyboardInterrupt`` and ``SystemExit`` are never failures: the engine gives such a message back. Nor is a ``CancelledError``,
until a handler has ended in one by itself too often (`HandlerCancelled`).
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import msgspec

from atleastonce.durations import Duration, format_duration, seconds, whole
from atleastonce.engine.backoff import Backoff
from atleastonce.errors import ConfigurationError, DeadLetter, DecodeError, Discard, RetryLater, ends_process
from atleastonce.patterns.flood import DeadLetterPolicy

# Kept small because the lease is held and the lane is busy meanwhile; long waits belong in the chain.
IN_PLACE = Backoff("50ms", factor=3, max_attempts=3)


# Far more than helps; what counts attempts on the wire ends at 32 767, and each delay may be a channel.
_MAX_DELAYS = 1000


def _whole_millis(value: float) -> float:
    """Rounded up: the delay names its channel in whole milliseconds, and two delays must not share one by accident."""
    return seconds(format_duration(value))


def _delays(given: Iterable[Duration]) -> tuple[float, ...]:
    return tuple(_whole_millis(seconds(delay, name="retry delay", minimum=0.001)) for delay in given)


@dataclass(frozen=True, init=False)
class RetryChain:
    """Delays between attempts, each longer than a worker should wait: ``RetryChain("5s", "30s", "5m")``.

    One message takes the delays in order, one for each failed attempt; after the last it is dead. Where the broker
    delays by itself nothing is created; elsewhere each delay is a channel named after its source.

    Args:
        delays: in order.
        drain_only: delays that an earlier version of the chain had. Nothing is sent there any more, but what still waits in
            their channels is handled when it is due. Leave them here until those channels are empty.

    Raises:
        ConfigurationError: no delay, too many, a delay below a millisecond, delays that shrink, or one that is both in use
            and removed.
    """

    delays: tuple[float, ...]
    drain_only: tuple[float, ...]

    def __init__(self, *delays: Duration, drain_only: Iterable[Duration] = ()) -> None:
        if isinstance(drain_only, str) or not isinstance(_given(drain_only), Iterable):
            raise ConfigurationError(f'RetryChain drain_only={drain_only!r}: give a list of delays, like ("30s",)')
        values = _delays(delays)
        removed = tuple(dict.fromkeys(_delays(drain_only)))
        if both := set(values) & set(removed):
            raise ConfigurationError(
                f"RetryChain drain_only: {format_duration(min(both))} is a delay of the chain as well; leave it out of one"
            )
        if not values and not removed:
            raise ConfigurationError('RetryChain needs at least one delay, like RetryChain("5s", "30s", "5m")')
        if len(values) + len(removed) > _MAX_DELAYS:
            raise ConfigurationError(f"RetryChain has {len(values) + len(removed)} delays; {_MAX_DELAYS} are the most")
        if list(values) != sorted(values):
            raise ConfigurationError(f"RetryChain{delays}: a delay is shorter than the one before it")
        object.__setattr__(self, "delays", values)
        object.__setattr__(self, "drain_only", removed)

    @classmethod
    def exponential(cls, first: Duration, *, factor: float = 2.0, hops: int, maximum: Duration = "1d") -> RetryChain:
        """``hops`` delays, each ``factor`` times the one before, none above ``maximum``."""
        if not 1 <= hops <= _MAX_DELAYS or not 1 <= factor < math.inf:
            raise ConfigurationError(
                f"RetryChain.exponential: hops={hops} is out of range 1 to {_MAX_DELAYS}, or factor={factor} is below 1"
            )
        delay, top = seconds(first, name="first"), seconds(maximum, name="maximum")
        delays = []
        for _ in range(hops):
            delays.append(min(top, delay))
            delay = min(top, delay * factor)
        return cls(*delays)

    def after(self, attempt: int) -> float | None:
        """The delay after ``attempt`` (from 1) failed; None when that was the last one."""
        return self.delays[attempt - 1] if attempt <= len(self.delays) else None


@lru_cache(1024)
def room(rooms: tuple[float, ...], delay: float) -> float:
    """Of the delays that have a channel, shortest first, the one in which to wait ``delay`` seconds, and wait again for what is
    left: the longest that is not too long, else the shortest."""
    return next((room for room in reversed(rooms) if room <= delay), rooms[0])


@dataclass(frozen=True, kw_only=True)
class FailurePolicy:
    """What happens when a handler fails. Immutable; share one among consumers as you like.

    Args:
        in_place: quick repetitions with the lease held. None: none.
        chain: repetitions with the message back in the broker. None: none.
        give_up_on: exception classes that no repetition mends: straight to the dead letters. Undecodable payloads
            always are.
        timeout: the longest run of an ``async def`` handler, which is then cancelled and has failed. Too small kills
            work that would have ended and repeats it; None lets a stuck handler occupy its place for good.
        give_up_after: how long after its first failure a message may live; decided *before* a wait that could not end
            in time. Where the broker delays and counts by itself it keeps no time of the first failure: there the waits so
            far are reckoned, and the time that handlers took is not.
        dead_letter: limits of what is given up at once; None keeps no dead letters at all: what is given up is dropped,
            logged and counted.
        crash_limit: how often a message may end its process while it runs alone, before it is a dead letter of stage
            ``crash-loop``. Too small (1): a message that was running when the machine went down, or was killed for another's
            memory, is given up. Too large: as many more processes die of it. See `patterns.crash_loops`.
    """

    in_place: Backoff | None = IN_PLACE
    chain: RetryChain | None = None
    give_up_on: tuple[type[BaseException], ...] = ()
    timeout: Duration | None = None
    give_up_after: Duration | None = None
    dead_letter: DeadLetterPolicy | None = DeadLetterPolicy()  # noqa: RUF009 - frozen
    crash_limit: int = 3

    def __post_init__(self) -> None:
        in_place, chain, give_up_on = _given(self.in_place), _given(self.chain), _given(self.give_up_on)
        if not isinstance(in_place, Backoff | None):
            raise ConfigurationError(
                f'FailurePolicy in_place={self.in_place!r}: give Backoff("50ms", max_attempts=3) or None'
            )
        if not isinstance(chain, RetryChain | None):
            raise ConfigurationError(f'FailurePolicy chain={self.chain!r}: give RetryChain("5s", "30s") or None')
        if not isinstance(give_up_on, tuple) or not all(
            isinstance(kind, type) and issubclass(kind, BaseException) for kind in give_up_on
        ):
            raise ConfigurationError(f"FailurePolicy give_up_on={self.give_up_on!r}: give a tuple of exception classes")
        if not isinstance(_given(self.dead_letter), DeadLetterPolicy | None):
            raise ConfigurationError(
                f"FailurePolicy dead_letter={self.dead_letter!r}: give DeadLetterPolicy(max_consecutive=100) or None"
            )
        if self.in_place is not None and self.in_place.max_attempts is None:
            raise ConfigurationError(
                "FailurePolicy in_place needs max_attempts: a message cannot fail in place for ever"
            )
        whole(self.crash_limit, name="FailurePolicy crash_limit", high=1000)
        for name in ("timeout", "give_up_after"):
            if getattr(self, name) is not None:
                seconds(getattr(self, name), name=name, minimum=0.001)

    @property
    def delays(self) -> tuple[float, ...]:
        """The chain's delays in seconds; empty without a chain."""
        return self.chain.delays if self.chain is not None else ()

    @property
    def drained(self) -> tuple[float, ...]:
        """The delays that the chain no longer has, and whose channels are still emptied."""
        return self.chain.drain_only if self.chain is not None else ()


def _given(value: object) -> object:
    """What was really given, whatever its annotation says."""
    return value


class Again(msgspec.Struct, frozen=True):
    """Run it once more here, after ``wait`` seconds."""

    wait: float


class Hop(msgspec.Struct, frozen=True):
    """Wait ``delay`` seconds in the broker, then run as ``attempt``."""

    delay: float
    attempt: int


class Dead(msgspec.Struct, frozen=True):
    """Give up. ``stage`` is decode, handler or expired."""

    stage: str
    error: BaseException


class Drop(msgspec.Struct, frozen=True):
    """Done with it by decision."""

    reason: str


Step: TypeAlias = Again | Hop | Dead | Drop


def causes(error: BaseException, *, handled: bool = True) -> Iterator[BaseException]:
    """``error``, what it was raised from, and the members of groups, each once.

    Args:
        handled: whether also what was being handled when it was raised, without a ``from``.
    """
    seen: set[int] = set()
    stack = [error]
    while stack:
        current = stack.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        if isinstance(current, BaseExceptionGroup):
            stack.extend(reversed(current.exceptions))
        cause = current.__cause__
        if cause is None and handled and not current.__suppress_context__:
            cause = current.__context__
        if cause is not None:
            stack.append(cause)


# Errors that say what is to follow. Of any other the policy alone decides.
_SPEAKING = (Discard, DeadLetter, RetryLater, DecodeError)
_LOOKED_INTO = (BaseExceptionGroup, *_SPEAKING)


def is_plain(policy: FailurePolicy, error: BaseException) -> bool:
    """Whether ``policy`` looks at no more of ``error`` than its class."""
    return (
        error.__cause__ is None
        and error.__context__ is None
        and not isinstance(error, _LOOKED_INTO)
        and not isinstance(error, policy.give_up_on)
    )


def _is_alone(error: BaseException) -> bool:
    """Whether ``error`` is all that `causes` would find, as nearly always."""
    return error.__cause__ is None and error.__context__ is None and not isinstance(error, BaseExceptionGroup)


def _may_discard(chain: Sequence[BaseException]) -> bool:
    """In a group, what one task discarded is not done while another one failed."""
    return all(group.split(Discard)[1] is None for group in chain if isinstance(group, BaseExceptionGroup))


def ensure_failure(error: BaseException, *, awaited: bool) -> None:
    """Return if ``error`` is a failure, which the policy decides about; else raise what the engine acts on.

    Only these are no failures: ``CancelledError`` (the run was cut off) and ``SystemExit`` and ``KeyboardInterrupt`` (the process
    is to end), bare or in a group, and ``GeneratorExit`` where an ``awaited`` run is being thrown away with its loop. Any other
    ``BaseException`` (of an extension module, of a greenlet) fails its message and nothing else.
    """
    if isinstance(error, Exception) and not isinstance(error, ExceptionGroup):  # nearly always
        return
    if isinstance(error, GeneratorExit) and awaited and asyncio._get_running_loop() is None:
        raise error
    if ends_process(error) or isinstance(error, asyncio.CancelledError):
        raise error
    if isinstance(error, BaseExceptionGroup) and error.split(asyncio.CancelledError)[1] is None:
        raise asyncio.CancelledError from error


def decide(
    policy: FailurePolicy,
    error: BaseException,
    *,
    attempt: int,
    tries: int,
    now: float,
    first_failed: float,
    rand: Callable[[], float] = random.random,
) -> Step:
    """What follows from ``error``. Pure.

    Args:
        policy: the consumer's.
        error: what the handler (or decoding) raised.
        attempt: which attempt this was, from 1; an attempt is one delivery's worth of in-place tries.
        tries: how often it ran in this delivery, this run included.
        now: seconds since the epoch.
        first_failed: when the message failed first; ``now`` if this was the first time.
        rand: uniform in [0, 1), for jitter.
    """
    given_up = False
    if _is_alone(error) and not isinstance(error, _SPEAKING):  # as nearly always: it says nothing of what is to follow
        given_up = isinstance(error, policy.give_up_on)
    else:
        # What the handler has caught, and mended or not before this one, says nothing about this one: a `Discard` that was caught
        # on the way to another failure would lose the message.
        chain = tuple(causes(error, handled=False))
        for cause in chain:
            if isinstance(cause, Discard) and _may_discard(chain):
                return Drop(cause.reason)
            if isinstance(cause, DeadLetter):
                return Dead("handler", cause)
            if isinstance(cause, RetryLater):
                try:
                    return _later(policy, cause, attempt, now, first_failed)
                except (
                    ConfigurationError
                ) as wrong:  # a delay that is none: a failure like others, with a text that says so
                    error = wrong
                    break
        for cause in causes(error, handled=False):
            if isinstance(cause, DecodeError):
                return Dead("decode", error)
            given_up = given_up or isinstance(cause, policy.give_up_on)
    if given_up:
        return Dead("handler", error)
    wait = policy.in_place.wait(tries, rand) if policy.in_place is not None else None
    if wait is not None:
        return Again(wait) if _in_time(policy, now + wait, first_failed) else Dead("expired", error)
    delay = policy.chain.after(attempt) if policy.chain is not None else None
    if delay is None:
        return Dead("handler", error)
    return Hop(delay, attempt + 1) if _in_time(policy, now + delay, first_failed) else Dead("expired", error)


def _later(policy: FailurePolicy, later: RetryLater, attempt: int, now: float, first_failed: float) -> Step:
    chain = policy.chain if policy.delays else None  # one that is only drained is none
    if later.delay is not None:
        delay: float | None = seconds(later.delay, name="RetryLater delay")
    elif chain is not None:
        delay = chain.after(attempt)
    else:
        delay = 1.0  # asked to wait, with nothing that says how long: not at once, and not for long
    if delay is None:
        return Dead("handler", later)
    if later.count and chain is not None and chain.after(attempt) is None:
        return Dead("handler", later)
    if not _in_time(policy, now + delay, first_failed):
        return Dead("expired", later)
    return Hop(delay, attempt + 1 if later.count else attempt)


def _in_time(policy: FailurePolicy, end: float, first_failed: float) -> bool:
    return policy.give_up_after is None or end <= first_failed + seconds(policy.give_up_after)
