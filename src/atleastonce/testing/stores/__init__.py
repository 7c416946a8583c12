"""The store suite: what every store of idempotency has to show, for ours and for anybody's.

Whoever writes a store subclasses `StoreSuite` in a test file and overrides its fixture::

    from atleastonce.testing.stores import StoreHarness, StoreSuite


    class TestCassandra(StoreSuite):
        @pytest.fixture
        def harness(self):
            return StoreHarness("cassandra://127.0.0.1/test", {"create": True})

The URL must be one that `atleastonce.stores.open_store` knows (entry-point group ``atleastonce.stores``): child processes open it
too. Every case works in a scope of its own, so cases may run in parallel on one database. `InboxSuite` is for stores that are
`TransactionalStore`, `OutboxSuite` for those that are `OutboxStore`; `KilledStoreSuite` for those whose server a test may kill.
"""

import pytest

pytest.register_assert_rewrite(
    *(
        f"{__name__}.{module}"
        for module in ("suite", "sharing", "model", "inbox", "outbox", "relaying", "killed", "bench")
    )
)

from atleastonce.testing.stores.bench import StoreHarness  # noqa: E402
from atleastonce.testing.stores.inbox import InboxSuite  # noqa: E402
from atleastonce.testing.stores.killed import KilledStoreSuite  # noqa: E402
from atleastonce.testing.stores.outbox import OutboxSuite  # noqa: E402
from atleastonce.testing.stores.suite import StoreSuite  # noqa: E402

__all__ = ["InboxSuite", "KilledStoreSuite", "OutboxSuite", "StoreHarness", "StoreSuite"]
