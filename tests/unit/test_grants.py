"""When a run may begin under a lease."""

from __future__ import annotations

import time
from typing import Any

from atleastonce.once.grant import Grant
from atleastonce.once.item import Item
from atleastonce.stores import Claim, ClaimRequest, Lease, Status, new_token


def test_a_run_begins_only_under_a_lease_that_lasts_by_ones_own_clock() -> None:
    """A process that was frozen has a successor, and must not go on with what it had not begun."""
    delivery: Any = None
    token = new_token()
    grant = Grant(Item(delivery, None, "k", b""), ClaimRequest("s", "k", token=token))
    assert grant.over
    grant.won(Claim(Status.NEW, Lease("s", "k", token), 1, 1), time.monotonic() + 60)
    assert not grant.over
    grant.until = time.monotonic()
    assert grant.over
    grant.until = time.monotonic() + 60
    grant.lost = True
    assert grant.over
