#!/usr/bin/env python3
"""The developer's one command. Standard library only; Python 3.11+ with its venv module is all it asks for.

python3 dev.py demo      the main job on the embedded default (arguments go to `atleastonce demo`)
python3 dev.py test      the whole suite, with the brokers it needs, then the built wheel in an empty environment
python3 dev.py check     format, lint, types, dependency rule (--fix formats and repairs)
python3 dev.py matrix    the conformance suite on every version of every broker that can be had here (names choose among them)
python3 dev.py bench     benchmarks/run.py (arguments go to it)
python3 dev.py docs      writes the generated pages of docs/ again
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036 - an older Python gets a sentence, not a traceback
    sys.exit(f"atleastonce needs Python 3.11 or newer; this is {sys.version.split()[0]} ({sys.executable})")

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
OTHER_VENVS = ROOT / ".dev"
OLDEST = (3, 11)

# The brokers without which the suite is not passed. ALO_REQUIRE in the environment overrides it.
REQUIRED_BROKERS = ("kafka", "rabbitmq", "sqs", "nats", "pubsub", "redis")
# What else the same adapters are run on: the suite's file, and what chooses the version.
MATRIX = {
    "rabbitmq-4.0": ("rabbitmq", {"ALO_RABBITMQ_FLAVOUR": "4.0"}),
    "rabbitmq-4.3": ("rabbitmq", {"ALO_RABBITMQ_FLAVOUR": "4.3"}),
    "kafka-kip848": ("kafka", {"ALO_KAFKA_PROTOCOL": "consumer"}),
    "kafka-share": ("kafka", {"ALO_KAFKA_PROTOCOL": "share"}),
    "redis-7": ("redis", {"ALO_REDIS_FLAVOUR": "7"}),
    "redis-8.10": ("redis", {"ALO_REDIS_FLAVOUR": "8.10"}),
    "valkey": ("redis", {"ALO_REDIS_FLAVOUR": "valkey"}),
    "pubsub-google": ("pubsub", {"ALO_REQUIRE": "pubsub,pubsub-google"}),
    "nats-2.10": ("nats", {"ALO_NATS_VERSION": "2.10"}),
    "nats-2.12": ("nats", {"ALO_NATS_VERSION": "2.12"}),
}
ALL_EXTRAS = frozenset({"all", "dev"})

_TESTS_FAILED = 1  # pytest's exit code: tests ran, and some failed
_SLOWEST = ("--durations=25", "--durations-min=5")  # where the time of a run goes

# Seconds an interrupted command has to clean up. Too small leaves brokers running; too large only delays a second Ctrl-C.
GRACE = 30.0


class Failed(Exception):
    """A step failed; its output has been shown already, or is the message. ``code``: of the command, where it was one."""

    def __init__(self, text: str, code: int | None = None) -> None:
        super().__init__(text)
        self.code = code


# ---------------------------------------------------------------------------------------------------- commands


def run(
    command: Sequence[str | Path],
    *,
    quiet: bool = False,
    stdin: bool = False,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
) -> str:
    """Run a command; `quiet` shows its output only when it fails. Returns what it wrote, when quiet."""
    words = [str(word) for word in command]
    with subprocess.Popen(
        words,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=None if stdin else subprocess.DEVNULL,
        stdout=subprocess.PIPE if quiet else None,
        stderr=subprocess.STDOUT if quiet else None,
        text=True,
        errors="replace",
    ) as process:
        try:
            output = process.communicate()[0] or ""
        except KeyboardInterrupt:
            end(process)
            raise
    if process.returncode != 0:
        print(output, end="", flush=True)
        raise Failed(
            f"{Path(words[0]).name} {' '.join(words[1:4])} ... ended with {process.returncode}", process.returncode
        )
    return output


def end(process: subprocess.Popen[str]) -> None:
    """Let an interrupted command clean up (brokers, temporary folders) before it is killed.

    subprocess.run would kill it after a quarter of a second. At a terminal Ctrl-C has reached it already, and a
    second interrupt would make pytest skip its clean-up; elsewhere it has to be passed on.
    """
    if not sys.stdin.isatty():
        process.send_signal(signal.SIGINT)
    try:
        process.wait(GRACE)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()


class Steps:
    """Runs named steps, times them, and remembers which failed."""

    def __init__(self, command: str) -> None:
        self.command = command
        self.lines: list[tuple[str, float, str]] = []
        self.failed = False
        self.started = time.monotonic()

    @contextlib.contextmanager
    def step(self, name: str, *, stop: bool = False) -> Iterator[None]:
        """One step. A failure is shown and counted; with `stop` it also ends the command."""
        print(f"\n== {name}", flush=True)
        begun = time.monotonic()
        problem = "interrupted"
        try:
            yield
            problem = ""
        except Failed as error:
            problem = str(error)
            if stop:
                raise
        finally:
            took = time.monotonic() - begun
            self.lines.append((name, took, problem or "ok"))
            self.failed = self.failed or bool(problem)
            print(f"== {name}: {problem or 'ok'} ({took:.1f} s)", flush=True)

    def summary(self) -> int:
        """Print one line per step and a last line with the verdict; return the exit code."""
        print()
        for name, took, result in self.lines:
            print(f"{'FAIL' if result != 'ok' else 'ok':>6}  {took:7.1f} s  {name}")
        verdict = "FAILED" if self.failed else "passed"
        print(f"dev.py {self.command}: {verdict} in {time.monotonic() - self.started:.0f} s", flush=True)
        return 1 if self.failed else 0


# ------------------------------------------------------------------------------------------------ environments


def python_of(venv: Path) -> Path:
    """The interpreter inside a virtual environment."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def pip_env() -> dict[str, str]:
    """What keeps pip from warnings and bars that nobody reads."""
    return {
        "PIP_ROOT_USER_ACTION": "ignore",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_PROGRESS_BAR": "off",
        "PIP_NO_INPUT": "1",
    }


