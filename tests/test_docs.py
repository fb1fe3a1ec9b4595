"""Documentation that cannot rot: every path, command, option and parameter that it names exists; environments agree."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import click
import pytest
import yaml
from packaging.requirements import Requirement

from vitfp8.cli import main
from vitfp8.params import RunParams, describe_parameters
from vitfp8.params.quantization import QuantizeParams

TOP = Path(__file__).resolve().parent.parent
PAGES = [*sorted(TOP.glob("*.md")), *sorted((TOP / "docs").glob("*.md"))]

#: Paths that a run makes, or that stand for others.
MADE = (
    "executed/",
    "report/",
    "runs/",
    "out.ipynb",
    "data/",
    ".venv/",
    "results/",
    "configs/",
    "scripts/",
    "plots_v2/",
    "build/",
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_linked_files_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), target


_PATH = re.compile(r"(?<![\w/.<])((?:vitfp8|notebooks|params|tests|docs|benchmarks)/[\w./-]*[\w/])")


def test_the_pages_have_links_and_paths_to_check() -> None:
    text = "".join(page.read_text() for page in PAGES)
    assert len(_PATH.findall(text)) > 50 and len(re.findall(r"\]\(([^)#\s:]+)[^)]*\)", text)) > 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_paths_exist(page: Path) -> None:
    for name in _PATH.findall(page.read_text()):
        if not name.startswith(MADE):
            assert (TOP / name).exists(), f"{page.name}: {name}"


_FENCE = re.compile(r"^ *```[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_CALL = re.compile(r"(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\S*/)?(vitfp8|make) +(\S.*)")


def calls_in(text: str) -> list[tuple[str, str]]:
    """Every call of ``vitfp8`` or ``make`` in the code of a page (fenced blocks and spans): program and the rest of its line."""
    code = [line for block in _FENCE.findall(text) for line in block.splitlines()]
    code += re.findall(r"`([^`\n]+)`", _FENCE.sub("", text))
    parts = [part.strip() for line in code for part in re.split(r"&&|\|\||[|;]", re.sub(r"(?:^|\s)#.*", "", line))]
    return [(found[1], found[2].strip()) for part in parts if (found := _CALL.fullmatch(part))]


def wrong_calls(text: str) -> list[str]:
    """Calls of a page whose command, option or target does not exist."""
    targets = set(re.findall(r"^([a-z][\w-]*):", (TOP / "Makefile").read_text(), re.MULTILINE))
    wrong = []
    for program, rest in calls_in(text):
        words = rest.split(" -- ")[0].split()  # what follows goes to another program
        if program == "make":
            wrong += [f"make {word}" for word in words if "=" not in word and not word.startswith("-") and word not in targets]
            continue
        command: click.Command | None = main if words[0].startswith("-") else main.commands.get(words[0])
        options = (
            {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} if command else set()
        )
        named = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        if command is None or not named <= options | {"--help", "--version"}:
            wrong.append(f"vitfp8 {rest}")
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_commands_and_options_exist(page: Path) -> None:
    assert wrong_calls(page.read_text()) == []


def test_the_readme_has_calls_to_check() -> None:
    called = {(program, rest.split()[0]) for program, rest in calls_in((TOP / "README.md").read_text())}
    assert {("vitfp8", "run"), ("vitfp8", "report"), ("make", "report"), ("make", "test")} <= called


@pytest.mark.parametrize(
    "text",
    ["```\nvitfp8 rum BaseFP32\n```", "`vitfp8 nothing`", "```bash\nmake repport   # words\n```", "`make tset`",
     "```\ncd x && vitfp8 run --sede 3\n```", "   ```\n   .venv/bin/vitfp8 lsit\n   ```", "`vitfp8 --nothing`"],
)  # fmt: skip
def test_a_call_that_does_not_exist_is_found(text: str) -> None:
    assert len(wrong_calls(text)) == 1


def test_the_readme_shows_the_two_commands_and_the_four_experiments() -> None:
    text = (TOP / "README.md").read_text()
    for words in ("make report", "make test", "BaseFP32", "AugmFP32", "BaseFP16", "AugmFP16", "docs/images/"):
        assert words in text


def test_every_parameter_is_documented() -> None:
    text = (TOP / "docs" / "parameters.md").read_text()
    for row in describe_parameters(RunParams):
        decides = "yes" if row["decides_numbers"] else "no"
        assert f"| `{row['name']}` | {row['meaning']} | {decides} |" in text
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == set(RunParams.model_fields)


def test_every_parameter_of_a_quantisation_is_documented() -> None:
    text = (TOP / "docs" / "quantization.md").read_text()
    for row in describe_parameters(QuantizeParams):
        decides = "yes" if row["decides_numbers"] else "no"
        assert f"| `{row['name']}` | {row['meaning']} | {decides} |" in text


def test_every_command_and_option_has_a_help_text() -> None:
    for command in main.commands.values():
        assert command.help
        assert all(parameter.help for parameter in command.params if isinstance(parameter, click.Option))


def test_conda_environment_and_package_metadata_agree() -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((TOP / "environment.yml").read_text())
    pip = next(item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    pins = {Requirement(item).name: Requirement(item) for item in pip if not item.startswith("-e")}
    wanted = {Requirement(item).name: Requirement(item) for item in project["dependencies"]}
    assert set(pins) == set(wanted) and "-e ." in pip
    for name, pin in pins.items():
        (specifier,) = pin.specifier
        assert specifier.operator == "==" and wanted[name].specifier.contains(specifier.version), name
        assert pin.extras == wanted[name].extras
    conda = [item for item in environment["dependencies"] if isinstance(item, str)]
    assert {"tectonic", "pandoc"} <= {item.split("=")[0] for item in conda} and all("=" in i for i in conda if i != "pip")
    assert environment["dependencies"][0] == "python=3.11" and project["requires-python"] == ">=3.11"


def test_the_project_names_no_place_of_one_machine() -> None:
    """Built from parts so that this file does not name them itself."""
    forbidden = re.compile("|".join(["/wo" + "rk/", "/ro" + "ot/", r"\bshared/(DESIGN|NUMERICS|STYLE|NEEDS)"]))
    tracked = [
        p for p in TOP.rglob("*") if p.is_file() and p.suffix in (".py", ".md", ".ipynb", ".yaml", ".yml", ".toml", ".cff")
    ]
    skipped = {".venv", "executed", "report", "runs", ".git"}
    bad = [p for p in tracked if not skipped & set(p.relative_to(TOP).parts) and forbidden.search(p.read_text(errors="replace"))]
    assert bad == []
