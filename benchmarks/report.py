"""From results to figures: medians, ratios, percentiles; a table for people, JSON for programs, a page for the docs."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import json
import os
import platform
import statistics
from pathlib import Path
from typing import Any

from arena import Arena, Scenario
from loops.common import Result

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).with_name("results")
PAGE = ROOT / "docs" / "benchmarks.md"

_NAMES = {
    "ours": "**atleastonce**",
    "adapter": "our adapter by hand, no engine",
    "raw": "raw client, lists",
    "naive": "raw client, one by one",
    "faststream": "FastStream",
    "faststream-aiokafka": "FastStream (aiokafka)",
}


def summary(scenario: Scenario, results: dict[str, list[Result | None]]) -> list[dict[str, Any]]:
    """One row for each contender. The base of the ratios is the raw loop; where there is none, the adapter by hand."""
    base = next((name for name in ("raw", "adapter") if any(results.get(name, ()))), None)
    rows = []
    for name, rounds in results.items():
        done = [result for result in rounds if result is not None]
        row: dict[str, Any] = {
            "scenario": scenario.name,
            "title": scenario.title,
            "contender": name,
            "rounds": len(done),
        }
        if done:
            each = [result.seconds / result.messages for result in done]
            row["us_per_message"] = _round(statistics.median(each) * 1e6)
            row["cpu_us_per_message"] = _round(statistics.median(r.cpu / r.messages for r in done) * 1e6)
            row["messages_per_second"] = round(1 / statistics.median(each))
            if base is not None:
                pairs = [(a, b) for a, b in zip(rounds, results[base], strict=True) if a is not None and b is not None]
                if pairs:
                    row["of"] = base
                    row["ratio"] = _ratio(pairs, scenario.kind == "latency")
                    row["cpu_ratio"] = round(
                        statistics.median((b.cpu / b.messages) / (a.cpu / a.messages) for a, b in pairs), 3
                    )
            if sizes := [result.rss for result in done if result.rss]:
                row["rss_mib"] = round(statistics.median(sizes))
            if delays := sorted(delay for result in done for delay in result.delays):
                row["p50_ms"] = _round(delays[len(delays) // 2] * 1e3)
                row["p99_ms"] = _round(delays[int(len(delays) * 0.99)] * 1e3)
        rows.append(row)
    return rows


def _ratio(pairs: list[tuple[Result, Result]], latency: bool) -> float:
    """How fast, in parts of the base: the median over rounds of the ratio within each."""
    if latency:
        return round(statistics.median(_median(b.delays) / _median(a.delays) for a, b in pairs), 3)
    return round(statistics.median((b.seconds / b.messages) / (a.seconds / a.messages) for a, b in pairs), 3)


def _median(values: list[float]) -> float:
    return max(statistics.median(values), 1e-9)


def _round(value: float) -> float:
    return round(value, 2 if value < 10 else 1 if value < 100 else 0)


def facts(arena: Arena, messages: int, rounds: int) -> dict[str, Any]:
    """What one must know to judge the figures."""
    return {
        "broker": arena.broker,
        "broker_version": arena.version,
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "messages": messages,
        "rounds": rounds,
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "clients": {
            name: importlib.metadata.version(name)
            for name in ("atleastonce", "confluent-kafka", "pika", "msgspec")
            if _installed(name)
        },
        "peers": (Path(__file__).with_name("peers.txt").read_text().split("\n")[0]),
        "load_average": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def render(report: dict[str, Any], *, level: int = 2) -> str:
    """A Markdown section."""
    mark = "#" * level
    lines = [f"{mark} {report['broker']} {report['broker_version']}", ""]
    lines.append(
        f"{report['date']}, {report['cores']} cores ({report['cpu']}), Python {report['python']}, "
        + ", ".join(f"{name} {version}" for name, version in report["clients"].items())
        + f"; {report['messages']} messages, {report['rounds']} rounds, load average {report['load_average']} at the end."
    )
    titles = dict.fromkeys(row["title"] for row in report["rows"])
    for title in titles:
        rows = [row for row in report["rows"] if row["title"] == title]
        lines += ["", f"{mark}# {title[0].upper() + title[1:]}" if title[0] != "`" else f"{mark}# {title}", ""]
        lines += _table(rows)
    if report["not_run"]:
        lines += ["", "Without a figure:", ""]
        lines += [f"- {what}: {why}" for what, why in report["not_run"].items()]
    return "\n".join(lines) + "\n"


def _table(rows: list[dict[str, Any]]) -> list[str]:
    latency = rows[0]["scenario"] == "latency"
    timed = any("p50_ms" in row for row in rows)
    sized = any("rss_mib" in row for row in rows)
    base = next((row["of"] for row in rows if "of" in row), None)
    columns = ["speed" if base is None else f"speed, {base} = 1", "who"]
    columns += [] if latency else ["µs/message", "CPU µs/message", "messages/s"]
    columns += ["p50 ms", "p99 ms"] if timed else []
    columns += ["RSS MiB"] if sized else []
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        ratio = f"{row['ratio']:.3g}" if "ratio" in row else ""
        cells = [ratio, _NAMES[row["contender"]]]
        if not row["rounds"]:
            cells += ["no figure", *[""] * len(columns)][: len(columns) - 2]
        else:
            if not latency:
                cells += [
                    f"{row['us_per_message']:g}",
                    f"{row['cpu_us_per_message']:g}",
                    f"{row['messages_per_second']:,}".replace(",", " "),
                ]
            if timed:
                cells += [f"{row['p50_ms']:g}", f"{row['p99_ms']:g}"] if "p50_ms" in row else ["", ""]
            if sized:
                cells.append(str(row.get("rss_mib", "")))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def save(report: dict[str, Any]) -> None:
    """Keep the figures and write the page anew."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{report['broker']}.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    write_page()


