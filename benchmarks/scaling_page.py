"""The tables of docs/scaling.md, from benchmarks/results/scaling.json."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results") / "scaling.json"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "scaling.md"
MEASURED, MODEL, END = "<!-- table: scaling -->\n", "<!-- table: model -->\n", "<!-- end -->"
BROKERS = ("kafka", "rabbitmq", "redis", "nats", "pubsub", "sqs")
RATES = (10_000, 100_000, 1_000_000)
BUSY = 0.6
"""How busy a process of the model is. Higher: a leave or a restart leaves too little to catch up. Lower: idle machines."""

NAMES = {
    "kafka-ordered": "Kafka, cooperative (heartbeat 3 s)",
    "kafka-1s-ordered": "Kafka, cooperative (heartbeat 1 s)",
    "kafka-848-ordered": "Kafka, KIP-848 (heartbeat 0.5 s)",
    "kafka-range-ordered": "Kafka, `range` (heartbeat 3 s)",
    "rabbitmq": "RabbitMQ",
    "rabbitmq-ordered": "RabbitMQ, `single_active`, 16 parts",
    "sqs": "SQS",
    "sqs-ordered": "SQS, FIFO",
    "nats": "NATS",
    "nats-ordered": "NATS, `single_active`, 16 parts",
    "redis": "Redis",
    "redis-ordered": "Redis, `single_active`, 16 parts",
    "pubsub": "Pub/Sub",
    "pubsub-ordered": "Pub/Sub, ordering keys",
    "sqlite": "SQLite",
}


def table(report: dict[str, Any]) -> str:
    """Both tables and the line that says where they were measured."""
    rows = report["rows"]
    lines = [
        "| queue | messages | handled again | out of order | overlaps | longest stop: calm | at a join | at a leave |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        again = f"{row['repeated']} ({row['repeated'] / row['messages']:.2%})"
        order = ["" if row[name] is None else str(row[name]) for name in ("reordered", "overlaps")]
        stops = [f"{row[name]:.2f} s" for name in ("calm_stop_s", "join_stop_s", "leave_stop_s")]
        lines.append(_line(NAMES[row["what"]], row["messages"], again, *order, *stops))
    titles = ("queue", "longest wait: calm", "at a join", "at a leave", "newcomer's first message")
    titles += ("with 8: busiest / idlest", "SIGTERM to exit, median / longest")
    lines += ["", _line(*titles), "|---|---:|---:|---:|---|---|---|"]
    for row in rows:
        waits = [f"{row[name]:.2f} s" for name in ("calm_wait_s", "join_wait_s", "leave_wait_s")]
        shares = row["shares_at_8"] + [0] * (8 - len(row["shares_at_8"]))
        exits = f"{row['exit_s']:.1f} s / {row['exit_most_s']:.1f} s"
        cells = (_firsts(row["first_message_s"]), f"{shares[0]:.0%} / {shares[-1]:.0%}", exits)
        lines.append(_line(NAMES[row["what"]], *waits, *cells))
    versions = dict.fromkeys(f"{NAMES[row['what']].partition(',')[0]} {row['version']}" for row in rows)
    loads = [row["load_average"] for row in rows]
    facts = f"{report['date']}, {report['cores']} cores ({report['cpu']}), Python {report['python']}, {', '.join(versions)}; "
    facts += f"{report['rate']} messages/s, {report['keys']} keys, one run each. A step at least every "
    facts += " or ".join(f"{every:g} s" for every in sorted({row["every_s"] for row in rows}))
    facts += f". Others used the machine as well: load average {min(loads)} to {max(loads)}."
    lines += ["", facts]
    return "\n".join(lines) + "\n"


def _firsts(seconds: list[float | None]) -> str:
    got = [each for each in seconds if each is not None]
    missing = len(seconds) - len(got)
    if not got:
        return "none: it stands by"
    text = f"{min(got):.1f} to {max(got):.1f} s"
    return f"{text}; {missing} of {len(seconds)} got none in their step" if missing else text


def _line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def costs() -> dict[str, dict[str, float]]:
    """Microseconds for a message, of docs/benchmarks.md: a handler with 10 µs of work, and publishing in lists."""
    found = {}
    for broker in BROKERS:
        rows = json.loads((RESULTS.parent / f"{broker}.json").read_text())["rows"]
        ours = {row["scenario"]: row for row in rows if row["contender"] == "ours"}
        found[broker] = {
            "us": ours["consume+10us"]["us_per_message"],
            "cpu_us": ours["consume+10us"]["cpu_us_per_message"],
            "publish_cpu_us": ours["publish_many"]["cpu_us_per_message"],
        }
    return found


def model(costs: dict[str, dict[str, float]]) -> str:
    """Cores and processes for each rate, by multiplication."""
    titles = ["broker", "µs a message", "CPU", "publishing, CPU", "one process, 60 % busy"]
    titles += [f"{_spaced(rate)}/s: processes / cores" for rate in RATES]
    lines = [_line(*titles), "|---|" + "---:|" * (len(titles) - 1)]
    for broker, cost in costs.items():
        each = 1e6 / cost["us"] * BUSY
        cells = [f"{cost['us']:g}", f"{cost['cpu_us']:g}", f"{cost['publish_cpu_us']:g}", f"{_spaced(each)}/s"]
        for rate in RATES:
            cores = rate * (cost["cpu_us"] + cost["publish_cpu_us"]) / 1e6
            cells.append(f"{_spaced(math.ceil(rate / each))} / {_spaced(cores) if cores >= 10 else f'{cores:.1f}'}")
        lines.append(_line(broker, *cells))
    return "\n".join(lines) + "\n"


def _spaced(number: float) -> str:
    return f"{number:,.0f}".replace(",", " ")


def render(page: str, report: dict[str, Any]) -> str:
    """The page with the tables of these results."""
    return _put(_put(page, MEASURED, table(report)), MODEL, model(report["costs"]))


def _put(page: str, begin: str, text: str) -> str:
    head, found, rest = page.partition(begin)
    _, end, tail = rest.partition(END)
    if not found or not end:
        raise SystemExit(f"{PAGE.name}: no place for {begin.strip()}")
    return f"{head}{begin}\n{text}\n{END}{tail}"


def write_page() -> None:
    """Put the tables into the page."""
    PAGE.write_text(render(PAGE.read_text(), json.loads(RESULTS.read_text())))
