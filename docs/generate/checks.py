"""Writes into the pages what the code says: the table of rules of ``check``, and what ``explain`` prints of a page's own example.

    python docs/generate/checks.py            write
    python docs/generate/checks.py --check    only compare; 1 if a page is stale

A page holds ``<!-- rules: retry -->`` or ``<!-- explain: handler broker-url section, section -->``; what follows, up to
``<!-- end -->``, is written here.
"""

from __future__ import annotations

import asyncio
import re
import sys
import types
from pathlib import Path

from atleastonce import Service
from atleastonce.check import RULES
from atleastonce.explain import lines

DOCS = Path(__file__).resolve().parents[1]
PAGES = [
    *(DOCS / "patterns" / f"{name}.md" for name in ("retry", "dead-letters", "ordering", "exactly-once-handoff")),
    DOCS / "cli.md",
]

_MARK = re.compile(r"(<!-- (rules|explain): ([^>]*?) -->\n).*?(<!-- end -->)", re.DOTALL)
_CODE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)

TOPICS = {
    "retry": {
        "delay-over-limit",
        "chain-out-of-time",
        "chain-cut-short",
        "timeout-over-lease",
        "timeout-over-server-limit",
        "timeout-of-a-thread",
        "in-place-over-lease",
        "order-impossible",
        "order-lost-in-chain",
        "channel-in-two-roles",
        "retention-below-delay",
        "retention-near-delay",
        "retention-below-chain",
        "copies-compacted",
        "retries-hold-up",
    },
    "ordering": {
        "order-impossible",
        "order-lost-in-chain",
        "order-not-across",
        "order-with-lease",
        "order-in-single-file",
        "order-by-payload",
        "chain-over-lease",
    },
    "dead-letters": {
        "no-dead-letters",
        "dead-letters-consumed",
        "dead-letters-short",
        "copies-too-small",
        "copies-tight",
        "copies-compacted",
        "drops-when-full",
        "net-below-attempts",
        "net-below-crash-limit",
        "net-elsewhere",
        "net-powerless",
        "not-permitted",
    },
    "transactions": {"no-transactions", "two-transactions"},
    "all": {rule.code for rule in RULES},
}


def rules(topic: str) -> str:
    """The table of one topic, the graver rules first."""
    rows = ["| code | | what it finds | what would happen |", "|---|---|---|---|"]
    for severity in ("refuse", "warn", "note"):
        rows += [
            f"| `{rule.code}` | {severity} | {rule.about} | {rule.why} |"
            for rule in RULES
            if rule.code in TOPICS[topic] and rule.severity == severity
        ]
    return "\n".join(rows) + "\n"


def explanation(page: str, wanted: str) -> str:
    """Some sections of what ``explain`` prints for a handler of the page's own code."""
    handler, url, *titles = wanted.split(maxsplit=2)
    shown = [title.strip() for title in titles[0].split(",")]
    module = types.ModuleType("shop")
    sys.modules["shop"] = module
    try:
        (code,) = [code for code in _CODE.findall(page) if f"def {handler}(" in code]
        exec(compile(code, "the page", "exec"), module.__dict__)  # noqa: S102 - the page's own code, which its test runs, too
    finally:
        del sys.modules["shop"]
    services = [value for value in vars(module).values() if isinstance(value, Service)]
    told = [each for service in services for each in asyncio.run(service.explain(url=url))]
    (found,) = [each for each in told if each.handler == f"shop.{handler}"]
    section, kept = "", []
    for line in lines(found):
        if line.startswith("  ") and not line.startswith("   "):
            section = line.strip()
        if line and (section in shown or not line.startswith("  ")):
            kept.append(line)
    return "```\n" + "\n".join(kept) + "\n```\n"


def written(page: str) -> str:
    """``page`` with everything between its marks as it should be."""

    def fill(match: re.Match[str]) -> str:
        kind, wanted = match[2], match[3].strip()
        text = rules(wanted) if kind == "rules" else explanation(page, wanted)
        return f"{match[1]}\n{text}\n{match[4]}"

    return _MARK.sub(fill, page)


def main(arguments: list[str]) -> int:
    stale = 0
    for path in PAGES:
        page = path.read_text()
        if (text := written(page)) == page:
            continue
        if "--check" in arguments:
            sys.stderr.write(f"{path} is stale: run python docs/generate/checks.py\n")
            stale = 1
        else:
            path.write_text(text)
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
