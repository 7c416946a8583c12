"""The documentation is true: its Python runs, its services start, its links lead somewhere."""

from __future__ import annotations

import ast
import inspect
import re
import types
import uuid
from pathlib import Path

import pytest

from atleastonce import ConfigurationError, Service

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CODE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
BLOCKS = {page: blocks for page in PAGES if (blocks := CODE.findall(page.read_text()))}


@pytest.mark.parametrize("page", BLOCKS, ids=lambda page: str(page.relative_to(ROOT)))
async def test_the_code_of_a_page_runs_and_its_services_start(
    page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # for files of its stores
    monkeypatch.setenv("ALO_BROKER", f"memory://{uuid.uuid4().hex}")
    module = types.ModuleType("page")
    monkeypatch.setitem(__import__("sys").modules, "page", module)  # annotations are resolved in their module
    services: list[Service] = []
    for block in BLOCKS[page]:
        code = compile(block, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        pending = eval(code, module.__dict__)
        if inspect.iscoroutine(pending):  # a block that awaits, as in a notebook
            await pending
        found = [value for value in vars(module).values() if isinstance(value, Service)]
        services += [service for service in found if all(service is not known for known in services)]
    for service in services:
        if any(consumer.transactions for consumer in service.consumers):
            with pytest.raises(ConfigurationError, match="no such transactions"):  # the page says so
                await service.start()
        elif service.consumers:
            async with service:
                assert {status.state for status in service.status()} == {"running"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    targets = [target for target in LINK.findall(page.read_text()) if "://" not in target]
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing
