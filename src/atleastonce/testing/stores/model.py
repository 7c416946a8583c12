"""Random sequences of calls, against the protocol written down once more, as a table in the test's own words."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atleastonce.stores import Claim, Completion, Lease, LeaseStore, Status
from atleastonce.testing.stores.bench import Base, StoreHarness, ask, fresh_scope

_IDS = st.sampled_from(["a", "b"])
_WHO = st.integers(0, 5)
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("claim"), st.lists(st.tuples(_IDS, st.sampled_from([b"1", b"2"])), min_size=1, max_size=4)),
        st.tuples(st.sampled_from(["extend", "complete", "release"]), st.lists(_WHO, min_size=1, max_size=3)),
    ),
    min_size=1,
    max_size=14,
)


class _Model:
    """What is true of one id while no lease ends."""

    def __init__(self) -> None:
        self.known: dict[str, dict[str, Any]] = {}

    def claim(self, id: str, fingerprint: bytes, token: bytes) -> tuple[Status, bytes]:
        row = self.known.setdefault(
            id, {"print": fingerprint, "state": "free", "token": None, "result": b"", "attempts": 0}
        )
        if row["print"] != fingerprint:
            return Status.MISMATCH, b""
        if row["state"] == "done":
            return Status.DONE, row["result"]
        if row["state"] == "held":
            return Status.BUSY, b""
        row.update(state="held", token=token, attempts=row["attempts"] + 1)
        return Status.NEW, b""

    def end(self, verb: str, lease: Lease, result: bytes) -> bool:
        row = self.known[lease.id]
        if row["token"] != lease.token:
            return False
        if row["state"] == "held":
            if verb == "complete":
                row.update(state="done", result=result)
            elif verb == "release":
                row["state"] = "free"
            return True
        return (verb, row["state"]) in {("complete", "done"), ("release", "free")}


async def run(store: LeaseStore, steps: list[Any]) -> None:
    """Raises AssertionError at the first answer that the model does not give."""
    scope, model, granted = fresh_scope(), _Model(), list[Claim]()
    fences: dict[str, int] = {}
    for number, (verb, items) in enumerate(steps):
        if verb == "claim":
            requests = [ask(scope, id, print_=fingerprint) for id, fingerprint in items]
            expected = [model.claim(each.id, each.fingerprint, each.token) for each in requests]
            answers = await store.claim(requests)
            assert [(each.status, each.result) for each in answers] == expected
            for claim in answers:
                if claim.lease is not None:
                    assert claim.fence > fences.get(claim.lease.id, 0)
                    assert claim.attempts == model.known[claim.lease.id]["attempts"]
                    fences[claim.lease.id] = claim.fence
                    granted.append(claim)
            continue
        leases = [
            each.lease for who in dict.fromkeys(items) for each in granted[who : who + 1] if each.lease is not None
        ]
        result = f"{number}".encode()
        wanted = [model.end(verb, lease, result) for lease in leases]
        if verb == "extend":
            outcomes = await store.extend(leases, 30)
        elif verb == "complete":
            outcomes = await store.complete([Completion(lease, result) for lease in leases])
        else:
            outcomes = await store.release(leases)
        assert [each.ok for each in outcomes] == wanted


class Modelled(Base):
    """The case."""

    async def test_any_sequence_of_calls_is_answered_as_the_model_does(self, harness: StoreHarness) -> None:
        loop = asyncio.get_running_loop()
        async with harness.store() as store:

            @settings(
                max_examples=100,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
                derandomize=False,
            )
            @given(_STEPS)
            def check(steps: list[Any]) -> None:
                asyncio.run_coroutine_threadsafe(run(store, steps), loop).result(60)

            await asyncio.to_thread(check)