def uv_env(python: Path) -> dict[str, str]:
    """uv does not read pip's configuration; hand it over, so that both fetch from the same place."""
    listing = run([python, "-m", "pip", "config", "list", "--disable-pip-version-check"], quiet=True)
    pip: dict[str, str] = {}
    for line in listing.splitlines():
        key, found, value = line.partition("=")
        if found:
            pip[key.rsplit(".", 1)[-1]] = value.strip("'\"")
    names = {
        "index-url": "UV_DEFAULT_INDEX",
        "extra-index-url": "UV_INDEX",
        "find-links": "UV_FIND_LINKS",
        "cert": "SSL_CERT_FILE",
    }
    env = {names[key]: value for key, value in pip.items() if key in names and names[key] not in os.environ}
    return {**env, "UV_NO_PROGRESS": "1"}


def create_venv(venv: Path, base: str | Path) -> None:
    """Create a virtual environment, unless a working one is there."""
    python = python_of(venv)
    if python.exists():
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run([python, "-c", "import pip"], check=True, capture_output=True)
            return
        print(f"{venv.name} does not work any more: creating it again")
    try:
        run([base, "-m", "venv", "--clear", venv], quiet=True)
    except Failed as error:
        shutil.rmtree(venv, ignore_errors=True)
        raise Failed(
            f"{base} cannot create a virtual environment; on Debian and Ubuntu: apt-get install python3-venv"
        ) from error


def install(venv: Path, what: Sequence[str]) -> None:
    """Install into an environment: with uv when it can be had and works, else with pip."""
    python = python_of(venv)
    uv: list[str | Path] = [python_of(VENV), "-m", "uv"]
    try:
        if subprocess.run([*uv, "--version"], capture_output=True, check=False).returncode != 0:
            run([python_of(VENV), "-m", "pip", "install", "-q", "uv"], quiet=True, env=pip_env())
        run([*uv, "pip", "install", "-q", "--python", python, *what], quiet=True, env=uv_env(python))
    except Failed as error:
        print(f"uv did not do it ({error}); installing with pip")
        run([python, "-m", "pip", "install", "-q", *what], quiet=True, env=pip_env())


def prepare(venv: Path, extras: frozenset[str], base: str | Path = sys.executable) -> Path:
    """Make an environment with the package (editable) and these extras; does nothing when it is there already."""
    create_venv(venv, base)
    stamp = venv / "atleastonce-installed.json"
    digest = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    have: set[str] = set()
    with contextlib.suppress(OSError, ValueError):
        recorded = json.loads(stamp.read_text())
        if recorded["pyproject"] == digest:
            have = set(recorded["extras"])
    if not have >= extras | {""}:
        wanted = ",".join(sorted(extras))
        install(venv, ["-e", f"{ROOT}[{wanted}]" if wanted else str(ROOT)])
        stamp.write_text(json.dumps({"pyproject": digest, "extras": sorted(have | extras | {""})}))
    version = run([python_of(venv), "-c", "import sys; print(sys.version.split()[0])"], quiet=True).strip()
    package = f"atleastonce[{','.join(sorted(extras))}]" if extras else "atleastonce"
    print(f"{venv.relative_to(ROOT)}: Python {version}, {package}", flush=True)
    return python_of(venv)


