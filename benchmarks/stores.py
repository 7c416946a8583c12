"""Claims and completions in lists against one by one, on each store, in one run.

    python benchmarks/stores.py [--stores sqlite redis postgres mysql memory] [--messages 2000] [--list 500] [--json]

One by one is what a loop does that asks for each message: claim, complete, each a round trip. Both sides use the same store object
with the same durability. PostgreSQL, MariaDB and Redis come from `atleastonce.brokers`, private to the run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Sequence

from atleastonce.brokers import session
from atleastonce.stores import ClaimRequest, Completion, LeaseStore, open_store, scope_key


async def loop(store: LeaseStore, scope: str, ids: Sequence[str], size: int) -> tuple[float, list[float]]:
    """Seconds for all, and for each claim call."""
    calls: list[float] = []
    begin = time.perf_counter()
    for start in range(0, len(ids), size):
        before = time.perf_counter()
        claims = await store.claim([ClaimRequest(scope, id, b"x" * 32) for id in ids[start : start + size]])
        calls.append(time.perf_counter() - before)
        outcomes = await store.complete([Completion(claim.lease, b"receipt") for claim in claims if claim.lease])
        if len(outcomes) != len(claims) or not all(each.ok for each in outcomes):
            raise SystemExit("a claim was not granted or not completed: the figures would mean nothing")
    return time.perf_counter() - begin, calls


async def measure(name: str, url: str, options: dict[str, object], messages: int, size: int) -> dict[str, object]:
    """Three turns of each, alternating; the medians."""
    rates: dict[str, list[float]] = {"one": [], "list": []}
    p99 = {"one": 0.0, "list": 0.0}
    async with open_store(url, options) as store:
        for turn in range(3):
            for kind, each in (("one", 1), ("list", size)):
                count = messages if kind == "list" else max(200, messages // 10)
                scope = scope_key("bench", f"{kind}{turn}{time.time_ns()}", "h")
                seconds, calls = await loop(store, scope, [f"m-{number}" for number in range(count)], each)
                rates[kind].append(count / seconds)
                p99[kind] = sorted(calls)[int(len(calls) * 0.99)] * 1000
    one, listed = statistics.median(rates["one"]), statistics.median(rates["list"])
    return {
        "store": name, "one_by_one_per_s": round(one), "lists_per_s": round(listed), "ratio": round(listed / one, 1),
        "claim_p99_ms_one": round(p99["one"], 2), "claim_p99_ms_list": round(p99["list"], 2), "list": size,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--stores", nargs="+", default=["memory", "sqlite", "redis", "postgres", "mysql"])
    parser.add_argument("--messages", type=int, default=5000)
    parser.add_argument("--list", type=int, default=500, dest="size")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    servers = [name for name in ("redis", "postgres", "mysql") if name in chosen.stores]
    with session(servers) as running, tempfile.TemporaryDirectory() as folder:
        found = []
        for name in chosen.stores:
            if name in running.unavailable:
                print(f"{name}: {running.unavailable[name].reason}")
                continue
            url = {"memory": "memory://", "sqlite": f"sqlite:///{folder}/bench.db"}.get(name) or running[name].url
            options: dict[str, object] = {"create": True} if name in ("postgres", "mysql") else {}
            found.append(asyncio.run(measure(name, url, options, chosen.messages, chosen.size)))
            if not chosen.json:
                row = found[-1]
                print(
                    f"{name:9} one by one {row['one_by_one_per_s']:>7}/s (p99 {row['claim_p99_ms_one']} ms)   lists of "
                    f"{chosen.size} {row['lists_per_s']:>7}/s (p99 {row['claim_p99_ms_list']} ms)   {row['ratio']}x"
                )
        if chosen.json:
            print(json.dumps(found))


if __name__ == "__main__":
    main()
