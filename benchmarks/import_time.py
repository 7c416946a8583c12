"""How long `import atleastonce` takes: the median over fresh processes, start of the interpreter not counted."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

PROBE = "import time; t = time.perf_counter(); import atleastonce; print(time.perf_counter() - t)"


def measure(runs: int) -> list[float]:
    """Milliseconds per run, after one run that is not counted (it may write byte code)."""
    command = [sys.executable, "-c", PROBE]
    times = [
        float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) * 1000
        for _ in range(runs + 1)
    ]
    return times[1:]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--runs", type=int, default=10, help="fresh processes (default 10)")
    options.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = options.parse_args()
    if arguments.runs < 1:
        options.error("--runs must be at least 1")
    times = measure(arguments.runs)
    report = {
        "runs": arguments.runs,
        "python": sys.version.split()[0],
        "median_ms": round(statistics.median(times), 1),
        "min_ms": round(min(times), 1),
        "max_ms": round(max(times), 1),
    }
    if arguments.json:
        print(json.dumps(report))
    else:
        print(
            "import atleastonce: median {median_ms} ms, {min_ms} to {max_ms} ms, "
            "{runs} fresh processes, Python {python}".format(**report)
        )


if __name__ == "__main__":
    main()
