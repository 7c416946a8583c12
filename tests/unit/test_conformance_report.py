"""What a run of a suite reports: outcomes, the files of results, and the table made of them."""

import sys
from pathlib import Path

import pytest

from atleastonce.testing.conformance import table
from atleastonce.testing.conformance.results import Result, Results, read, write

CONFTEST = 'pytest_plugins = ["atleastonce.testing.conformance.plugin"]\n'

SUITE = """
import pytest
from atleastonce.testing.conformance import Bench, Harness, Need, Section, Suite, requires

NEVER = Need("the moon", lambda harness, adapter: False)

class Cases(Section):
    section = "X. Examples"

    async def test_91_what_works(self, bench: Bench) -> None:
        queue = bench.queue()
        await bench.declare(queue)
        await bench.send(queue, [bench.message()])

    @requires(NEVER)
    async def test_92_what_cannot_be(self, bench: Bench) -> None:
        raise AssertionError

    async def test_93_what_fails(self, bench: Bench) -> None:
        assert bench.tag == "nothing"

class TestHere(Suite, Cases):
    @pytest.fixture
    def harness(self):
        harness = Harness()
        harness.name, harness.url = "here", "memory://report"
        harness.known_gaps = GAPS
        harness.unsteady = UNSTEADY
        return harness
"""


def run(
    pytester: pytest.Pytester, gaps: dict[str, str], *arguments: str, unsteady: dict[str, str] | None = None
) -> pytest.RunResult:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_here=SUITE.replace("GAPS", repr(gaps)).replace("UNSTEADY", repr(unsteady or {})))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--conformance-report=out", *arguments]
    return pytester.run(*command, timeout=60)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_gaps_are_expected_to_fail_and_written_with_their_reason(pytester: pytest.Pytester, workers: str) -> None:
    outcome = run(pytester, {"93": "not yet"}, "-n", workers)
    outcome.assert_outcomes(passed=1, skipped=1, xfailed=1)
    (results,) = read(pytester.path / "out")
    assert results.backend == "here"
    assert results.cases == {
        "91": Result("what works", "X. Examples", "pass"),
        "92": Result("what cannot be", "X. Examples", "not supported", "the moon"),
        "93": Result("what fails", "X. Examples", "known gap", "not yet"),
    }


def test_a_gap_that_starts_to_pass_fails_the_run(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, {"91": "it was broken once", "93": "not yet"})
    outcome.assert_outcomes(failed=1, skipped=1, xfailed=1)
    (results,) = read(pytester.path / "out")
    assert results.cases["91"].result == "fail"
    assert "known gap" in results.cases["91"].reason


def test_a_gap_that_passes_now_and_then_is_listed_and_not_run(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, {"93": "not yet"}, unsteady={"91": "by chance"})
    outcome.assert_outcomes(skipped=1, xfailed=2)
    (results,) = read(pytester.path / "out")
    assert results.cases["91"] == Result("what works", "X. Examples", "known gap", "by chance")


def test_a_failure_that_is_no_known_gap_fails_the_run(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, {})
    outcome.assert_outcomes(passed=1, failed=1, skipped=1)
    (results,) = read(pytester.path / "out")
    assert results.cases["93"].result == "fail"


def test_a_gap_for_a_case_that_does_not_exist_is_an_error(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, {"99": "what?"})
    outcome.assert_outcomes(errors=3)
    outcome.stdout.fnmatch_lines(["*cases that do not exist*99*"])


def test_a_partial_run_writes_no_results(pytester: pytest.Pytester) -> None:
    outcome = run(pytester, {}, "-k", "test_91")
    outcome.assert_outcomes(passed=1, deselected=2)
    outcome.stdout.fnmatch_lines(["*not written, 1 of 3 cases*"])
    assert not (pytester.path / "out").exists()


def sample(result: str = "pass", broker: str = "One 1.0") -> Results:
    return Results(
        "one",
        broker,
        {
            "01": Result("works", "A. First", "pass"),
            "02": Result("breaks", "B. Second", result, "because"),  # type: ignore[arg-type]
        },
    )


def test_the_table_shows_every_case_and_every_reason() -> None:
    page = table.render([sample("known gap")])
    assert "| 01 works | ✓ |" in page
    assert "| 02 breaks | gap |" in page
    assert "- 02 breaks: *known gap*: because" in page
    assert "Tested with: One 1.0." in page


def test_check_notices_a_stale_page_and_overlooks_versions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, page = tmp_path / "results", tmp_path / "conformance.md"
    write(results, sample("known gap"))
    assert table.main([str(results), str(page), "--check"]) == 1
    assert table.main([str(results), str(page)]) == 0
    assert table.main([str(results), str(page), "--check"]) == 0
    write(results, sample("known gap", broker="One 1.1"))
    assert table.main([str(results), str(page), "--check"]) == 0
    before = page.read_text()
    write(results, sample("pass"))
    assert table.main([str(results), str(page), "--check"]) == 1
    assert page.read_text() == before
    assert "is stale" in capsys.readouterr().err


def test_no_results_are_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        table.main([str(tmp_path), str(tmp_path / "page.md")])
    assert ended.value.code == 2