def write_page() -> None:
    """docs/benchmarks.md from what is in benchmarks/results."""
    parts = [_HEAD]
    for name in ("kafka", "rabbitmq", "nats", "sqs", "redis", "pubsub", "sqlite", "memory"):
        path = RESULTS / f"{name}.json"
        if path.exists():
            parts.append(render(json.loads(path.read_text())))
    path = RESULTS / "memory-use.json"
    if path.exists():
        parts.append(render_memory_use(json.loads(path.read_text())))
    PAGE.write_text("\n".join(parts))


def render_memory_use(report: dict[str, Any]) -> str:
    """The section about resident memory."""
    lines = [
        "## Memory over many messages",
        "",
        f"{report['date']}, Python {report['python']}: a consumer slower than what waits for it, its memory bounded by the window.",
        "Resident memory of its process in MiB; the start is taken after the first 10 000 messages.",
        "",
        "| broker | messages | start | peak | end | seconds | flat |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['broker']} | {row['messages']} | {row['start_mib']} | {row['peak_mib']} | {row['end_mib']} | {row['seconds']} | "
        f"{'yes' if row['flat'] else 'NO'} |"
        for row in report["rows"]
    ]
    return "\n".join(lines) + "\n"


_HEAD = """# Benchmarks

Written by `benchmarks/run.py --save` and `benchmarks/memory.py --save`; not by hand.

Ours runs with its defaults (on Pub/Sub with as many messages in flight as the raw loop has, 4000 instead of 1000) beside the
fastest loop over the same client that keeps the same promises (confirmed publishes, manual acknowledgement after the handler,
headers read, JSON decoded by msgspec, lists wherever the client has them), beside the loop of the tutorials (one message, one
synchronous commit, `json.loads`), and beside FastStream on an equal guarantee. Each measurement is a process of its own, rounds
are interleaved, a ratio is the median of the ratios within each round, and a figure counts only if the broker says afterwards
that everything was settled.

Read the ratio, not the absolute figure: brokers and contenders shared the cores of one machine. "CPU" is the CPU
time of the measured process, all its threads. "RSS" is the most memory that it ever had, interpreter and client included; tables
without that column are from before it was taken. Messages are 100 bytes of JSON with three headers; Kafka topics have
four partitions, RabbitMQ queues are quorum queues, SQLite syncs every commit to disk. The raw Kafka consumer is tuned: with
librdkafka's default `fetch.queue.backoff.ms` a fast reader waits a second whenever the client's queue was full.
"""
