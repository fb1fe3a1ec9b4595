"""What papermill, record and monitor cost: a run of `vitfp8 run` against the same training in a plain script.

Protocol: both sides are whole commands in processes of their own, from start to exit, and take turns; each has run once untimed,
so that files are in memory. The script makes the same trainer from the same parameters, trains, and reads the test set twice,
without notebook, journal, checkpoints and monitor. The aim is 1.02 times the script's time and 6 seconds. With ``--seeds N`` a
batch of N runs is divided by N: what is done once a command (checks of parameters, data and machine) is shared.

    python benchmarks/workflow_overhead.py [--preset digits] [--experiment BaseFP32] [--seeds 1] [--repeats 3]
        [-p KEY VALUE]… [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]

#: What the aim allows: a factor and seconds.
FACTOR, FIXED = 1.02, 6.0

SCRIPT = """
import sys
from vitfp8.experiment import prepare_experiment
from vitfp8.run.plan import layers_for
from vitfp8.params import validate

experiment, preset, *pairs = sys.argv[1:]
params = validate(layers_for(experiment, preset, list(zip(pairs[::2], pairs[1::2]))))
trainer = prepare_experiment(params).trainer
trainer.folder = None
outcome = trainer.train()
print(outcome.status, trainer.validate("test").accuracy, trainer.validate("test").accuracy)
"""


def seconds_of(command: list[str], folder: Path) -> float:
    """Wall time of a whole command; one that fails ends the benchmark."""
    environment = {**os.environ, "PYTHONPATH": str(TOP)}
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return seconds


def main() -> None:
    """Run both sides in turns and print their times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="digits")
    parser.add_argument("--experiment", default="BaseFP32")
    parser.add_argument("--repeats", type=int, default=3, help="timed turns of each side")
    parser.add_argument("--seeds", type=int, default=1, help="runs of one command")
    parser.add_argument("-p", dest="pairs", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"))
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    options = parser.parse_args()
    pairs = [word for pair in options.pairs for word in pair]
    run = [sys.executable, "-m", "vitfp8", "run", options.experiment, "--preset", options.preset, "--force"]
    run += ["--seeds", str(options.seeds)]
    run += [word for pair in options.pairs for word in ("-p", *pair)]
    script = [sys.executable, "-c", SCRIPT, options.experiment, options.preset, *pairs]
    times: dict[str, list[float]] = {"run": [], "script": []}
    with tempfile.TemporaryDirectory(prefix="vitfp8-overhead-") as place:
        folder = Path(place)
        for name in ("notebooks", "params"):
            shutil.copytree(TOP / name, folder / name)
        for turn in range(1 + options.repeats):
            for side, command in (("script", script), ("run", run)):
                seconds = seconds_of(command, folder) / (options.seeds if side == "run" else 1)
                if turn:
                    times[side].append(seconds)
                    print(f"turn {turn}: {side:6} {seconds:7.1f} s", flush=True)
    ours, plain = statistics.median(times["run"]), statistics.median(times["script"])
    print(f"\n{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"{options.experiment}, preset {options.preset} {pairs}, runs of one command: {options.seeds}")
    print(f"run {ours:.1f} s, script {plain:.1f} s: {ours - plain:+.1f} s, {ours / plain:.2f}×")
    allowed = FACTOR * plain + FIXED
    print(f"aim: {FACTOR} × {plain:.1f} s + {FIXED:.0f} s = {allowed:.1f} s, {'reached' if ours <= allowed else 'missed'}")
    if options.json:
        options.json.write_text(json.dumps({"times": times, "allowed": allowed}, indent=1) + "\n")


if __name__ == "__main__":
    main()
