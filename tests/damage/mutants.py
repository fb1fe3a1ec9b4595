"""Damaged parameter files: what a hand, an editor, a disk or an attacker can make of a good one; seeded, so that each repeats."""

from __future__ import annotations

import random
from collections.abc import Iterator

#: What stands in the place of a value: types, ranges, number forms, tags, marks and sheer size.
VALUES = (
    "", "null", "~", "true", "yes", "on", "off", "n", "0", "-1", "1", "2", "3.0", "1e1", "1e-3", "+5", "-0", "1_000", "010",
    "0o17",
    "0x1F", "0b11", "1:30", "1:2:3.5", ".inf", "-.inf", ".nan", "NaN", "inf", "Infinity", "1e400", "-1e400", "1.0e+400", "1e-400",
    "9" * 400, "0x" + "f" * 5000, "9" * 5000, "2147483647", "2147483648", "1" + "0" * 30 + ".0", "'3'", '"1e-3"', "'  2  '",
    "１２",
    "٣", "1e١", "0.1.2", "1,5", "5 %", "many", "fp32", "FP16", "bf16-mixed", "16", "e4m3", "cpu", "digits", "BaseFP32",
    "ΒaseFP32",
    "2001-01-01", "2001-99-99", "2001-01-01 00:00:00 +99:99", "[]", "[1]", "[e4m3]", "[e4m3, e4m3]", "[[1]]", "{}", "{a: b}",
    "!!int ''", "!!int '7'", "!!int '-'", "!!float ''", "!!float '.5'", "!!bool maybe", "!!bool yes", "!!null x", "!!str 5",
    "!!timestamp x", "!!binary aGk=", "!!binary é", "!!set x", "!!seq x", "!!map x",
    "!!python/object/apply:os.system ['touch owned']",
    "!!python/name:os.system ''", "!!python/tuple [1]", "!!python/object/new:os.system ['touch owned']", "!evil 1", "!!merge x",
    "=",
    "&a 3", "*a", "&a [*a]", "|\n  two\n  lines", ">-\n  folded\n  text", '"\\e[31mred\\e[0m"', '"\\0"', '"a\\u2028b"',
    '"\\ud800"',
    "'; import os; os.system(\"touch owned\"); '", '"\\"\\n__import__(\'os\').system(\'touch owned\')\\n"', "{{ 7*7 }}",
    "${HOME}", "../../etc/passwd", "/dev/zero", "a" * 81, "x" * 4001, "x" * 6000, "'unclosed", '"unclosed', "[1, 2", "{a: ",
    "@x", "`x`", "%x", "? x", "- x", "# only a comment", "3 # and a comment", "a: b", "<script>", "日本語", "\u202egnp.exe",
)  # fmt: skip

#: What stands in the place of a key.
KEYS = (
    "epoch", "Epochs", "EPOCHS", "epochs ", "еpochs", "epochs\u200b", "learning-rate", "learning_ratee", "'epochs'", '"\\e[31m"',
    "!!python/name:os.system epochs", "!!str epochs", "<<", "? [a]", "? {a: b}", "null", "1", "", "__class__", "self", "k" * 5000,
    "&a epochs", "*a", "[epochs]", "model_config", "identity", "-", "#epochs", "@epochs", "\tepochs",
)  # fmt: skip

#: Whole texts that stand for a file.
TEXTS = (
    "", " ", "\n" * 100, "# nothing\n", "null", "[]", "3", "text", "- a\n- b\n", "---\n", "---\n...\n---\n",
    "%YAML 9.9\n---\na: 1\n",
    "[" * 3000, "{a: " * 3000, "? " * 3000, "- " * 3000, "!!str " * 500, "&a " * 500, "a: &a [*a]\n", "&a a: *a\n",
    "a: &a [x, x, x]\nb: &b [*a, *a, *a]\nc: &c [*b, *b, *b]\nd: [*c, *c, *c]\n",
    "<<: &a {<<: *a}\n", "a: 1\na: 2\n", "a: 1\n'a': 2\n", "".join(f"k{i}: {i}\n" for i in range(300)), "x: " + "y" * 9000,
    "x: y\n" * 3000, "\x00", "a: \x1b[2J\n", "a:\tb\n", "\ta: b\n", "a: b\r\nc: d\r\n", "a: b\rc: d\r", "a: b\x85c: d\u2028e: f",
)  # fmt: skip

ENCODINGS = ("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp037")


def mutants(text: str, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """What kind of damage, and the damaged file.

    Args:
        text: a good file.
        count: how many.
        seed: of the choices.
    """
    draw = random.Random(seed)
    lines = text.splitlines()
    stated = [number for number, line in enumerate(lines) if ":" in line and not line.startswith(("#", " "))]
    kinds = [_value, _key, _value, _structure, _bytes, _value, _whole]
    for index in range(count):
        make = kinds[index % len(kinds)]
        yield make.__name__.strip("_"), make(draw, list(lines), draw.choice(stated))


def _value(draw: random.Random, lines: list[str], at: int) -> bytes:
    key = lines[at].partition(":")[0]
    lines[at] = f"{key}: {draw.choice(VALUES)}"
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _key(draw: random.Random, lines: list[str], at: int) -> bytes:
    _, _, value = lines[at].partition(":")
    lines[at] = f"{draw.choice(KEYS)}:{value}"
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _structure(draw: random.Random, lines: list[str], at: int) -> bytes:
    action = draw.randrange(8)
    if action == 0:
        del lines[at]
    elif action == 1:
        lines.insert(draw.randrange(len(lines)), lines[at])
    elif action == 2:
        lines[at] = "  " + lines[at]
    elif action == 3:
        lines[at] = lines[at].replace(":", draw.choice(["", "=", " :", "：", ":\t", "::"]), 1)
    elif action == 4:
        lines.insert(at, draw.choice(["---", "...", "<<: {epochs: 3}", "<<: *a", "%TAG ! x", "- item", "? a", "\x0c", "..."]))
    elif action == 5:
        draw.shuffle(lines)
    elif action == 6:
        lines[at] += draw.choice([" # a comment", "\t", " \u00a0", "\x07", "\x1b[0m", ": x", " |", " &x", "\ufeff"])
    else:
        lines = lines[: draw.randrange(len(lines))]
    return draw.choice(["\n", "\n", "\r\n", "\r"]).join(lines).encode("utf-8", "surrogatepass")


def _bytes(draw: random.Random, lines: list[str], at: int) -> bytes:
    content = bytearray("\n".join(lines).encode())
    action = draw.randrange(5)
    place = draw.randrange(len(content))
    if action == 0:
        content[place] ^= 1 << draw.randrange(8)
    elif action == 1:
        content[place:place] = draw.choice([b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"])
    elif action == 2:
        return bytes(content[:place])
    elif action == 3:
        content[place : place + draw.randrange(1, 40)] = draw.randbytes(draw.randrange(8))
    else:
        return bytes(content).decode().encode(draw.choice(ENCODINGS), "replace")
    return bytes(content)


def _whole(draw: random.Random, lines: list[str], at: int) -> bytes:
    return draw.choice(TEXTS).encode("utf-8", "surrogatepass")
