"""A process that claims: ``python -m atleastonce.testing.stores.worker`` with its orders as JSON in the first argument.

Orders: ``url``, ``options``, ``scope``, ``ids``, ``lease``, ``mode``. ``race``: waits for a line on its input, claims all ids in
lists of 50, prints what it was granted as JSON. ``hold``: claims, prints, and waits to be killed.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys

from atleastonce.stores import ClaimRequest, open_store


async def work(orders: dict[str, object]) -> None:
    ids = list(map(str, orders["ids"]))  # type: ignore[call-overload]
    async with open_store(str(orders["url"]), orders["options"]) as store:  # type: ignore[arg-type]
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.readline)
        random.shuffle(ids)
        won: dict[str, int] = {}
        odd: list[str] = []
        for start in range(0, len(ids), 50):
            asked = [
                ClaimRequest(str(orders["scope"]), id, b"\x01" * 32, float(str(orders["lease"])))
                for id in ids[start : start + 50]
            ]
            for request, claim in zip(asked, await store.claim(asked), strict=True):
                if claim.granted:
                    won[request.id] = claim.fence
                elif claim.status.value != "busy":
                    odd.append(f"{claim.status.value} {claim.fault}")
        sys.stdout.write(json.dumps({"won": won, "odd": odd}) + "\n")
        sys.stdout.flush()
        if orders["mode"] == "hold":
            await asyncio.to_thread(sys.stdin.readline)


if __name__ == "__main__":
    asyncio.run(work(json.loads(sys.argv[1])))