def pythons() -> dict[tuple[int, int], str]:
    """Usable interpreters by version, from PATH and pyenv. Pre-releases and free-threaded builds do not count."""
    probe = (
        "import sys, sysconfig, venv, ensurepip\n"
        "final = sys.version_info.releaselevel == 'final' and not sysconfig.get_config_var('Py_GIL_DISABLED')\n"
        "print(sys.version_info[0], sys.version_info[1], sys._base_executable) if final else None"
    )
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    candidates = [sys.executable]
    for minor in range(OLDEST[1], 40):
        name = f"python3.{minor}"
        on_path = shutil.which(name)
        candidates += [on_path] if on_path else []
        candidates += sorted(str(path) for path in pyenv.glob(f"*/bin/{name}"))
    found: dict[tuple[int, int], str] = {}
    for candidate in candidates:
        # A pyenv shim can be on PATH for a version that is not active: only what runs counts.
        done = subprocess.run([candidate, "-c", probe], capture_output=True, text=True, check=False)
        words = done.stdout.split(maxsplit=2)
        if done.returncode == 0 and len(words) == 3:
            found.setdefault((int(words[0]), int(words[1])), words[2].strip())
    return {version: path for version, path in sorted(found.items()) if version >= OLDEST}


# ---------------------------------------------------------------------------------------------------- commands


def demo(arguments: Sequence[str]) -> int:
    steps = Steps("demo")
    with steps.step("environment", stop=True):
        python = prepare(VENV, frozenset())
    with steps.step("atleastonce demo"):
        run([python.with_name("atleastonce"), "demo", *arguments], stdin=True)
    return steps.summary()


def pytest(
    python: Path, folder: Path, *, workers: int, more: Sequence[str] = (), env: Mapping[str, str] | None = None
) -> None:
    """Run pytest quietly in parallel, with the required brokers named.

    What failed is run once more, one after the other: where brokers and tests share a few cores, a deadline that was missed may
    be the machine's doing. Both runs are shown, and what fails again has failed.
    """
    env = {"ALO_REQUIRE": os.environ.get("ALO_REQUIRE", ",".join(REQUIRED_BROKERS)), **(env or {})}
    parallel = ["-n", str(workers), "--dist", "loadgroup"] if workers > 1 else []
    try:
        run([python, "-m", "pytest", "-q", *_SLOWEST, *parallel, *more, folder], env=env)
    except Failed as error:
        if error.code != _TESTS_FAILED or not parallel:
            raise
        print("\n-- what failed, once more and alone", flush=True)
        run([python, "-m", "pytest", "-q", "--last-failed", "--last-failed-no-failures", "none", folder], env=env)


def holds_tests(folder: Path) -> bool:
    """Whether there is a test file in the folder; said aloud when there is none."""
    if any(folder.rglob("test_*.py")):
        return True
    print(f"no test file in {folder.relative_to(ROOT)}")
    return False


def test(arguments: Sequence[str]) -> int:
    if arguments:
        raise Failed("takes no arguments; for a part of it: .venv/bin/python -m pytest tests/unit -k ...")
    steps = Steps("test")
    cores = os.cpu_count() or 1
    tests = ROOT / "tests"
    with steps.step("environment", stop=True):
        python = prepare(VENV, ALL_EXTRAS)
        found = pythons()
        print("Pythons found:", ", ".join(f"{major}.{minor}" for major, minor in found))
    own = run([python, "-c", "import sys; print(*sys.version_info[:2])"], quiet=True).split()
    here = (int(own[0]), int(own[1]))
    others = [version for version in dict.fromkeys((OLDEST, max(found, default=here))) if version != here]

    with steps.step(f"unit tests, Python {here[0]}.{here[1]}"):
        pytest(python, tests / "unit", workers=cores)
    for version in others:
        name = f"{version[0]}.{version[1]}"
        if version not in found:
            print(f"\n== unit tests, Python {name}: not run, no usable Python {name} on PATH or in pyenv")
            continue
        with steps.step(f"unit tests, Python {name}"):
            other = prepare(OTHER_VENVS / f"py{name}", ALL_EXTRAS, found[version])
            pytest(other, tests / "unit", workers=cores)
    if not others:
        print(f"\nPython {here[0]}.{here[1]} is the only one found: unit tests ran on it alone", flush=True)

    # More workers than cores, since these tests wait for brokers most of the time; not many, since the brokers need cores, too.
    workers = min(cores + 2, 8)
    with tempfile.TemporaryDirectory(prefix="atleastonce-conformance-") as report:
        for part in ("docs", "conformance", "integration", "chaos"):
            if holds_tests(tests / part):
                with steps.step(f"{part} tests"):
                    more = ["--conformance-report", report] if part == "conformance" else []
                    pytest(python, tests / part, workers=workers, more=more)
        with steps.step("the conformance table is today's"):
            run([python, "-m", "atleastonce.testing.conformance.fresh", report, ROOT / "docs" / "conformance"])
    with steps.step("the wheel in an empty environment"):
        wheel_runs(python)
    return steps.summary()


