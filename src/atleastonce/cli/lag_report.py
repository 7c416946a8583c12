"""What ``atleastonce lag`` shows to people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table

from atleastonce.cli.errors import one_line
from atleastonce.cli.tail import field_of
from atleastonce.durations import readable
from atleastonce.lag import Lag, Sample

# Seconds from which on the age of a look at the keys is said: it is made less often than the counts are asked for.
_OLD = 5.0


def report(rows: Sequence[Lag], samples: Sequence[Sample | None], now: float) -> Group:
    """Counts, why something is unknown, and hot keys; ``samples`` are those of ``rows``, ``now`` by the clock of their `Looks`."""
    details = [f"{row.channel}: {one_line(row.detail)}" for row in rows if row.detail]
    looked = [(row, sample) for row, sample in zip(rows, samples, strict=True) if sample is not None]
    hot = [(row, sample) for row, sample in looked if sample.hot]
    remarks = [one_line(sample.detail) for _, sample in looked if sample.hot is None]
    remarks += [
        f"{_name(row)}: no key stands out among the oldest {sample.messages}{_age(sample, now)}"
        for row, sample in looked
        if sample.hot == [] and sample.messages
    ]
    return Group(_counts(rows), *details, *([_keys(hot, now)] if hot else []), *dict.fromkeys(remarks))


def _counts(rows: Sequence[Lag]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("channel", overflow="fold")
    table.add_column("group")
    table.add_column("role")
    for name in ("waiting", "in flight", "delayed", "oldest"):
        table.add_column(name, justify="right")
    if true_lag := any(row.true_lag is not None for row in rows):
        table.add_column("not handled", justify="right")
    for row in rows:
        oldest = "?" if row.oldest_age_s is None else readable(row.oldest_age_s)
        numbers = [_number(row.waiting), _number(row.in_flight), _number(row.delayed), oldest if row.waiting else ""]
        if true_lag:
            numbers.append(_number(row.true_lag))
        table.add_row(row.channel, row.group or "", row.role, *numbers)
    return table


def _keys(hot: Sequence[tuple[Lag, Sample]], now: float) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("hot keys of", overflow="fold")
    table.add_column("share", justify="right")
    table.add_column("of", no_wrap=True)
    table.add_column("key", overflow="fold")
    for row, sample in hot:
        for each in sample.hot or ():
            of = f"the oldest {sample.messages}{_age(sample, now)}"
            table.add_row(_name(row), f"{each.share:.1%}", of, field_of(each.key))
    return table


def _name(row: Lag) -> str:
    return row.channel if row.group is None else f"{row.channel} ({row.group})"


def _age(sample: Sample, now: float) -> str:
    age = now - sample.at
    return "" if age < _OLD else f", {readable(round(age))} ago"


def _number(value: int | None) -> str:
    return "?" if value is None else str(value)
