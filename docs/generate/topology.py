"""Writes into a page what ``atleastonce topology export`` makes of the service in the page's own code.

    python docs/generate/topology.py            write
    python docs/generate/topology.py --check    only compare; 1 if the page is stale

``<!-- export: keda kafka://kafka:9092 --min 0 -->`` is the whole document, ``<!-- triggers: nats://nats:4222 -->`` the triggers
of the KEDA object, a line each; what follows, up to ``<!-- end -->``, is written here.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import types
from pathlib import Path

from atleastonce.cli.app import run

PAGES = [Path(__file__).resolve().parents[1] / "patterns" / "autoscaling.md"]

_MARK = re.compile(r"(<!-- (export|triggers): ([^>]*?) -->\n).*?(<!-- end -->)", re.DOTALL)
_CODE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def exported(page: str, kind: str, url: str, *options: str) -> str:
    """What the command writes to stdout, run with the page's code as module ``shop``."""
    module = types.ModuleType("shop")
    sys.modules["shop"] = module
    given = os.environ.pop("ALO_BROKER", None)
    try:
        for code in _CODE.findall(page):
            exec(compile(code, "the page", "exec"), module.__dict__)  # noqa: S102 - the page's own code, which its test runs, too
        out, told = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(told):
            code = run(["topology", "export", kind, "shop:service", "--broker", url, *options])
        if code:
            raise RuntimeError(told.getvalue())
    finally:
        del sys.modules["shop"]
        if given is not None:
            os.environ["ALO_BROKER"] = given
    return out.getvalue()


def triggers(page: str, url: str) -> str:
    """The triggers of the service's object, a line each."""
    (spec,) = [
        item["spec"] for item in json.loads(exported(page, "keda", url))["items"] if item["kind"] == "ScaledObject"
    ]
    return "".join(f"{each['type']} {each['name']}\n    {json.dumps(each['metadata'])}\n" for each in spec["triggers"])


def written(page: str) -> str:
    """``page`` with everything between its marks as it should be."""

    def fill(match: re.Match[str]) -> str:
        kind, words = match[2], match[3].split()
        text = triggers(page, *words) if kind == "triggers" else exported(page, *words)
        language = "json" if text.startswith("{") else ""
        return f"{match[1]}\n```{language}\n{text}```\n\n{match[4]}"

    return _MARK.sub(fill, page)


def main(arguments: list[str]) -> int:
    stale = 0
    for path in PAGES:
        page = path.read_text()
        if (text := written(page)) == page:
            continue
        if "--check" in arguments:
            sys.stderr.write(f"{path} is stale: run python docs/generate/topology.py\n")
            stale = 1
        else:
            path.write_text(text)
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
