"""docs/conformance.md says what the last run showed, of the cases that exist today."""

from pathlib import Path

import pytest

from atleastonce.testing.conformance import ConformanceSuite, cases_of
from atleastonce.testing.conformance.results import Results, read
from atleastonce.testing.conformance.table import main

DOCS = Path(__file__).resolve().parents[2] / "docs"
REFRESH = "run: pytest tests/conformance --conformance-report docs/conformance && python docs/generate/conformance.py"


def test_the_page_is_that_of_the_results() -> None:
    assert main([str(DOCS / "conformance"), str(DOCS / "conformance.md"), "--check"]) == 0, REFRESH


@pytest.mark.parametrize("results", read(DOCS / "conformance"), ids=lambda results: results.backend)
def test_the_results_are_of_todays_cases_and_none_fails(results: Results) -> None:
    assert {id: case.name for id, case in results.cases.items()} == {
        case.id: case.name for case in cases_of(ConformanceSuite)
    }, REFRESH
    assert not [id for id, case in results.cases.items() if case.result == "fail"]
