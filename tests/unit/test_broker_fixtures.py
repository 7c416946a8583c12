"""What a test sees that asks for a broker which cannot be had."""

import sys

import pytest

SUITE = """
def test_shared(kafka_url):
    raise AssertionError("there is no broker")

def test_private(private_broker):
    with private_broker("kafka"):
        raise AssertionError("there is no broker")
"""


def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, required: str, *arguments: str) -> pytest.RunResult:
    monkeypatch.setenv("ALO_KAFKA_URL", "kafka://user:secret@127.0.0.1:1")
    monkeypatch.setenv("ALO_REQUIRE", required)
    monkeypatch.setenv("ALO_CACHE", str(pytester.path / "cache"))
    pytester.makeconftest('pytest_plugins = ["atleastonce.testing.brokers"]\n')
    pytester.makepyfile(test_it=SUITE)
    command = [sys.executable, "-m", "pytest", "-ra", "-p", "no:cacheprovider", "--strict-markers", *arguments]
    return pytester.run(*command, timeout=60)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_it_is_skipped_with_the_reason(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    outcome = run(pytester, monkeypatch, "", "-n", workers)
    outcome.assert_outcomes(skipped=2)
    outcome.stdout.fnmatch_lines_random(["*no kafka: ALO_KAFKA_URL=*does not answer*", "*names a shared broker*"])
    outcome.stdout.no_fnmatch_line("*secret*")


def test_it_fails_where_the_broker_is_required(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = run(pytester, monkeypatch, "rabbitmq,kafka")
    outcome.assert_outcomes(failed=1, errors=1)
    outcome.stdout.fnmatch_lines(["*required kafka: ALO_KAFKA_URL=*does not answer*"])
    outcome.stdout.no_fnmatch_line("*secret*")


def test_a_misspelt_required_broker_ends_the_run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = run(pytester, monkeypatch, "kafak")
    assert outcome.ret == pytest.ExitCode.USAGE_ERROR
    outcome.stderr.fnmatch_lines(["ERROR: ALO_REQUIRE names 'kafak': there are kafka, *"])


def test_it_carries_the_mark(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    run(pytester, monkeypatch, "", "-m", "broker").assert_outcomes(skipped=1, deselected=1)
