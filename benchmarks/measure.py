"""One measurement in a process of its own: a job as JSON on the command line, its result as the last line printed."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).parent))

from loops.common import Job, Result


def loop_for(job: Job) -> Callable[[Job], Result | None]:
    """The contender's loop; only its client is imported."""
    if job.contender in ("ours", "adapter"):
        from loops import ours

        return ours.feed if job.scenario == "feed" else ours.run
    if job.contender.startswith("faststream"):
        from loops import faststream

        return faststream.run
    if job.broker == "kafka":
        from loops import kafka as client
    elif job.broker == "rabbitmq":
        from loops import rabbitmq as client
    else:
        from loops import sqlite as client
    if job.scenario == "feed":
        return client.feed
    return client.naive if job.contender == "naive" else client.raw


def main() -> None:
    job = msgspec.json.decode(sys.argv[1], type=Job)
    loop = loop_for(job)
    gc.collect()
    result = loop(job)
    if result is not None:
        print(msgspec.json.encode(result).decode(), flush=True)


if __name__ == "__main__":
    main()
