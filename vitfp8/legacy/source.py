"""The tree of an earlier project as it lies on disk: read without following a link, changing nothing, executing nothing."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitfp8.analysis.escaping import one_line
from vitfp8.errors import InputError

#: A metrics file beyond this is not read (it is copied like any other): days of samples have a few megabytes.
LARGEST_TEXT = 256 * 1024 * 1024

#: Where files of an experiment are looked for in its folder, in this order.
PLACES = ("metrics/", "", "checkpoints/")


def shown(name: object, limit: int = 160) -> str:
    """A name from the source as a line of text may show it: no control characters, bounded.

    Args:
        name: anything.
        limit: most characters.
    """
    return one_line(name, limit)


@dataclass(frozen=True)
class SourceFile:
    """A regular file of the tree.

    Attributes:
        path: relative to the tree's top, with ``/``.
        bytes: its size when it was found.
        sha256: of its content; empty where it cannot be read.
    """

    path: str
    bytes: int
    sha256: str = ""


@dataclass(frozen=True)
class OldFolder:
    """A folder that may be an experiment.

    Attributes:
        name: of the folder.
        path: relative to the tree's top.
        layout: how the tree is laid out, in words.
    """

    name: str
    path: str
    layout: str


@dataclass
class SourceTree:
    """An earlier project's results.

    Attributes:
        top: its real path.
        given: as the user named it.
        files: every regular file, sorted by path.
        folders: every folder, relative to the top.
        left: a sentence for each entry that is not taken: links, devices, what cannot be read.
    """

    top: Path
    given: str
    files: list[SourceFile] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    @contextmanager
    def open(self, path: str) -> Iterator[io.BufferedReader]:
        """Open a regular file of the tree for reading; a link, also one that has appeared since, is refused.

        Args:
            path: relative to the top.

        Raises:
            OSError: it cannot be read, or is no regular file inside the tree.
        """
        place = self.top / path
        if place.parent.resolve() != place.parent:
            raise OSError(f"{shown(path)} leads out of the source")
        handle = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(f"{shown(path)} is no regular file")
            yield file

    def digest(self, path: str) -> str:
        """SHA-256 of a file, hexadecimal.

        Args:
            path: relative to the top.
        """
        with self.open(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def of(self, folder: OldFolder) -> list[SourceFile]:
        """The files of an experiment's folder.

        Args:
            folder: one of `experiment_folders`.
        """
        return [file for file in self.files if file.path.startswith(folder.path + "/")]

    def candidates(self, folder: OldFolder, name: str) -> list[SourceFile]:
        """The files of that name where an experiment may keep them, the preferred one first.

        Args:
            folder: one of `experiment_folders`.
            name: of the file.
        """
        by_path = {file.path: file for file in self.files}
        paths = (f"{folder.path}/{place}{name}" for place in PLACES)
        return [by_path[path] for path in paths if path in by_path]


def read_tree(source: str | Path) -> SourceTree:
    """Find every file of a tree and its digest.

    Args:
        source: the folder of results.

    Raises:
        InputError: there is no such folder, or it cannot be read.
    """
    given = Path(source)
    if not given.is_dir():
        what = "is a file" if given.exists() else "there is no such folder"
        raise InputError(f"SOURCE: {str(source)!r}: {what}; give the folder of results that holds the old experiments' folders")
    tree = SourceTree(top=given.resolve(), given=str(source))
    unreadable: list[OSError] = []
    for place, names, files in os.walk(tree.top, onerror=unreadable.append):
        for name in sorted(names):
            path = (Path(place) / name).relative_to(tree.top).as_posix()
            if (tree.top / path).is_symlink():
                tree.left.append(
                    f"{shown(path)}: is a link, and is not followed; to take it in, put what it points to in its place"
                )
            else:
                tree.folders.append(path)
        names[:] = sorted(name for name in names if not (Path(place) / name).is_symlink())
        for name in sorted(files):
            _add_file(tree, (Path(place) / name).relative_to(tree.top).as_posix())
    tree.left += [f"{shown(error.filename)}: cannot be read ({error.strerror}); check its permissions" for error in unreadable]
    tree.files.sort(key=lambda file: file.path)
    tree.folders.sort()
    return tree


def _add_file(tree: SourceTree, path: str) -> None:
    """One entry of a folder: a file of the tree, or a sentence on why it is none."""
    try:
        state = (tree.top / path).lstat()
        if stat.S_ISLNK(state.st_mode):
            tree.left.append(f"{shown(path)}: is a link, and is not followed; to take it in, put what it points to in its place")
        elif not stat.S_ISREG(state.st_mode):
            tree.left.append(f"{shown(path)}: is no regular file, and is left")
        else:
            tree.files.append(SourceFile(path, state.st_size, tree.digest(path)))
    except OSError as error:
        tree.left.append(f"{shown(path)}: cannot be read ({error.strerror or error}); check its permissions")


def experiment_folders(tree: SourceTree) -> list[OldFolder]:
    """The folders that may be experiments, in either layout, whatever their names.

    Args:
        tree: from `read_tree`.
    """
    found = []
    for path in tree.folders:
        parts = path.split("/")
        if len(parts) == 2 and parts[0] == "checkpoints":
            found.append(OldFolder(parts[1], path, "checkpoints/<name>/"))
        elif len(parts) == 1 and path != "checkpoints" and {f"{path}/checkpoints", f"{path}/metrics"} & set(tree.folders):
            found.append(OldFolder(path, path, "<name>/{checkpoints,metrics}/"))
    return found


# ---------------------------------------------------------------------------------------------------------------- texts


def read_json(tree: SourceTree, file: SourceFile, remarks: list[str]) -> tuple[dict[str, Any], bool]:
    """The object that a JSON file holds, as far as it goes.

    Args:
        tree: whose.
        file: which.
        remarks: gets a sentence on what is wrong.

    Returns:
        The object (empty where there is none), and whether the file is whole.
    """
    name = shown(file.path)
    text = _read_text(tree, file, remarks)
    if text is None:
        return {}, False
    whole = True
    try:
        value = _parse(text)
    except (ValueError, RecursionError):
        whole = False
        try:
            value = _parse(_closed(text))
        except (ValueError, RecursionError):
            remarks.append(f"{name}: is no JSON; nothing is taken from it")
            return {}, False
        remarks.append(f"{name}: is no whole JSON (cut off or damaged); taken as far as it goes")
    if not isinstance(value, dict):
        remarks.append(f"{name}: holds {kind_of_value(value)} where an object is expected; nothing is taken from it")
        return {}, False
    return value, whole


def read_csv(tree: SourceTree, file: SourceFile, remarks: list[str]) -> dict[str, list[str]]:
    """The columns of a CSV file as texts; rows that are too short or too long are left out.

    Args:
        tree: whose.
        file: which.
        remarks: gets a sentence on what is wrong.
    """
    name = shown(file.path)
    text = _read_text(tree, file, remarks)
    rows: list[list[str]] = []
    try:
        rows = [row for row in csv.reader(io.StringIO((text or "").replace("\0", ""))) if row]
    except csv.Error as error:
        remarks.append(f"{name}: is no CSV ({shown(error, 80)}); nothing is taken from it")
    if text is not None and len(rows) < 2:
        remarks.append(f"{name}: holds no row")
    if len(rows) < 2:
        return {}
    header = [cell.strip() for cell in rows[0]]
    good = [row for row in rows[1:] if len(row) == len(header)]
    if len(good) < len(rows) - 1:
        remarks.append(f"{name}: {len(rows) - 1 - len(good)} of {len(rows) - 1} rows do not fit the header and are left out")
    return {column: [row[index] for row in good] for index, column in enumerate(header)}


def _read_text(tree: SourceTree, file: SourceFile, remarks: list[str]) -> str | None:
    """A file's text; None where it is unreasonably large or cannot be read."""
    if file.bytes > LARGEST_TEXT:
        remarks.append(f"{shown(file.path)}: has {file.bytes:,} bytes, too many to be read; it is copied as it is")
        return None
    try:
        with tree.open(file.path) as stream:
            return stream.read().decode("utf-8-sig", "replace")
    except OSError as error:
        remarks.append(f"{shown(file.path)}: cannot be read ({error.strerror or error})")
        return None


def _parse(text: str) -> Any:
    """JSON, with NaN as Python writes it; a whole number of absurd length is no number."""
    return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < 300 else None)


def _closed(text: str) -> str:
    """A JSON text that was cut off, up to its last complete value, with what is open closed."""
    closers: list[str] = []
    end, in_string, escaped = 0, False, False
    for position, character in enumerate(text):
        if in_string:
            escaped, in_string = character == "\\" and not escaped, escaped or character != '"'
        elif character == '"':
            in_string = True
        elif character in "[{":
            closers.append("]" if character == "[" else "}")
            end = position + 1
        elif character in "]}":
            if closers[-1:] != [character]:
                break
            closers.pop()
            end = position + 1
        elif character == ",":
            end = position
    return text[:end] + "".join(reversed(closers))


def kind_of_value(value: Any) -> str:
    """What a JSON value is, in words.

    Args:
        value: as `json` reads it.
    """
    names = {list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number", type(None): "null"}
    return names.get(type(value), "an object")
