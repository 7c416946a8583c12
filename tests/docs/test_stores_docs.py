"""Every store has a page, with the same sections, and with every option that it takes."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

from atleastonce.stores import BUILT_IN

DOCS = Path(__file__).parents[2] / "docs" / "stores"
PAGES = {scheme: DOCS / f"{'postgres' if scheme == 'postgresql' else scheme}.md" for scheme in BUILT_IN}
SECTIONS = ["Schema", "Configuration", "Guarantees", "Limits", "What to watch", "Purge", "Failures"]


@pytest.mark.parametrize("scheme", PAGES)
def test_a_page_has_all_sections(scheme: str) -> None:
    sections = re.split(r"^## (.*)\n", PAGES[scheme].read_text(), flags=re.MULTILINE)[1:]
    assert sections[::2] == SECTIONS
    assert all(len(text.strip()) > 10 for text in sections[1::2])


@pytest.mark.parametrize("scheme", PAGES)
def test_its_configuration_is_what_the_store_takes(scheme: str) -> None:
    text = PAGES[scheme].read_text().partition("## Configuration")[2].partition("\n## ")[0]
    module, name = BUILT_IN[scheme]
    taken = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == set(taken) - {"url", "dsn", "path"}


def test_every_page_is_in_the_list() -> None:
    listed = (DOCS / "README.md").read_text()
    assert [page.name for page in PAGES.values() if f"({page.name})" not in listed] == []
