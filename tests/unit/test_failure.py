"""What follows from a failure: every branch of `decide`, and the laws that hold for any policy."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atleastonce import (
    Backoff,
    ConfigurationError,
    DeadLetter,
    DecodeError,
    Discard,
    FailurePolicy,
    RetryChain,
    RetryLater,
)
from atleastonce.patterns.failure import Again, Dead, Drop, Hop, causes, decide, room

STEADY = Backoff("100ms", factor=2, maximum="1s", max_attempts=3, jitter=0)
CHAIN = RetryChain("5s", "30s", "5m")
FULL = FailurePolicy(in_place=STEADY, chain=CHAIN, give_up_on=(KeyError,))
CHAINED = FailurePolicy(in_place=None, chain=CHAIN)
PLACED = FailurePolicy(in_place=STEADY)
BARE = FailurePolicy(in_place=None)
ERROR = ValueError("x")


def step(policy: FailurePolicy, error: BaseException = ERROR, **given: Any) -> Any:
    values = {"attempt": 1, "tries": 1, "now": 1000.0, "first_failed": 1000.0, "rand": lambda: 0.0}
    return decide(policy, error, **{**values, **given})


def caused(error: BaseException, by: BaseException) -> BaseException:
    error.__cause__ = by
    return error


def during(error: BaseException, by: BaseException, *, hidden: bool = False) -> BaseException:
    error.__context__ = by
    error.__suppress_context__ = hidden
    return error


def test_in_place_then_the_chain_then_dead() -> None:
    assert step(FULL, tries=1) == Again(0.1)
    assert step(FULL, tries=2) == Again(0.2)
    assert step(FULL, tries=3) == Hop(5.0, 2)
    assert step(FULL, tries=1, attempt=2) == Again(0.1), "a new delivery begins anew in place"
    assert step(FULL, tries=3, attempt=2) == Hop(30.0, 3)
    assert step(FULL, tries=3, attempt=3) == Hop(300.0, 4)
    assert step(FULL, tries=3, attempt=4) == Dead("handler", ERROR)
    assert step(FULL, tries=99, attempt=32767) == Dead("handler", ERROR)


def test_policies_with_a_part_left_out() -> None:
    assert step(CHAINED) == Hop(5.0, 2)
    assert step(PLACED, tries=2) == Again(0.2)
    assert step(PLACED, tries=3) == Dead("handler", ERROR)
    assert step(BARE) == Dead("handler", ERROR)


def test_what_no_repetition_mends_is_dead_at_once() -> None:
    decode, fatal = DecodeError("no json"), KeyError("sku")
    assert step(FULL, decode) == Dead("decode", decode)
    assert step(FULL, fatal) == Dead("handler", fatal)
    wrapped = caused(RuntimeError("wrapped"), KeyError("sku"))
    assert step(FULL, wrapped) == Dead("handler", wrapped)
    assert step(FULL, caused(RuntimeError(), decode)).stage == "decode"
    assert step(PLACED, fatal) == Again(0.1), "another policy's fatal error is not this one's"

    class Special(KeyError): ...

    assert isinstance(step(FULL, Special()), Dead)


def test_the_handlers_own_decisions_come_first() -> None:
    dead = DeadLetter("unknown sku")
    assert step(FULL, dead) == Dead("handler", dead)
    assert step(FULL, Discard("stale")) == Drop("stale")
    assert step(FULL, caused(KeyError(), Discard("stale"))) == Drop("stale")
    assert step(FULL, caused(dead, KeyError("why"))) == Dead("handler", dead)
    assert step(FULL, caused(Discard("stale"), ValueError("why"))) == Drop("stale")
    assert step(FULL, caused(DecodeError("x"), RetryLater("7s"))) == Hop(7.0, 2)


@pytest.mark.parametrize(
    ("policy", "later", "attempt", "expected"),
    [
        (FULL, RetryLater("10m"), 1, Hop(600.0, 2)),
        (FULL, RetryLater("10m"), 3, Hop(600.0, 4)),
        (FULL, RetryLater("10m"), 4, None),
        (FULL, RetryLater("10m", count=False), 4, Hop(600.0, 4)),
        (FULL, RetryLater("10m", count=False), 1, Hop(600.0, 1)),
        (FULL, RetryLater(), 1, Hop(5.0, 2)),
        (FULL, RetryLater(), 2, Hop(30.0, 3)),
        (FULL, RetryLater(), 4, None),
        (FULL, RetryLater(count=False), 2, Hop(30.0, 2)),
        (BARE, RetryLater("10m"), 7, Hop(600.0, 8)),
        (BARE, RetryLater(), 7, Hop(1.0, 8)),
        (BARE, RetryLater(2.5, count=False), 7, Hop(2.5, 7)),
        (BARE, RetryLater(0), 1, Hop(0.0, 2)),
    ],
)
def test_retry_later(policy: FailurePolicy, later: RetryLater, attempt: int, expected: Hop | None) -> None:
    assert step(policy, later, attempt=attempt, tries=5) == (expected or Dead("handler", later))


@pytest.mark.parametrize("delay", ["soon", -1, float("nan"), float("inf"), ["5s"]])
def test_a_retry_later_that_names_no_delay_is_a_failure_like_others(delay: Any) -> None:
    later = RetryLater(delay)
    assert step(FULL, later) == Again(0.1)
    assert step(FULL, later, tries=3) == Hop(5.0, 2)
    end = step(FULL, later, tries=3, attempt=4)
    assert isinstance(end, Dead)
    assert isinstance(end.error, ConfigurationError)
    assert "RetryLater delay" in str(end.error)


def test_groups_and_causes_are_searched() -> None:
    dead = DeadLetter("x")
    nested = ExceptionGroup("a", [ValueError(), ExceptionGroup("b", [OSError(), caused(TypeError(), dead)])])
    assert step(FULL, nested) == Dead("handler", dead)
    assert step(FULL, caused(RuntimeError(), nested)) == Dead("handler", dead)
    fatal = ExceptionGroup("a", [ValueError(), KeyError("k")])
    assert step(FULL, fatal) == Dead("handler", fatal)
    assert step(FULL, ExceptionGroup("a", [ValueError(), RetryLater("7s")])) == Hop(7.0, 2)
    assert step(FULL, ExceptionGroup("a", [ValueError(), OSError()])) == Again(0.1)


def test_what_one_task_discards_is_not_done_while_another_failed() -> None:
    assert step(FULL, ExceptionGroup("a", [Discard("x"), Discard("y")])) == Drop("x")
    assert step(FULL, ExceptionGroup("a", [Discard("x"), ValueError()])) == Again(0.1)
    assert step(FULL, ExceptionGroup("a", [ExceptionGroup("b", [Discard("x")]), ValueError()])) == Again(0.1)
    assert step(FULL, ExceptionGroup("a", [Discard("x"), RetryLater("7s")])) == Hop(7.0, 2)
    assert isinstance(step(FULL, ExceptionGroup("a", [Discard("x"), DeadLetter("y")])), Dead)
    assert step(FULL, caused(RuntimeError(), ExceptionGroup("a", [Discard("x"), ValueError()]))) == Again(0.1)


def test_what_was_caught_before_is_no_cause() -> None:
    for earlier in (KeyError(), DecodeError("x")):
        assert step(FULL, during(ValueError(), earlier)) == Again(0.1)
        assert step(FULL, during(ValueError(), earlier, hidden=True)) == Again(0.1)
        assert isinstance(step(FULL, caused(ValueError(), earlier)), Dead)


def test_a_decision_that_was_caught_is_none_of_what_failed_after_it() -> None:
    for earlier in (Discard("x"), DeadLetter("x"), RetryLater("7s")):
        assert step(FULL, during(ValueError(), earlier)) == Again(0.1)
        assert step(FULL, during(ValueError(), earlier, hidden=True)) == Again(0.1)
        assert step(FULL, during(earlier, ValueError())) == step(FULL, earlier)


def test_cycles_and_long_chains_end() -> None:
    one, two = ValueError(), OSError()
    caused(one, two)
    caused(two, one)
    assert list(causes(one)) == [one, two]
    assert step(FULL, one) == Again(0.1)
    group = ExceptionGroup("g", [one])
    two.__cause__ = group
    assert list(causes(group)) == [group, one, two]
    deep: BaseException = KeyError("the first")
    for _ in range(5000):
        deep = caused(ValueError(), deep)
    assert isinstance(step(FULL, deep), Dead)


def test_a_cancellation_within_a_group_is_no_decision() -> None:
    group = BaseExceptionGroup("a", [asyncio.CancelledError(), ValueError()])
    assert step(FULL, group) == Again(0.1)
    dead = DeadLetter("x")
    assert step(FULL, BaseExceptionGroup("a", [asyncio.CancelledError(), dead])) == Dead("handler", dead)


def test_give_up_after_is_decided_before_a_wait_that_could_not_end_in_time() -> None:
    policy = FailurePolicy(in_place=STEADY, chain=CHAIN, give_up_after="60s")
    assert step(policy, tries=1, now=1059.9) == Again(0.1)
    assert step(policy, tries=1, now=1059.91) == Dead("expired", ERROR)
    assert step(policy, tries=3, now=1055.0) == Hop(5.0, 2)
    assert step(policy, tries=3, now=1055.1) == Dead("expired", ERROR)
    assert step(policy, tries=3, attempt=3, now=1000.0) == Dead("expired", ERROR), "300 s do not fit in 60"
    later = RetryLater("61s")
    assert step(policy, later) == Dead("expired", later)
    assert step(policy, RetryLater("60s")) == Hop(60.0, 2)
    assert step(policy, tries=3, attempt=4, now=5000.0) == Dead("handler", ERROR), "nothing to wait for: not expired"


def test_a_chain_that_is_only_drained_is_none() -> None:
    policy = FailurePolicy(in_place=None, chain=RetryChain(drain_only=("30s", "5m", "30s")))
    assert policy.delays == ()
    assert policy.drained == (30.0, 300.0)
    assert step(policy) == Dead("handler", ERROR)
    assert step(policy, RetryLater()) == Hop(1.0, 2)
    assert step(policy, RetryLater("10m")) == Hop(600.0, 2)
    changed = FailurePolicy(in_place=None, chain=RetryChain("5s", "5m", drain_only=["30s"]))
    assert (changed.delays, changed.drained) == ((5.0, 300.0), (30.0,))
    assert step(changed, attempt=3) == Dead("handler", ERROR), "a third attempt, from the hop that was removed"


# ------------------------------------------------------------------------------------------------------ laws

BACKOFFS = st.builds(
    Backoff,
    st.floats(0, 10),
    factor=st.floats(1, 10),
    maximum=st.floats(0, 100),
    max_attempts=st.integers(1, 6),
    jitter=st.floats(0, 1),
)
CHAINS = st.lists(st.floats(0.001, 1e6), min_size=1, max_size=8).map(lambda delays: RetryChain(*sorted(delays)))
POLICIES = st.builds(FailurePolicy, in_place=st.none() | BACKOFFS, chain=st.none() | CHAINS)


@given(POLICIES, st.floats(0, 0.999))
def test_what_always_fails_gets_all_its_attempts_and_then_is_dead(policy: FailurePolicy, rand: float) -> None:
    attempt, tries, now, runs = 1, 0, 1000.0, 0
    while True:
        runs += 1
        tries += 1
        taken = decide(policy, ERROR, attempt=attempt, tries=tries, now=now, first_failed=1000.0, rand=lambda: rand)
        if isinstance(taken, Again):
            now += taken.wait
        elif isinstance(taken, Hop):
            assert taken.attempt == attempt + 1
            attempt, tries, now = taken.attempt, 0, now + taken.delay
        else:
            break
    assert taken == Dead("handler", ERROR)
    assert attempt == len(policy.delays) + 1
    assert runs == attempt * (policy.in_place.max_attempts or 0 if policy.in_place else 1)


@given(POLICIES, st.floats(0.001, 1e5), st.integers(1, 9), st.integers(1, 7), st.floats(0, 2e5), st.floats(0, 0.999))
def test_no_wait_ends_after_give_up_after(
    policy: FailurePolicy, life: float, attempt: int, tries: int, age: float, rand: float
) -> None:
    limited = FailurePolicy(in_place=policy.in_place, chain=policy.chain, give_up_after=life)
    now = 1000.0 + age
    taken = decide(limited, ERROR, attempt=attempt, tries=tries, now=now, first_failed=1000.0, rand=lambda: rand)
    free = decide(policy, ERROR, attempt=attempt, tries=tries, now=now, first_failed=1000.0, rand=lambda: rand)
    wait = taken.wait if isinstance(taken, Again) else taken.delay if isinstance(taken, Hop) else None
    if wait is not None:
        assert now + wait <= 1000.0 + life
        assert taken == free
    elif taken != free:
        assert taken == Dead("expired", ERROR)


def nested(error: BaseException, shape: list[str]) -> BaseException:
    """``error`` inside of causes, contexts and groups."""
    for layer in shape:
        if layer == "group":
            error = BaseExceptionGroup("several", [OSError("other"), error])
        elif layer == "cause":
            error = caused(RuntimeError("outer"), error)
        elif layer == "context":
            error = during(RuntimeError("outer"), error)
        else:
            error = ExceptionGroup("one", [error]) if isinstance(error, Exception) else error
    return error


@given(
    POLICIES,
    st.lists(st.sampled_from(["group", "cause", "context", "single"]), max_size=6),
    st.integers(1, 9),
    st.integers(1, 7),
)
def test_what_ends_a_message_is_found_however_deep(
    policy: FailurePolicy, shape: list[str], attempt: int, tries: int
) -> None:
    fatal = FailurePolicy(in_place=policy.in_place, chain=policy.chain, give_up_on=(KeyError,))
    causing = [layer for layer in shape if layer != "context"]  # what was caught before is no cause
    given_up = nested(KeyError("x"), causing)
    assert step(fatal, given_up, attempt=attempt, tries=tries) == Dead("handler", given_up)
    poison = nested(DecodeError("x"), causing)
    assert step(policy, poison, attempt=attempt, tries=tries) == Dead("decode", poison)
    decided = DeadLetter("x")
    assert step(policy, nested(decided, causing), attempt=attempt, tries=tries) == Dead("handler", decided)
    stale = step(policy, nested(Discard("x"), causing), attempt=attempt, tries=tries)
    if "group" in shape:  # another task failed: what one of them discarded is not done
        assert stale != Drop("x")
    elif "single" not in shape:
        assert stale == Drop("x")


@given(
    POLICIES, st.floats(0, 1e6), st.booleans(), st.integers(1, 9), st.integers(1, 7), st.none() | st.floats(0.001, 1e6)
)
def test_a_deferral_waits_as_asked_or_ends(
    policy: FailurePolicy, delay: float, count: bool, attempt: int, tries: int, life: float | None
) -> None:
    limited = FailurePolicy(in_place=policy.in_place, chain=policy.chain, give_up_after=life)
    later = RetryLater(delay, count=count)
    taken = step(limited, later, attempt=attempt, tries=tries)
    if isinstance(taken, Hop):
        assert taken == Hop(delay, attempt + 1 if count else attempt)
        assert life is None or delay <= life
    elif life is not None and delay > life:
        assert taken in (Dead("expired", later), Dead("handler", later))
    else:
        assert taken == Dead("handler", later)
        assert count
        assert attempt > len(policy.delays) > 0, "only a chain that has ended ends it"


@given(
    POLICIES, st.integers(1, 40_000), st.integers(1, 1000), st.floats(0, 2e9), st.floats(0, 2e9), st.floats(0, 0.999)
)
def test_any_failure_has_an_answer_and_no_wait_is_short(
    policy: FailurePolicy, attempt: int, tries: int, now: float, first: float, rand: float
) -> None:
    taken = decide(policy, ERROR, attempt=attempt, tries=tries, now=now, first_failed=first, rand=lambda: rand)
    if isinstance(taken, Again):
        assert policy.in_place is not None
        assert taken.wait >= min(policy.in_place.initial, policy.in_place.maximum)
    elif isinstance(taken, Hop):
        assert taken == Hop(policy.delays[attempt - 1], attempt + 1), (
            "jitter makes no hop shorter, nor its channel another"
        )
    else:
        assert taken == Dead("handler", ERROR)


@given(BACKOFFS, st.integers(1, 5), st.floats(0, 0.999))
def test_jitter_only_lengthens(backoff: Backoff, attempt: int, rand: float) -> None:
    least, wait = backoff.wait(attempt, lambda: 0.0), backoff.wait(attempt, lambda: rand)
    assert (least is None) is (wait is None)
    if least is not None and wait is not None:
        assert least <= wait <= least * (1 + backoff.jitter)


@given(CHAINS, st.floats(0, 1e7))
def test_a_room_is_the_longest_that_is_not_too_long(chain: RetryChain, delay: float) -> None:
    found = room(chain.delays, delay)
    assert found in chain.delays
    if found > delay:
        assert found == chain.delays[0], "never shorter than the shortest"
    else:
        assert not [other for other in chain.delays if found < other <= delay]


# ---------------------------------------------------------------------------------------------------- bad input


def test_chains() -> None:
    assert RetryChain("5s", 30, "5m").delays == (5.0, 30.0, 300.0)
    assert RetryChain("5s", "5s").delays == (5.0, 5.0)
    assert RetryChain(0.0012, 0.0015).delays == (0.002, 0.002), "rounded up to what a channel can be named after"
    assert RetryChain.exponential("5s", factor=6, hops=3).delays == (5.0, 30.0, 180.0)
    assert RetryChain.exponential("5s", factor=6, hops=4, maximum="1m").delays == (5.0, 30.0, 60.0, 60.0)
    assert len(RetryChain.exponential(1, factor=1e300, hops=1000).delays) == 1000
    assert CHAIN.after(1) == 5.0
    assert CHAIN.after(4) is None


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: RetryChain(), "needs at least one delay"),
        (lambda: RetryChain("0s"), "at least 0.001 seconds"),
        (lambda: RetryChain("5s", "4s"), "a delay is shorter than the one before it"),
        (lambda: RetryChain("soon"), "is no duration"),
        (lambda: RetryChain(*range(1, 1100)), "has 1099 delays; 1000 are the most"),
        (lambda: RetryChain("5s", "30s", drain_only=("30s",)), "30s is a delay of the chain as well"),
        (lambda: RetryChain("5s", drain_only="30s"), "give a list of delays"),
        (lambda: RetryChain("5s", drain_only=cast(Any, 30)), "give a list of delays"),
        (lambda: RetryChain("5s", drain_only=["soon"]), "is no duration"),
        (lambda: RetryChain("5s", drain_only=range(6, 1100)), "has 1095 delays; 1000 are the most"),
        (lambda: FailurePolicy(dead_letter=cast(Any, True)), "give DeadLetterPolicy"),
        (lambda: RetryChain.exponential("5s", hops=0), "hops=0"),
        (lambda: RetryChain.exponential("5s", hops=10**9), "hops=1000000000"),
        (lambda: RetryChain.exponential("5s", hops=3, factor=0.5), "factor=0.5"),
        (lambda: RetryChain.exponential("5s", hops=3, factor=float("nan")), "factor=nan"),
        (lambda: FailurePolicy(in_place=Backoff()), "cannot fail in place for ever"),
        (lambda: FailurePolicy(timeout="0s"), "timeout"),
        (lambda: FailurePolicy(give_up_after="never"), "give_up_after"),
    ],
)
def test_a_policy_that_cannot_be_is_refused(make: Any, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        make()
