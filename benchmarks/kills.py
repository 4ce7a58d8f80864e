"""Workers and whole studies killed at random moments: what is lost?

    python benchmarks/kills.py [--times 20] [--seed 0]

A study of two models and four analyses runs with two worker processes.  At a random moment one worker (every other time the
whole study) gets SIGKILL; then the same command runs again, to its end.  Rows must equal those of a study that nobody stopped,
and no process, draft or lock may stay.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODELS = ["demo-cnn", "demo-vit"]
WORDS = ["--analyses", "fourier", "lesion", "calibration", "landscape", "--limit", "60", "--resamples", "50", "--quiet"]


def main() -> None:
    """Print a line a kill, and the sum."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    chance = random.Random(words.seed)
    with tempfile.TemporaryDirectory() as folder:
        expected = rows(study(Path(folder) / "expected"))
        lengths = []
        for number in range(words.times):
            out = Path(folder) / f"killed-{number}"
            killed = kill_once(out, chance.uniform(2, 25), worker=number % 2 == 0)
            study(out)
            same, left = rows(out) == expected, [str(path) for path in out.rglob(".*")]
            lengths.append(killed)
            which, outcome = "study" if number % 2 else "worker", "equal" if same else "DIFFERENT"
            print(f"{number}: {which} killed after {killed:.1f} s: {outcome} rows, {len(left)} files left", flush=True)
            assert same, number
            assert not left, left
            assert not workers()
    print(f"{words.times} of {words.times} resumed to equal rows; killed after {min(lengths):.1f} to {max(lengths):.1f} s")


def command(out: Path) -> list[str]:
    """The study with two workers."""
    words = ["study", "--models", *MODELS, *WORDS, "--out", str(out), "--engine", "processes:2"]
    return [sys.executable, "-m", "backlight", *words]


def study(out: Path) -> Path:
    """Run it to its end."""
    subprocess.run(command(out), check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return out


def kill_once(out: Path, after: float, *, worker: bool) -> float:
    """Kill a worker, or the study, after so many seconds or when it is nearly done."""
    process = subprocess.Popen(command(out), stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    started = time.monotonic()
    while time.monotonic() - started < after and process.poll() is None:
        time.sleep(0.02)
    took = time.monotonic() - started
    targets = workers() if worker else [process.pid]
    for number in targets[:1]:
        os.kill(number, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10
    while workers() and time.monotonic() < deadline:
        time.sleep(0.1)
    return took


def workers() -> list[int]:
    """The worker processes of this machine that still run."""
    found = subprocess.run(["pgrep", "-f", "engines.child"], capture_output=True, text=True, check=False).stdout.split()
    ours = os.environ.get("BACKLIGHT_KILLS_EXCEPT", "").split(",")
    return [int(number) for number in found if number not in ours and running(number)]


def running(number: str) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def rows(out: Path) -> dict[str, str]:
    """The rows of all results."""
    from backlight.study.cells import load

    places = sorted(path.parent for path in out.glob("*/*/result.json"))
    return {str(place.relative_to(out)): str(load(place).rows()) for place in places}


if __name__ == "__main__":
    main()