def wheel_runs(python: Path) -> None:
    """Build source archive and wheel, install the wheel where nothing else is, and use it from there."""
    with tempfile.TemporaryDirectory(prefix="atleastonce-wheel-") as name:
        place = Path(name)
        run([python, "-m", "build", "--outdir", place / "dist", ROOT], quiet=True, env=pip_env())
        (wheel,) = (place / "dist").glob("*.whl")
        print(f"{wheel.name}: {wheel.stat().st_size / 1024:.0f} KiB")
        venv = place / "venv"
        create_venv(venv, sys.executable)
        install(venv, [str(wheel)])
        outside = python_of(venv)
        where = run([outside, "-c", "import atleastonce; print(atleastonce.__file__)"], quiet=True, cwd=place).strip()
        if not Path(where).is_relative_to(venv):
            raise Failed(f"imported {where}, not the installed wheel")
        if not (Path(where).parent / "py.typed").exists():
            raise Failed("py.typed is missing from the wheel")
        command = outside.with_name("atleastonce")
        report = run([command, "demo", "--messages", "200", "--json"], quiet=True, cwd=place)
        try:
            account = json.loads(report.strip().splitlines()[-1])
            published, lost = int(account["published"]), int(account["lost"])
        except (IndexError, KeyError, ValueError) as error:
            raise Failed(f"the last line of demo --json is no account: {report[-300:]!r}") from error
        print(json.dumps(account))
        if lost or not published:
            raise Failed(f"the demo lost {lost} of {published}")


def check(arguments: Sequence[str]) -> int:
    options = argparse.ArgumentParser(prog="dev.py check")
    options.add_argument("--fix", action="store_true", help="format, and repair what can be repaired")
    fix = options.parse_args(arguments).fix
    steps = Steps("check")
    with steps.step("environment", stop=True):
        python = prepare(VENV, ALL_EXTRAS)
    with steps.step("ruff format"):
        run([python, "-m", "ruff", "format", *([] if fix else ["--check"])])
    with steps.step("ruff check"):
        run([python, "-m", "ruff", "check", *(["--fix"] if fix else [])])
    with steps.step("mypy --strict"):
        run([python, "-m", "mypy"])
    with steps.step("dependency rule"):
        run([python.with_name("lint-imports"), "--no-cache"], quiet=True)
    return steps.summary()


def matrix(arguments: Sequence[str]) -> int:
    if unknown := [name for name in arguments if name not in MATRIX]:
        raise Failed(f"no version {', '.join(unknown)}; there are {', '.join(MATRIX)}")
    steps = Steps("matrix")
    with steps.step("environment", stop=True):
        python = prepare(VENV, ALL_EXTRAS)
    for name in arguments or MATRIX:
        broker, variables = MATRIX[name]
        with steps.step(name):
            suite = ROOT / "tests" / "conformance" / f"test_{broker}.py"
            pytest(python, suite, workers=os.cpu_count() or 1, env={"ALO_REQUIRE": broker, **variables})
    return steps.summary()


def bench(arguments: Sequence[str]) -> int:
    steps = Steps("bench")
    with steps.step("environment", stop=True):
        python = prepare(VENV, ALL_EXTRAS)
    with steps.step("benchmarks/run.py"):
        run([python, ROOT / "benchmarks" / "run.py", *arguments], stdin=True)
    return steps.summary()


def docs(arguments: Sequence[str]) -> int:
    """Each script in docs/generate/ writes one page; they run in the order of their names."""
    if arguments:
        raise Failed(f"takes no arguments, got {' '.join(arguments)}")
    steps = Steps("docs")
    with steps.step("environment", stop=True):
        python = prepare(VENV, ALL_EXTRAS)
    scripts = sorted((ROOT / "docs" / "generate").glob("*.py"))
    if not scripts:
        print("no script in docs/generate: nothing to write")
    for script in scripts:
        with steps.step(f"docs/generate/{script.name}"):
            run([python, script])
    return steps.summary()


def main() -> int:
    commands = {"demo": demo, "test": test, "check": check, "matrix": matrix, "bench": bench, "docs": docs}
    words = sys.argv[1:]
    if not words or words[0] in {"-h", "--help"}:
        print((__doc__ or "").strip())
        return 0 if words else 2
    if words[0] not in commands:
        print(f"dev.py: no command {words[0]!r}; there are {', '.join(commands)}", file=sys.stderr)
        return 2
    # Some machines set it. Tests start hundreds of processes, and each would compile its broker's client anew: seconds for some.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # A cancelled CI job sends SIGTERM: it ends the same way as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return commands[words[0]](words[1:])
    except Failed as error:
        print(f"dev.py {words[0]}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\ndev.py {words[0]}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
