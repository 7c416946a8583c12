"""From a consumer's runs to the pool that makes them: what stands around each run, and which pool fits its handler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from atleastonce.bound import Bound
from atleastonce.engine.async_pool import AsyncPool
from atleastonce.engine.batches import BatchPool, BatchProcess
from atleastonce.engine.decision import AsyncProcess, SyncProcess
from atleastonce.engine.limited import LimitedLanes
from atleastonce.engine.places import Places
from atleastonce.engine.pools import Pool
from atleastonce.engine.thread_pool import ThreadPool
from atleastonce.engine.worker import Worker


class Around(Protocol):
    """What stands around the runs of a handler: a circuit, a count."""

    def around(self, process: AsyncProcess) -> AsyncProcess:
        """Of single messages."""

    def around_sync(self, process: SyncProcess) -> SyncProcess:
        """Of single messages, on a thread."""

    def around_batch(self, process: BatchProcess) -> BatchProcess:
        """Of lists."""


def make_pool(
    bound: Bound,
    worker: Worker,
    places: int,
    around: Sequence[Around],
    fatal: Callable[[BaseException], None],
    shared: Places | None = None,
) -> Pool:
    """The pool of ``worker``.

    Args:
        bound: whose handler.
        worker: reports go to it.
        places: handlers at once.
        around: from the inside out.
        fatal: told when a handler raises SystemExit or KeyboardInterrupt.
        shared: the places of all readers of the consumer together; None where this one is alone.
    """
    consumer, lanes = bound.consumer, worker.lanes
    if consumer.batching is not None:
        run_list: BatchProcess = bound.process_batch
        for each in around:
            run_list = each.around_batch(run_list)
        return BatchPool(
            run_list,
            lanes,
            places,
            max_messages=min(consumer.batching.max_messages, worker.meter.limit.messages),
            max_wait=consumer.batching.max_wait,
            ended=worker.all_ended,
            failed=bound.failed,
            fatal=fatal,
            places=shared,
        )
    if consumer.binding.is_async:
        run: AsyncProcess = bound.process
        for each in around:
            run = each.around(run)
        if isinstance(lanes, LimitedLanes):
            run = lanes.around(run)
        return AsyncPool(
            run,
            lanes,
            places,
            ended=worker.ended,
            failed=bound.failed,
            fatal=fatal,
            timeout=bound.timeout,
            places=shared,
        )
    run_sync: SyncProcess = bound.process_sync
    for each in around:
        run_sync = each.around_sync(run_sync)
    if isinstance(lanes, LimitedLanes):
        run_sync = lanes.around_sync(run_sync)
    return ThreadPool(
        run_sync,
        lanes,
        places,
        ended=worker.ended,
        failed=bound.failed,
        fatal=fatal,
        timeout=bound.timeout,
        places=shared,
    )
