"""Fault injection on real processes: runs are killed at random moments, continued, and compared bit by bit.

    python -m tests.chaos [--kills 36] [--seed 0] [--write docs/reliability.md]

A *life* is one run in a folder of its own: it is started by the command line, killed (the runner, the kernel, or both; at a
random moment, or while a checkpoint or a notebook is being written), started again by the same command, killed again, and at last
left alone. Then its digest, its test predictions and its last weights must be those of a run that nobody disturbed. After each
kill every notebook must be valid, and the run must not read as completed unless it is.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import psutil
import torch

from vitfp8.checkpoint import load_checkpoint
from vitfp8.record import RunRecord, is_live, read_record

TOP = Path(__file__).resolve().parent.parent

#: Precision → experiment and what is laid over it.
PRECISIONS = {
    "fp32": ("BaseFP32", ()),
    "fp16": ("AugmFP16", ()),
    "fp8": ("BaseFP8", (("fp8_recipe", "delayed"),)),
}

VICTIMS = ("runner", "kernel", "both")
MOMENTS = ("random", "checkpoint", "notebook")


@dataclass
class Life:
    """One run in its folder.

    Attributes:
        folder: working directory of the command.
        precision: a key of `PRECISIONS`.
        epochs: how long it trains.
        kills: what was done to it: (victim, moment).
    """

    folder: Path
    precision: str
    epochs: int = 24
    kills: list[tuple[str, str]] = field(default_factory=list)

    @property
    def output(self) -> Path:
        """The lab record."""
        return self.folder / "executed" / "chaos" / f"{PRECISIONS[self.precision][0]}-s0.ipynb"

    @property
    def run_folder(self) -> Path:
        """Journal, lock and checkpoints."""
        return self.output.with_suffix("")

    def command(self) -> list[str]:
        """The one command, first and every time."""
        experiment, overrides = PRECISIONS[self.precision]
        settings = [("epochs", str(self.epochs)), ("checkpoint_minutes", "0.001"), *overrides]
        options = [word for key, value in settings for word in ("-p", key, value)]
        return [sys.executable, "-m", "vitfp8", "run", experiment, "--preset", "smoke", "--study", "chaos", *options]

    def start(self) -> subprocess.Popen[bytes]:
        """Start the command."""
        return subprocess.Popen(
            self.command(), cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )

    def record(self) -> RunRecord:
        """The record as a reader sees it now."""
        return read_record(self.output)


def kernels(runner: psutil.Process) -> list[psutil.Process]:
    """The kernels of a runner."""
    with suppress(psutil.Error):
        return [child for child in runner.children(recursive=True) if "ipykernel_launcher" in " ".join(child.cmdline())]
    return []


def writing(life: Life, moment: str) -> Iterator[bool]:
    """Whether the file that the moment names is being written, asked again and again."""
    while True:
        places = {"checkpoint": life.run_folder / "checkpoints", "notebook": life.output.parent}
        try:
            yield any(entry.name.endswith(".tmp") for entry in os.scandir(places[moment]))
        except OSError:
            yield False


def kill_once(life: Life, victim: str, moment: str, dice: random.Random) -> bool:
    """Start the command and kill; False when the run was over before the moment came."""
    process = life.start()
    runner = psutil.Process(process.pid)
    deadline = time.monotonic() + 120
    while not kernels(runner) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    if (
        moment != "random"
    ):  # from when it trains; a writing is awaited after a while of its own, else it would always be the first
        before = _epochs_done(life)
        while _epochs_done(life) == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
    until = time.monotonic() + dice.uniform(0.0, 6.0 if moment == "random" else 0.8)
    while time.monotonic() < until and process.poll() is None:
        time.sleep(0.01)
    orphans = kernels(runner)
    pids = {"runner": [runner.pid], "kernel": [k.pid for k in orphans], "both": [*(k.pid for k in orphans), runner.pid]}[victim]
    if moment != "random":
        for now in writing(life, moment):
            if now or time.monotonic() > deadline or (random.random() < 1e-3 and process.poll() is not None):
                break
    if process.poll() is not None or not pids:
        process.wait()
        return False
    for pid in pids:  # at once: a writing takes milliseconds
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(timeout=120)
    psutil.wait_procs(orphans, timeout=60)  # a kernel without its runner ends by itself
    assert not is_live(life.run_folder), "a dead run holds its lock"
    life.kills.append((victim, moment))
    return True


def _epochs_done(life: Life) -> int:
    """Epochs in the journal."""
    with suppress(OSError):
        return (life.run_folder / "journal.jsonl").read_bytes().count(b'"epoch":{')
    return 0


def check_files(life: Life) -> None:
    """Every notebook is valid and nothing reads as running."""
    for notebook in life.output.parent.rglob("*.ipynb"):
        nbformat.validate(nbformat.reads(notebook.read_text(encoding="utf-8"), as_version=4))
    for journal in life.output.parent.rglob("journal.jsonl"):
        lines = journal.read_text(encoding="utf-8").splitlines()
        for line in lines[:-1]:
            json.loads(line)
    if life.output.exists() or (life.run_folder / "journal.jsonl").exists():
        assert life.record().status in ("interrupted", "failed", "completed"), life.record().status


def finish(life: Life) -> RunRecord:
    """Let the run come to its end."""
    done = subprocess.run(life.command(), cwd=life.folder, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    record = life.record()
    assert record.status == "completed", record.status
    return record


def weights(life: Life) -> dict[str, torch.Tensor]:
    """The last weights."""
    return load_checkpoint(life.run_folder / "checkpoints" / "last.pt")["model"]


def assert_identical(life: Life, undisturbed: Life) -> None:
    """Digest, predictions and weights are those of the undisturbed run."""
    record, expected = life.record(), undisturbed.record()
    assert record.deterministic["promised"] and record.deterministic["digest"] == expected.deterministic["digest"], life.kills
    assert record.predictions == expected.predictions
    there, here = weights(undisturbed), weights(life)
    assert there.keys() == here.keys() and all(torch.equal(there[name], here[name]) for name in there), life.kills


def storm(place: Path, precision: str, plan: list[tuple[str, str]], dice: random.Random, *, per_life: int = 4) -> list[Life]:
    """Kill runs of one precision as planned; every life ends bit-identical.

    Args:
        place: an empty folder.
        precision: a key of `PRECISIONS`.
        plan: (victim, moment) of each kill.
        dice: draws the moments.
        per_life: kills until a run is left to finish.

    Returns:
        The lives, each with the kills that it survived.
    """
    undisturbed = Life(place / "undisturbed", precision)
    undisturbed.folder.mkdir(parents=True)
    finish(undisturbed)
    lives: list[Life] = []
    waiting = list(plan)
    while waiting:
        assert len(lives) < 3 * len(plan), f"runs end before they can be killed: {waiting}"
        life = Life(place / f"life-{len(lives) + 1}", precision)
        life.folder.mkdir()
        while waiting and len(life.kills) < per_life and kill_once(life, *waiting[0], dice):
            waiting.pop(0)
            check_files(life)
        finish(life)
        check_files(life)
        assert_identical(life, undisturbed)
        lives.append(life)
    return lives


def report(lives: list[Life]) -> str:
    """The kills as a table in Markdown: precision × (victim, moment)."""
    count: Counter[tuple[str, str, str]] = Counter((life.precision, *kill) for life in lives for kill in life.kills)
    lines = ["| killed | when | " + " | ".join(PRECISIONS) + " |", "|---|---|" + "---|" * len(PRECISIONS)]
    words = {
        "random": "at a random moment",
        "checkpoint": "while a checkpoint was written",
        "notebook": "while a notebook was saved",
    }
    for victim in VICTIMS:
        for moment in MOMENTS:
            cells = [str(count[(precision, victim, moment)]) for precision in PRECISIONS]
            lines.append(f"| {'runner and kernel' if victim == 'both' else victim} | {words[moment]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """The long form: every victim at every moment, in every precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=36, help="in all, at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, help="put the table between the marks of this file")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TOP), *filter(None, [os.environ.get("PYTHONPATH")])])
    dice = random.Random(options.seed)
    each = -(-options.kills // len(PRECISIONS))
    every = [(victim, moment) for moment in MOMENTS for victim in VICTIMS]
    lives: list[Life] = []
    with tempfile.TemporaryDirectory(prefix="vitfp8-chaos-") as place:
        for precision in PRECISIONS:
            plan = [*every, *(dice.choice(every) for _ in range(each - len(every)))][:each]
            dice.shuffle(plan)
            found = storm(Path(place) / precision, precision, plan, dice)
            lives += found
            print(
                f"{precision}: {sum(len(life.kills) for life in found)} kills in {len(found)} runs, all ended bit-identical",
                flush=True,
            )
    table = report(lives)
    kills = sum(len(life.kills) for life in lives)
    print(table)
    if options.write:
        begin, end = "<!-- chaos -->\n", "<!-- end of chaos -->"
        text = options.write.read_text(encoding="utf-8")
        head, _, rest = text.partition(begin)
        command = f"python -m tests.chaos --seed {options.seed}"
        summary = f"{kills} kills (`{command}`) over {len(lives)} runs; every run ended bit-identical.\n\n"
        options.write.write_text(head + begin + summary + table + "\n" + end + rest.partition(end)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
