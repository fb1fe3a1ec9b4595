"""Damaged parameter files, study files and citation files: accepted rightly, or refused in one line that names the file."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.damage.mutants import TEXTS, VALUES, mutants
from vitfp8.catalog import EXPERIMENTS
from vitfp8.errors import LONGEST_LINE, InputError, printable
from vitfp8.params import Layer, RunParams, merge, parse_assignment, read_layer, validate
from vitfp8.params.quantization import parameters_of
from vitfp8.reporting.citation import read_citation
from vitfp8.run.study_file import check_study_name, parse_study

TOP = Path(__file__).resolve().parents[2]
FILES = [f"params/{name}.yaml" for name in EXPERIMENTS]
PRESETS = sorted(path.relative_to(TOP).as_posix() for path in (TOP / "params" / "presets").glob("*.yaml"))
STUDIES = sorted(path.relative_to(TOP).as_posix() for path in (TOP / "params" / "studies").glob("*.yaml"))

# ------------------------------------------------------------------------- the rule, stated anew: what a field may be

_ANY = math.inf
#: Field → whether it is whole, its least and greatest value, and whether these two belong to it.
NUMBERS: dict[str, tuple[bool, float, float, bool, bool]] = {
    "seed": (True, 0, 2**31, True, False), "validation_fraction": (False, 0, 0.5, False, False), "workers": (True, 0, 256, True,
    True),
    "image_size": (True, 4, 2048, True, True), "patch_size": (True, 1, 512, True, True), "embed_dim": (True, 1, 16384, True,
    True),
    "depth": (True, 1, 256, True, True), "num_heads": (True, 1, 256, True, True), "in_channels": (True, 1, 3, True, True),
    "epochs": (True, 1, 100_000, True, True), "batch_size": (True, 1, 1_000_000, True, True),
    "micro_batch_size": (True, 1, 2**31, True, False), "learning_rate": (False, 0, 100, False, True),
    "weight_decay": (False, 0, 100, True, True), "warmup_fraction": (False, 0, 1, True, True),
    "label_smoothing": (False, 0, 1, True, False), "gradient_clip": (False, 0, _ANY, False, False),
    "loss_scale": (False, 1, 2.0**40, True, True), "loss_scale_interval": (True, 1, 2**31, True, False),
    "threads": (True, 1, 4096, True, True), "checkpoint_every": (True, 1, 2**31, True, False),
    "checkpoint_minutes": (False, 0, 1440, False, True), "health_every": (True, 0, 2**31, True, False),
    "monitor_interval": (False, 0.1, 3600, True, True), "calibration_images": (True, 1, 2**31, True, False),
}  # fmt: skip
NULLABLE = {
    "patch_size", "embed_dim", "depth", "num_heads", "in_channels", "micro_batch_size", "gradient_clip", "threads", "data_dir",
    "pretrained_file", "checkpoint_every", "checkpoint_minutes", "run_folder", "source_run",
}  # fmt: skip
FLAGS = {"download", "pretrained", "deterministic", "powermetrics", "sensitivity", "export", "torch_compile", "cuda_graphs"}
LISTS = {"formats", "granularities", "operands"}
PRECISION_WORDS = {
    "fp32": "fp32", "32": "fp32", "32-true": "fp32", "float32": "fp32", "tf32": "tf32", "bf16": "bf16", "bf16-mixed": "bf16",
    "fp16": "fp16", "16": "fp16", "16-mixed": "fp16", "fp8": "fp8",
}  # fmt: skip


def rightly(key: str, stated: Any, accepted: Any) -> bool:
    """Whether an accepted value is what was stated, by a rule that shares no code with the package.

    Args:
        key: the field.
        stated: as papermill's YAML reader gives it.
        accepted: what became of it.
    """
    if stated is None:
        return accepted is None and key in NULLABLE
    if key in FLAGS:
        return stated is accepted or (key == "torch_compile" and stated == accepted == "auto")
    if key in LISTS:
        return stated == accepted and all(type(name) is str for name in accepted)
    if key in ("precision", "base_precision"):
        return accepted == PRECISION_WORDS.get(str(stated).strip().lower(), accepted)
    if key not in NUMBERS:
        # a date keeps the text that was written
        return type(accepted) is str and (stated == accepted or not isinstance(stated, str)) and len(accepted) <= 4000
    whole, low, high, with_low, with_high = NUMBERS[key]
    if isinstance(stated, bool):
        return False
    number = float(stated)  # also of a text such as 1e-3, which YAML 1.1 takes for one
    if whole and (type(accepted) is not int or not number.is_integer()):
        return False
    if not whole and (type(accepted) is not float or not math.isfinite(accepted)):
        return False
    above = accepted >= low if with_low else accepted > low
    below = accepted <= high if with_high else accepted < high
    return accepted == number and above and below


def refusal_is_clear(error: InputError, source: str) -> bool:
    """One bounded line without anything that a terminal would obey, beginning with the file, with a way out."""
    line = str(error)
    assert all(c.isprintable() or c in "\u00a0\u202f\u3000" for c in line), repr(line)
    assert len(line) <= LONGEST_LINE, len(line)
    assert line.startswith(source), line
    assert any(word in line for word in ("; ", "did you mean", "must be", "is expected", "give ", "take ")), line
    return True


# --------------------------------------------------------------------------------------------------- parameter files


@pytest.mark.parametrize("name", [*FILES, *PRESETS])
def test_a_damaged_parameter_file_is_accepted_rightly_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    text = (TOP / name).read_text(encoding="utf-8")
    kind = parameters_of(Path(name).stem) if name in FILES else RunParams
    base = [] if name in FILES else [read_layer(TOP / "params" / "BaseFP32.yaml")]
    target = tmp_path / "mutant.yaml"
    kept, refused = 0, 0
    for damage, content in mutants(text, 180, seed=FILES.index(name) if name in FILES else 100 + PRESETS.index(name)):
        target.write_bytes(content)
        try:
            params = validate([*base, read_layer(target)], kind)
        except InputError as error:
            refused += refusal_is_clear(error, str(target))
            continue
        stated = yaml.safe_load(content.decode("utf-8-sig").lstrip("\ufeff"))
        for key, value in stated.items():
            assert rightly(key, value, getattr(params, key)), (damage, key, value, getattr(params, key))
        kept += 1
    assert kept + refused == 180
    assert kept > 5 and refused > 90
    assert [path.name for path in tmp_path.iterdir()] == ["mutant.yaml"]


def test_a_value_in_the_place_of_any_other_is_accepted_rightly_or_refused_with_its_line(tmp_path: Path) -> None:
    layer = read_layer(TOP / "params" / "BaseFP32.yaml")
    refused, numbers, texts = 0, 0, 0
    for index, key in enumerate(layer.values):
        for text in VALUES[index % 4 :: 4]:
            try:
                _, value = parse_assignment(key, text)
                params = validate([layer, Layer("-p", {key: value})])
            except InputError as error:
                # a value that contradicts another one may be named at that one, in the file
                refusal_is_clear(error, "-p" if str(error).startswith("-p") else str(TOP / "params"))
                assert key in str(error)
                refused += 1
                continue
            if key in NUMBERS or key in FLAGS:
                assert rightly(key, yaml.safe_load(text), getattr(params, key)), (key, text)
                numbers += 1
            elif isinstance(yaml.safe_load(text), str) and key in ("question", "expectation", "model"):
                assert getattr(params, key) in (text, yaml.safe_load(text))
                texts += 1
    assert refused > 300 and numbers > 50 and texts > 10


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("what? #1 of 3", None),
        ("|", None),
        ("# all", None),
        ("--- a", None),
        ("'quoted' # no", None),
        ("'a'", "a"),
    ],
)
def test_a_text_on_the_command_line_loses_nothing(text: str, kept: str | None) -> None:
    assert parse_assignment("question", text) == ("question", text if kept is None else kept)


@pytest.mark.parametrize("break_", ["\n", "\r", "\x85", "\u2028", "\u2029"])
def test_a_second_line_on_the_command_line_is_refused(break_: str) -> None:
    with pytest.raises(InputError, match="more than one line"):
        parse_assignment("question", f"a{break_}epochs: 5")


@pytest.mark.parametrize(("text", "as_read"), [("010", "8"), ("1:30", "90"), ("-017", "-15"), ("1:00.5", "60.5")])
def test_a_number_that_yaml_reads_otherwise_than_people_is_refused(text: str, as_read: str) -> None:
    with pytest.raises(InputError, match=f"YAML reads it as {as_read}"):
        parse_assignment("epochs", text)


def test_a_file_that_is_no_parameter_file_is_refused_by_its_size(tmp_path: Path) -> None:
    huge = tmp_path / "huge.yaml"
    with huge.open("wb") as file:
        file.truncate(50 * 2**30)  # a hole: nothing is on the disk
    for path in (huge, Path("/dev/zero")):
        with pytest.raises(InputError, match="larger than"):
            read_layer(path)


@pytest.mark.parametrize("path", ["a\0b.yaml", "x" * 300 + ".yaml", "no\x1b[31m/such.yaml", "\udcff.yaml"])
def test_an_impossible_file_name_is_one_line(path: str) -> None:
    with pytest.raises(InputError) as refusal:
        read_layer(path)
    assert str(refusal.value).isprintable()


def test_what_a_message_quotes_is_made_printable_and_bounded() -> None:
    assert str(InputError("a\x1b]0;title\x07b\nc\u202ed")) == "a\\x1b]0;title\\x07b c\\u202ed"
    line = str(InputError("file: " + "x" * 10_000 + "; the way out"))
    assert len(line) == LONGEST_LINE and line.startswith("file: ") and line.endswith("; the way out")
    assert printable("äöü – 1\u00a0000 %") == "äöü – 1\u00a0000 %"


# -------------------------------------------------------------------------------------------- study and citation files


@pytest.mark.parametrize("name", STUDIES)
def test_a_damaged_study_file_is_accepted_rightly_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    text = (TOP / name).read_text(encoding="utf-8")
    target = tmp_path / "mutant.yaml"
    kept, refused = 0, 0
    for _, content in mutants(text, 200, seed=7):
        target.write_bytes(content)
        try:
            study = parse_study(read_layer(target))
        except InputError as error:
            refused += refusal_is_clear(error, str(target))
            continue
        kept += 1
        assert study.experiments and set(study.experiments) <= set(EXPERIMENTS)
        assert study.seeds and len(set(study.seeds)) == len(study.seeds) <= 1000
        assert all(type(seed) is int and 0 <= seed < 2**31 for seed in study.seeds)
        assert 0 <= study.cooldown <= 86400
    assert kept > 5 and refused > 50


@pytest.mark.parametrize(
    "values",
    [{"seeds": []}, {"seeds": [0, 0]}, {"seeds": [True]}, {"seeds": "3"}, {"seeds": 0}, {"seeds": 10**9}, {"seeds": None},
     {"experiments": []}, {"experiments": "BaseFP32"}, {"experiments": [1]}, {"cooldown": True}, {"cooldown": float("nan")},
     {"cooldown": -1}, {"preset": ""}, {"preset": 3}, {"question": "x" * 5000}],
)  # fmt: skip
def test_a_study_of_nothing_or_of_doubles_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="^study.yaml:3: "):
        parse_study(Layer("study.yaml", values, dict.fromkeys(values, 3)))


def test_a_damaged_citation_file_is_accepted_or_refused_in_one_line(tmp_path: Path) -> None:
    text = (TOP / "CITATION.cff").read_text(encoding="utf-8")
    target = tmp_path / "CITATION.cff"
    kept, refused = 0, 0
    for _, content in mutants(text, 60, seed=3):
        target.write_bytes(content)
        try:
            cited = read_citation(target)
        except InputError as error:
            refused += refusal_is_clear(error, str(target))
            continue
        kept += 1
        assert cited.title and cited.authors
    assert kept > 3 and refused > 15


# ------------------------------------------------------------------------------------------------------ names and places


@pytest.mark.parametrize(
    "name",
    ["..", ".", "", "/etc", "../x", "a/b", "a\\b", "a\0b", "a\nb", "x" * 101, "a.", "a..", "-x", ".hidden", "CON", "nul.txt",
     "com1",
     "Lpt9.x", "~root", "a b", "ä", "a\x1b[31m", "$(x)", "{x}", "%s"],
)  # fmt: skip
def test_a_study_never_leaves_its_folder(name: str) -> None:
    with pytest.raises(InputError) as refusal:
        check_study_name(name)
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("name", ["paper", "my-study_2.1", "a+b", "console", "com10", "nullify"])
def test_plain_study_names_are_taken(name: str) -> None:
    assert check_study_name(name) == name


# --------------------------------------------------------------------------------------------------- the command itself

CALL = (
    "import json, sys; from click.testing import CliRunner; from vitfp8.cli import main\n"
    "for arguments in json.load(sys.stdin):\n"
    "    result = CliRunner().invoke(main, arguments)\n"
    "    error = None if result.exception is None or isinstance(result.exception, SystemExit) else repr(result.exception)\n"
    "    print(json.dumps([result.exit_code, result.stdout, result.stderr, error]))\n"
)


def run_commands(calls: list[list[str]]) -> list[list[Any]]:
    """Exit status, standard output, standard error and escaped exception of each command line, in one fresh process."""
    import json

    done = subprocess.run(
        [sys.executable, "-c", CALL], input=json.dumps(calls), capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(TOP)}, timeout=300,
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_commands_refuse_damaged_files_with_one_line_and_write_nothing(project: Path) -> None:
    layers = [read_layer(project / "params" / "BaseFP32.yaml"), read_layer(project / "params" / "presets" / "smoke.yaml")]
    good = yaml.safe_dump(merge(layers) | {"download": False}, sort_keys=False, width=1000)
    damaged = project / "damaged"
    damaged.mkdir()
    contents = [content for _, content in mutants(good, 14, seed=11)]
    contents += [text.encode("utf-8", "surrogatepass") for text in TEXTS[::4]]
    for number, content in enumerate(contents):
        (damaged / f"m{number}.yaml").write_bytes(content)
    (damaged / "esc\x1b[31m.yaml").write_text("epoch: 3\n")
    (damaged / "latin.yaml").write_bytes("question: Müller\n".encode("latin-1"))
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    files = sorted(path.relative_to(project).as_posix() for path in damaged.iterdir())
    checks = run_commands([["check", file] for file in files])
    runs = run_commands([["run", "BaseFP32", "--preset", file, "--study", "x", "--dry-run"] for file in files])
    names = run_commands(
        [["run", "--study", name, "--dry-run"] for name in ("..", "/etc", "a\x1b[31m", "x" * 5000, "CON")]
        + [["run", "--preset", name, "--dry-run"] for name in ("../BaseFP32", "a/../../b", "x" * 5000, "\x1b[2J")]
        + [["runs", name] for name in ("..", "../..", "/etc", "\x1b[2J")]
        + [["run", "BaseFP32", "-p", key, value, "--preset", "smoke", "--dry-run"]
           for key, value in (("epochs", "\x1b[31m"), ("\x1b[31m", "3"), ("seed", "0x" + "f" * 6000), ("variant", "../x"),
                              ("question", "a\nb: c"), ("run_folder", "/tmp/x"))]
    )  # fmt: skip
    refused = 0
    for file, (status, _, stderr, escaped) in zip(files + files, checks + runs, strict=True):
        assert escaped is None and status in (0, 2), (file, status, escaped, stderr)
        if status == 2:
            lines = [line for line in stderr.splitlines() if not line.startswith("warning: ")]
            assert len(lines) == 1 and printable(file) in lines[0] and len(lines[0]) < LONGEST_LINE + 100, (file, lines)
            refused += 1
    assert refused >= 1.5 * len(files)
    for status, _, stderr, escaped in names:
        assert escaped is None and status == 2 and len(stderr.splitlines()) == 1, (status, stderr, escaped)
    for _, stdout, stderr, _ in checks + runs + names:
        assert "\x1b" not in stdout + stderr and "Traceback" not in stderr
    assert {path: path.read_bytes() for path in project.rglob("*") if path.is_file()} == before
