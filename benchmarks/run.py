#!/usr/bin/env python3
"""Ours beside the fastest correct loop over the same client, the tutorial's loop and FastStream; in one run, in turns.

Each measurement is a process of its own. Rounds are interleaved (A B C A B C ...), figures are medians over rounds, and a
ratio is the median of the ratios within each round, so that a busy machine slows all contenders alike. After each
measurement the broker is asked whether everything was settled; if not, the figure does not count.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from arena import Arena, Scenario
from loops.common import calibrate
from report import facts, render, save, summary

BROKERS = ("memory", "sqlite", "kafka", "rabbitmq", "redis", "nats", "pubsub", "sqs")
# Enough that one measurement of the fastest takes about a second (full) or a third of one (quick).
MESSAGES = {
    "memory": 100_000,
    "sqlite": 40_000,
    "kafka": 200_000,
    "rabbitmq": 40_000,
    "redis": 100_000,
    "nats": 100_000,
    "pubsub": 160_000,
    "sqs": 8_000,
}
QUICK_SHARE = 4


def scenarios(work: list[float]) -> list[Scenario]:
    """What is measured, in the order of the report."""
    consume = [
        Scenario(
            "consume" if not micros else f"consume+{micros:g}us",
            "empty `async def` handler" if not micros else f"`async def` handler with {micros:g} µs of work",
            "consume",
            spin=calibrate(micros),
        )
        for micros in work
    ]
    return [
        *consume,
        Scenario("context", "empty `async def` handler that asks for the message's id", "context"),
        Scenario("sync", "empty `def` handler", "sync"),
        Scenario("batch", "batch handler, lists of up to 500", "batch"),
        Scenario("publish_many", "publish in lists, confirmed", "publish_many"),
        Scenario("publish_each", "publish one by one, confirmed, 200 callers at once", "publish_each"),
        Scenario("latency", "published to handled, 500 messages/s", "latency"),
    ]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--broker", help=f"one or several of {','.join(BROKERS)} (default: all that can be had)")
    options.add_argument("--messages", type=int, help="per measurement (default: by broker, a quarter without --full)")
    options.add_argument("--rounds", type=int, help="default 2, with --full 7")
    options.add_argument("--work", default="0,10", help="µs of work per message in the async handler (default 0,10)")
    options.add_argument("--only", help="scenarios, by name, separated by commas")
    options.add_argument("--contenders", help="of ours, adapter, raw, naive, faststream, faststream-aiokafka")
    options.add_argument("--full", action="store_true", help="the figures for the docs; takes minutes")
    options.add_argument("--save", action="store_true", help="write benchmarks/results/ and docs/benchmarks.md")
    options.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    given = options.parse_args()
    wanted = given.broker.split(",") if given.broker else list(BROKERS)
    for name in wanted:
        if name not in BROKERS:
            options.error(f"no broker {name!r}; there are {', '.join(BROKERS)}")
    try:
        work = [float(value) for value in given.work.split(",")]
    except ValueError:
        options.error(f"--work {given.work}: numbers of microseconds, separated by commas")
    rounds = given.rounds or (7 if given.full else 2)
    chosen = scenarios(work)
    if given.only:
        unknown = set(given.only.split(",")) - {scenario.name for scenario in chosen}
        if unknown:
            options.error(f"no scenario {', '.join(sorted(unknown))}; there are {', '.join(s.name for s in chosen)}")
        chosen = [scenario for scenario in chosen if scenario.name in given.only.split(",")]
    if rounds < 1 or (given.messages is not None and given.messages < 100):
        options.error("--rounds must be at least 1 and --messages at least 100")

    reports = []
    for name in wanted:
        messages = given.messages or MESSAGES[name] // (1 if given.full else QUICK_SHARE)
        arena = Arena.for_broker(name)
        if isinstance(arena, str):
            print(f"{name}: not run: {arena}", file=sys.stderr)
            continue
        only = tuple(given.contenders.split(",")) if given.contenders else None
        with arena:
            rows = [row for s in chosen for row in summary(s, arena.fight(s, messages, rounds, only))]
        report = facts(arena, messages, rounds) | {"rows": rows, "not_run": arena.not_run}
        reports.append(report)
        if not given.json:
            print(render(report), flush=True)
        if given.save:
            save(report)
    if given.json:
        print(json.dumps(reports))
    if not reports:
        raise SystemExit("no broker could be had")


if __name__ == "__main__":
    main()
