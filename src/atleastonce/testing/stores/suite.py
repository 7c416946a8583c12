"""The cases every lease store passes: the protocol, its limits, time."""

from __future__ import annotations

import asyncio
import time

import pytest

from atleastonce.contract import Status as Ended
from atleastonce.errors import Closed
from atleastonce.stores import ClaimRequest, Completion, Lease, LeaseStore, Status, new_token
from atleastonce.stores.records import MAX_ID, MAX_RESULT
from atleastonce.testing.stores.bench import StoreHarness, ask, fresh_scope, one, taken_over, until
from atleastonce.testing.stores.model import Modelled
from atleastonce.testing.stores.sharing import Sharing


class StoreSuite(Sharing, Modelled):
    """Every case for a `LeaseStore`. Subclass it with a name that pytest collects, and override ``harness``."""

    # ---------------------------------------------------------------------------------------------------- one message

    async def test_a_result_is_replayed(self, store: LeaseStore, scope: str) -> None:
        first = await one(store, ask(scope))
        assert first.status is Status.NEW
        assert first.attempts == 1
        assert first.lease is not None
        (done,) = await store.complete([Completion(first.lease, b"\x00receipt\xff")])
        assert done.ok
        for _ in range(2):
            again = await one(store, ask(scope))
            assert (again.status, again.result, again.lease) == (Status.DONE, b"\x00receipt\xff", None)

    async def test_an_empty_result_is_a_result(self, store: LeaseStore, scope: str) -> None:
        first = await one(store, ask(scope))
        assert first.lease is not None
        await store.complete([Completion(first.lease)])
        assert (await one(store, ask(scope))).status is Status.DONE

    async def test_who_holds_is_not_disturbed(self, store: LeaseStore, scope: str, harness: StoreHarness) -> None:
        await one(store, ask(scope, lease=20))
        other = await one(store, ask(scope))
        assert other.status is Status.BUSY
        assert 0 < other.retry_after <= 20.1 + harness.margin

    async def test_another_fingerprint_never_runs(self, store: LeaseStore, scope: str, harness: StoreHarness) -> None:
        """Held, given back, ended, done: the same answer."""
        wrong = ask(scope, print_=b"\x02" * 32)
        first = await one(store, ask(scope, lease=harness.lease))
        assert (await one(store, wrong)).status is Status.MISMATCH
        await asyncio.sleep(harness.lease + harness.margin)
        assert (await one(store, wrong)).status is Status.MISMATCH
        second = await one(store, ask(scope))
        assert second.status is Status.RECLAIMED
        assert second.fence > first.fence
        assert second.lease is not None
        await store.release([second.lease])
        assert (await one(store, wrong)).status is Status.MISMATCH
        third = await one(store, ask(scope))
        assert third.lease is not None
        await store.complete([Completion(third.lease, b"x")])
        assert (await one(store, wrong)).status is Status.MISMATCH
        assert (await one(store, ask(scope))).result == b"x"

    async def test_a_release_keeps_what_is_known(self, store: LeaseStore, scope: str) -> None:
        first = await one(store, ask(scope))
        assert first.lease is not None
        assert [each.ok for each in await store.release([first.lease])] == [True]
        second = await one(store, ask(scope))
        assert (second.status, second.attempts) == (Status.NEW, 2)
        assert second.fence > first.fence

    async def test_a_doubt_stays_until_it_is_done(self, store: LeaseStore, scope: str, harness: StoreHarness) -> None:
        """Giving back a reclaimed message does not undo the effect that its first holder may have had."""
        await one(store, ask(scope, lease=harness.lease))
        second = await taken_over(store, ask(scope))
        assert (second.status, second.attempts) == (Status.RECLAIMED, 2)
        assert second.lease is not None
        await store.release([second.lease])
        third = await one(store, ask(scope))
        assert (third.status, third.attempts) == (Status.RECLAIMED, 3)

    # ------------------------------------------------------------------------------------------------- the lost reply

    async def test_everything_may_be_repeated_with_its_token(self, store: LeaseStore, scope: str) -> None:
        """As a caller does whose reply was lost."""
        request = ask(scope)
        first, again = await one(store, request), await one(store, request)
        assert again == first
        assert first.lease is not None
        for _ in range(2):
            assert (await store.extend([first.lease], 30))[0].ok
        assert (await store.complete([Completion(first.lease, b"one")]))[0].ok
        assert (await store.complete([Completion(first.lease, b"two")]))[0].ok
        assert (await one(store, ask(scope))).result == b"one"
        released = await one(store, ask(scope, "m-2"))
        assert released.lease is not None
        assert [each.ok for _ in range(2) for each in await store.release([released.lease])] == [True, True]

    # ----------------------------------------------------------------------------------------------------- the zombie

    async def test_a_zombie_changes_nothing(self, store: LeaseStore, scope: str, harness: StoreHarness) -> None:
        """Peers without an owner's token let it complete or delete its successor's claim."""
        zombie = await one(store, ask(scope, lease=harness.lease))
        heir = await taken_over(store, ask(scope))
        assert heir.fence > zombie.fence
        assert zombie.lease is not None
        assert heir.lease is not None
        for outcome in (
            *await store.extend([zombie.lease], 30),
            *await store.release([zombie.lease]),
            *await store.complete([Completion(zombie.lease, b"zombie")]),
        ):
            assert outcome.status is Ended.REJECTED
        assert (await one(store, ask(scope))).status is Status.BUSY
        assert (await store.complete([Completion(heir.lease, b"heir")]))[0].ok
        assert not (await store.complete([Completion(zombie.lease, b"zombie")]))[0].ok
        assert (await one(store, ask(scope))).result == b"heir"

    async def test_who_is_late_and_without_a_rival_is_heard(
        self, store: LeaseStore, scope: str, harness: StoreHarness
    ) -> None:
        late = await one(store, ask(scope, lease=harness.lease))
        await asyncio.sleep(harness.lease * 1.5 + harness.margin)
        assert late.lease is not None
        assert (await store.complete([Completion(late.lease, b"late")]))[0].ok
        assert (await one(store, ask(scope))).result == b"late"

    async def test_a_made_up_token_holds_nothing(self, store: LeaseStore, scope: str) -> None:
        await one(store, ask(scope))
        for token in (new_token(), b"", b"\x00" * 16):
            forged = Lease(scope, "m-1", token)
            assert not (await store.extend([forged], 30))[0].ok
            assert not (await store.release([forged]))[0].ok
            assert not (await store.complete([Completion(forged)]))[0].ok
        assert not (await store.release([Lease(scope, "never claimed", new_token())]))[0].ok

    async def test_what_is_over_cannot_be_changed(self, store: LeaseStore, scope: str) -> None:
        done, free = await store.claim([ask(scope, "done"), ask(scope, "free")])
        assert done.lease is not None
        assert free.lease is not None
        await store.complete([Completion(done.lease)])
        await store.release([free.lease])
        for lease in (done.lease, free.lease):
            assert not (await store.extend([lease], 30))[0].ok
        assert not (await store.release([done.lease]))[0].ok
        assert not (await store.complete([Completion(free.lease)]))[0].ok

    # ----------------------------------------------------------------------------------------------------------- time

    async def test_an_extended_lease_lasts(self, store: LeaseStore, scope: str, harness: StoreHarness) -> None:
        held = await one(store, ask(scope, lease=harness.lease))
        assert held.lease is not None
        assert (await store.extend([held.lease], 30))[0].ok
        await asyncio.sleep(harness.lease * 1.5 + harness.margin)
        assert (await one(store, ask(scope))).status is Status.BUSY

    async def test_the_clients_clock_does_not_matter(
        self, store: LeaseStore, scope: str, harness: StoreHarness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ten minutes fast, then ten minutes slow."""
        real = time.time
        await one(store, ask(scope, "held", lease=60))
        for skew in (600, -600):
            monkeypatch.setattr(time, "time", lambda skew=skew: real() + skew)
            monkeypatch.setattr(time, "time_ns", lambda skew=skew: int((real() + skew) * 1e9))
            async with harness.store() as skewed:
                target = skewed if harness.shared else store
                assert (await one(target, ask(scope, "held"))).status is Status.BUSY
                own = await one(target, ask(scope, f"own {skew}", lease=60))
                assert (await one(store, ask(scope, f"own {skew}"))).status is Status.BUSY
                short = await one(target, ask(scope, f"short {skew}", lease=harness.lease))
                heir = await taken_over(store, ask(scope, f"short {skew}"))
                assert heir.fence > short.fence
                assert own.lease is not None
                assert (await target.complete([Completion(own.lease, b"x", ttl=60)]))[0].ok
                assert (await one(store, ask(scope, f"own {skew}"))).status is Status.DONE

    async def test_a_done_record_is_forgotten_after_its_ttl(
        self, store: LeaseStore, scope: str, harness: StoreHarness
    ) -> None:
        """Whether or not somebody purged; and its fence goes on rising."""
        first = await one(store, ask(scope))
        assert first.lease is not None
        await store.complete([Completion(first.lease, b"x", ttl=harness.lease)])

        async def forgotten() -> object:
            claim = await one(store, ask(scope, print_=b"other"))
            return claim if claim.status is Status.NEW else None

        again = await until(forgotten)
        assert again.attempts == 1
        assert again.fence > first.fence

    async def test_purge_spares_what_is_held_or_remembered(
        self, store: LeaseStore, scope: str, harness: StoreHarness
    ) -> None:
        claims = await store.claim([ask(scope, name, lease=30) for name in ("held", "free", "done", "old", "old2")])
        held, free, done, *old = [claim.lease for claim in claims if claim.lease is not None]
        await store.release([free])
        await store.complete([Completion(done, b"kept"), *(Completion(each, b"", harness.lease) for each in old)])
        before = (await store.stats()).leases.rows
        await asyncio.sleep(harness.lease * 1.5 + harness.margin)
        if harness.purges:
            # In bounded steps. Other cases' records may be purged with ours.
            assert await store.purge(limit=1) <= 2
        while await store.purge(limit=1000):
            pass
        assert before is None or before >= 3
        assert (await one(store, ask(scope, "held"))).status is Status.BUSY
        assert (await one(store, ask(scope, "free"))).attempts == 2
        assert (await one(store, ask(scope, "done"))).result == b"kept"
        assert (await store.extend([held], 30))[0].ok

    # -------------------------------------------------------------------------------------------------------- the list

    async def test_a_list_is_answered_item_by_item(self, store: LeaseStore, scope: str) -> None:
        ready = await one(store, ask(scope, "done"))
        assert ready.lease is not None
        await store.complete([Completion(ready.lease, b"r")])
        await one(store, ask(scope, "busy"))
        other = fresh_scope()
        answers = await store.claim(
            [ask(scope, "b"), ask(scope, "done"), ask(scope, ""), ask(scope, "busy"), ask(other, "busy"), ask(scope, "a"),
             ask(scope, "done", print_=b"?")]
        )  # fmt: skip
        assert [each.status.name for each in answers] == ["NEW", "DONE", "REJECTED", "BUSY", "NEW", "NEW", "MISMATCH"]
        leases = [each.lease for each in answers if each.lease is not None]
        lost = Lease(scope, "b", new_token())
        outcomes = await store.complete([Completion(each) for each in (lost, *leases)])
        assert [each.ok for each in outcomes] == [False, True, True, True]

    async def test_the_same_id_twice_in_a_list_is_granted_once(self, store: LeaseStore, scope: str) -> None:
        repeated = ask(scope)
        answers = await store.claim([repeated, ask(scope), ask(scope, print_=b"other"), repeated, ask(scope, "m-2")])
        assert [each.status.name for each in answers] == ["NEW", "BUSY", "MISMATCH", "NEW", "NEW"]
        assert answers[3] == answers[0]

    async def test_ten_thousand_duplicates_of_one_id(self, store: LeaseStore, scope: str) -> None:
        """In lists of five hundred, at once."""
        lists = [[ask(scope) for _ in range(500)] for _ in range(20)]
        answers = [each for some in await asyncio.gather(*map(store.claim, lists)) for each in some]
        assert sorted({each.status.name for each in answers}) == ["BUSY", "NEW"]
        (winner,) = [each for each in answers if each.granted]
        assert winner.lease is not None
        await store.complete([Completion(winner.lease, b"once")])
        after = [each for some in await asyncio.gather(*map(store.claim, lists)) for each in some]
        assert {(each.status, each.result) for each in after} == {(Status.DONE, b"once")}

    async def test_a_long_list(self, store: LeaseStore, scope: str) -> None:
        requests = [ask(scope, f"{number}") for number in range(2500)]
        claims = await store.claim(requests)
        assert {each.status for each in claims} == {Status.NEW}
        outcomes = await store.complete(
            [Completion(each.lease, each.lease.id.encode()) for each in claims if each.lease]
        )
        assert all(each.ok for each in outcomes)
        again = await store.claim(requests)
        assert [each.result for each in again] == [f"{number}".encode() for number in range(2500)]

    async def test_an_empty_list_asks_nothing(self, store: LeaseStore) -> None:
        assert [
            await store.claim([]),
            await store.extend([], 1),
            await store.complete([]),
            await store.release([]),
        ] == [[]] * 4

    # ------------------------------------------------------------------------------------------------------- bad input

    @pytest.mark.parametrize("id", ["", "a\0b", "x" * (MAX_ID + 1), "é" * (MAX_ID // 2 + 1), "\ud800", None, 7])
    async def test_a_bad_key_is_refused_and_harms_nobody(self, store: LeaseStore, scope: str, id: str) -> None:
        bad, good = await store.claim([ask(scope, id), ask(scope, "good")])
        assert bad.status is Status.REJECTED
        assert bad.fault is not None
        assert "key" in bad.fault.detail
        assert good.status is Status.NEW

    @pytest.mark.parametrize("id", ["x" * MAX_ID, "{a}b", "é漢🙂", "a/b#c:d%20*?'\"\\", " ", "A", "a", "a "])
    async def test_any_other_text_is_a_key(self, store: LeaseStore, scope: str, id: str) -> None:
        """Told apart by case, blanks and accents; a collation that folds them makes two messages one."""
        twins = [ask(scope, each) for each in {id, id + "!" if len(id) < 9 else "y", id.swapcase(), id.strip() or "-"}]
        assert {each.status for each in await store.claim(twins)} == {Status.NEW}
        assert {each.status for each in await store.claim(twins)} <= {Status.NEW}, "the same tokens: the same grants"
        assert (await one(store, ask(scope, id))).status is Status.BUSY

    async def test_bad_spans_are_refused(self, store: LeaseStore, scope: str) -> None:
        for span in (0, -1, float("nan"), float("inf"), 1e12):
            (claim,) = await store.claim([ClaimRequest(scope, "m", lease=span)])
            assert claim.status is Status.REJECTED
        held = await one(store, ask(scope))
        assert held.lease is not None
        assert not (await store.extend([held.lease], -1))[0].ok
        assert not (await store.complete([Completion(held.lease, ttl=0)]))[0].ok

    async def test_results_have_a_limit(self, store: LeaseStore, scope: str) -> None:
        large, fits = await store.claim([ask(scope, "large"), ask(scope, "fits")])
        assert large.lease is not None
        assert fits.lease is not None
        full = bytes(range(256)) * (MAX_RESULT // 256)
        refused, kept = await store.complete([Completion(large.lease, full + b"!"), Completion(fits.lease, full)])
        assert refused.fault is not None
        assert refused.fault.code.name == "TOO_LARGE"
        assert kept.ok
        assert (await one(store, ask(scope, "fits"))).result == full

    # -------------------------------------------------------------------------------------------------------- the rest

    async def test_a_closed_store_says_so(self, harness: StoreHarness, scope: str) -> None:
        store = harness.store()
        with pytest.raises(Closed):
            await store.claim([ask(scope)])
        await store.open()
        await store.open()
        await store.close()
        await store.close()
        with pytest.raises(Closed):
            await store.claim([ask(scope)])

    async def test_init_may_be_repeated_by_many(self, harness: StoreHarness, store: LeaseStore, scope: str) -> None:
        held = await one(store, ask(scope))
        await asyncio.gather(*(harness.store().init() for _ in range(4)))
        assert held.granted
        if harness.shared:
            assert (await one(store, ask(scope))).status is Status.BUSY

    async def test_nothing_secret_is_shown(self, store: LeaseStore, scope: str) -> None:
        held = await one(store, ask(scope))
        assert held.lease is not None
        assert repr(held.lease.token) not in repr(held)
        assert held.lease.token.hex() not in repr(held)
