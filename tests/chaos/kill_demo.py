#!/usr/bin/env python3
"""Runs the demo again and again with kill -9 of its consumer processes at random moments, and counts what is lost.

    python tests/chaos/kill_demo.py                              ten runs on SQLite, one kill in each
    python tests/chaos/kill_demo.py --runs 1 --kills 10          all ten in one run
    python tests/chaos/kill_demo.py --broker kafka://host:9092

Prints one line per run and the seed that repeats it. Exit code 1 if a run lost a message, or did not end.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from typing import Any

# One run may take so long: the slowest broker needs seconds to notice each death.
BASE_SECONDS = 180.0
SECONDS_PER_KILL = 30.0


def run_demo(*, messages: int, kills: int, seed: int, broker: str | None = None) -> dict[str, Any]:
    """One run of ``atleastonce demo``; its account, with the number of kills that happened as ``kills``.

    Raises:
        RuntimeError: it failed, or lost something, or its account does not add up; with the end of its output.
    """
    command = [sys.executable, "-m", "atleastonce", "demo", "--json", f"--messages={messages}"]
    command += [f"--kills={kills}", f"--seed={seed}", *([f"--broker={broker}"] if broker else [])]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=BASE_SECONDS + SECONDS_PER_KILL * kills,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as late:
        raise RuntimeError(f"seed {seed}: no end after {late.timeout:.0f} s\n{_tail(late.stderr)}") from None
    if done.returncode != 0:
        raise RuntimeError(f"seed {seed}: exit code {done.returncode}\n{_tail(done.stdout)}\n{_tail(done.stderr)}")
    account: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    endings = ("done", "done_after_retry", "redriven", "dead", "discarded", "lost")
    if account["lost"] or sum(account[name] for name in endings) != account["published"] or not account["published"]:
        raise RuntimeError(f"seed {seed}: the account is wrong: {account}\n{_tail(done.stderr)}")
    account["kills"] = done.stderr.count("kill -9")
    return account


def _tail(output: str | bytes | None) -> str:
    text = output.decode(errors="replace") if isinstance(output, bytes) else output or ""
    return "\n".join(text.splitlines()[-25:])


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--runs", type=int, default=10)
    options.add_argument("--kills", type=int, default=1, help="in each run")
    options.add_argument("--messages", type=int, default=10_000)
    options.add_argument(
        "--seed", type=int, default=random.randrange(1_000_000), help="of the first run; the next adds 1"
    )
    options.add_argument("--broker", help="URL; default: an SQLite file for each run")
    given = options.parse_args()
    failed = 0
    for seed in range(given.seed, given.seed + given.runs):
        try:
            account = run_demo(messages=given.messages, kills=given.kills, seed=seed, broker=given.broker)
        except RuntimeError as error:
            failed += 1
            print(f"FAILED {error}", flush=True)
        else:
            shown = ", ".join(f"{name} {value}" for name, value in account.items() if name != "broker")
            print(f"ok     seed {seed}: {shown}", flush=True)
    print(f"{given.runs - failed} of {given.runs} runs lost nothing")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
