"""Stores without a server: URLs and options, scopes, the memory's bound, and that the suite sees what is broken."""

import asyncio

import pytest

from atleastonce import ConfigurationError, MemoryStore
from atleastonce.stores import ClaimRequest, Completion, Status, open_store, protocol, scope_key
from atleastonce.testing.stores import model


def test_scopes_do_not_run_into_each_other() -> None:
    assert scope_key("a/b", "c", "d") != scope_key("a", "b/c", "d")
    assert scope_key("é", "g", "h").isascii()
    for parts in (("", "g", "h"), ("s" * 300, "g" * 300, "h")):
        with pytest.raises(ConfigurationError):
            scope_key(*parts)


@pytest.mark.parametrize(
    ("url", "options", "text"),
    [
        ("cassandra://x", {}, "unknown scheme"),
        ("postgresql://u:hunter2@h/db", {"conections": 1}, 'did you mean "connections"'),
        ("postgresql://h/db", {"prefix": "a; drop"}, "cannot begin a table's name"),
        ("redis://h", {"prefix": "{x}"}, "braces"),
        ("sqlite://host/x.db", {}, "sqlite:///"),
        ("postgresql://h/db", {"connections": 0}, "connections"),
    ],
)
def test_bad_urls_and_options_are_one_line(url: str, options: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text) as caught:
        open_store(url, options)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_reprs_hide_passwords() -> None:
    for url in ("postgresql://u:hunter2@h/db", "redis://u:hunter2@h/0", "redis://h/0?password=hunter2"):
        assert "hunter2" not in repr(open_store(url))


async def test_memory_is_bounded_by_what_has_not_expired() -> None:
    """Without anybody calling purge."""
    now = 0.0
    async with MemoryStore(clock=lambda: now) as store:
        for turn in range(100):
            now += 10
            requests = [ClaimRequest("s", f"{turn}-{n}", lease=1, ttl=1) for n in range(500)]
            await store.claim(requests)
        assert (await store.stats()).leases.rows < 12_000


async def test_the_exact_ends_of_leases_and_lives() -> None:
    now = 1_000.0
    async with MemoryStore(clock=lambda: now) as store:
        (first,) = await store.claim([ClaimRequest("s", "a", lease=10, ttl=100)])
        now = 1_009.999
        (other,) = await store.claim([ClaimRequest("s", "a")])
        assert other.status is Status.BUSY
        assert other.retry_after == pytest.approx(0.001)
        now = 1_109.999
        assert await store.purge() == 0
        now = 1_110.0
        assert await store.purge() == 1
        assert first.lease is not None
        assert not (await store.complete([Completion(first.lease)]))[0].ok


@pytest.mark.parametrize("hole", ["complete", "release", "extend"])
def test_the_model_sees_a_store_that_ignores_tokens(monkeypatch: pytest.MonkeyPatch, hole: str) -> None:
    """As some peers' stores do."""
    monkeypatch.setattr(protocol, hole, lambda record, *_: record is not None)
    steps = [("claim", [("a", b"1")]), ("release", [0]), ("claim", [("a", b"1")]), (hole, [0])]

    async def run() -> None:
        async with MemoryStore() as store:
            await model.run(store, steps)

    with pytest.raises(AssertionError):
        asyncio.run(run())
