"""One measurement in a process of its own: a job as JSON on the command line, its result as the last line printed."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    client: Any = importlib.import_module(f"loops.{job.broker}")
    name = "feed" if job.scenario == "feed" else "naive" if job.contender == "naive" else "raw"
    loop: Callable[[Job], Result | None] = getattr(client, name)
    return loop


def most_resident() -> float:
    """MiB. Not ``ru_maxrss``, which a process takes over from the one that started it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), 0.0)


def main() -> None:
    job = msgspec.json.decode(sys.argv[1], type=Job)
    loop = loop_for(job)
    gc.collect()
    result = loop(job)
    if result is not None:
        result.rss = most_resident()
        print(msgspec.json.encode(result).decode(), flush=True)


if __name__ == "__main__":
    main()
