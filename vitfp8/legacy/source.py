"""The tree of an earlier project on disk: read without following a link, changing nothing, executing nothing."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from vitfp8.errors import InputError, printable


@dataclass(frozen=True)
class SourceFile:
    """A regular file: its path below the tree's top (with ``/``), its size, and the SHA-256 of its content."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class OldFolder:
    """A folder that may be an experiment.

    Attributes:
        name: of the folder.
        path: below the tree's top.
        layout: of the tree, as the record states it.
        metrics: folder of its metrics files, below the tree's top, ending in ``/``.
    """

    name: str
    path: str
    layout: str
    metrics: str


@dataclass
class SourceTree:
    """An earlier project's results.

    Attributes:
        top: the real path.
        given: as the user named it.
        files: every regular file, sorted by path.
        experiments: every folder that may be an experiment, in either layout and whatever its name.
        left: one sentence for each entry that is not taken: links, devices, unreadable files.
    """

    top: Path
    given: str
    files: dict[str, SourceFile] = field(default_factory=dict)
    experiments: list[OldFolder] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    @contextmanager
    def open(self, path: str) -> Iterator[io.BufferedReader]:
        """Open a regular file for reading; a link, even one that appeared after the tree was read, raises OSError."""
        place = self.top / path
        if place.parent.resolve() != place.parent:
            raise OSError(f"{printable(path)} leads out of the source")
        handle = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(f"{printable(path)} is not a regular file")
            yield file

    def of(self, folder: OldFolder) -> list[SourceFile]:
        """The files below an experiment's folder."""
        return [file for path, file in self.files.items() if path.startswith(folder.path + "/")]

    def _add(self, place: Path, *, is_folder: bool) -> bool:
        """Take in one entry of a folder; False, with a sentence in `left`, where it is not taken."""
        path = place.relative_to(self.top).as_posix()
        try:
            state = place.lstat()
            if stat.S_ISLNK(state.st_mode):
                self.left.append(f"{printable(path)}: is a link, which is not followed; put its target in its place to import it")
            elif is_folder:
                return True
            elif not stat.S_ISREG(state.st_mode):
                self.left.append(f"{printable(path)}: is not a regular file")
            else:
                with self.open(path) as file:
                    self.files[path] = SourceFile(path, state.st_size, hashlib.file_digest(file, "sha256").hexdigest())
                return True
        except OSError as error:
            self.left.append(f"{printable(path)}: cannot be read ({error.strerror or error}); check its permissions")
        return False


def read_tree(source: str | Path) -> SourceTree:
    """Find every file of a tree, with its digest, and the folders that may be experiments.

    Raises:
        InputError: ``source`` is not a folder.
    """
    given = Path(source)
    if not given.is_dir():
        what = "is a file" if given.exists() else "does not exist"
        raise InputError(f"SOURCE: {str(source)!r}: {what}; give the folder of results that holds the old experiments' folders")
    tree = SourceTree(top=given.resolve(), given=str(source))
    unreadable: list[OSError] = []
    folders: list[str] = []
    for place, names, files in os.walk(tree.top, onerror=unreadable.append):
        names[:] = [name for name in sorted(names) if tree._add(Path(place, name), is_folder=True)]
        folders += [Path(place, name).relative_to(tree.top).as_posix() for name in names]
        for name in sorted(files):
            tree._add(Path(place, name), is_folder=False)
    tree.left += [f"{printable(str(e.filename))}: cannot be read ({e.strerror}); check its permissions" for e in unreadable]
    tree.files = dict(sorted(tree.files.items()))
    for path in sorted(folders):
        above, _, name = path.rpartition("/")
        if above == "checkpoints":
            tree.experiments.append(OldFolder(name, path, "checkpoints/<name>/", f"{path}/"))
        elif not above and name != "checkpoints" and {f"{path}/checkpoints", f"{path}/metrics"} & set(folders):
            tree.experiments.append(OldFolder(name, path, "<name>/{checkpoints,metrics}/", f"{path}/metrics/"))
    return tree
