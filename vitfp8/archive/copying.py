"""Copy one file and read the copy back from the disk: what is not read back has not been verified."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vitfp8.archive.manifest import shown
from vitfp8.errors import InputError
from vitfp8.files import size_words

#: Bytes read at once; between two of them a signal is heeded.
CHUNK = 4 * 1024 * 1024

#: What the destination cannot take of this one file, though it may take others.
_OF_ONE_FILE = {errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.EFBIG}

#: macOS: read past the page cache. A number of <fcntl.h>, for interpreters that do not name it.
_F_NOCACHE = 48


class FileCopyError(Exception):
    """One file cannot be copied; the others can. ``str(problem)`` is one line that names it."""


class ArchiveError(Exception):
    """A backup or a restore cannot go on; what has been copied is sound. ``str(error)`` is one line with a way out."""


class StoppedError(Exception):
    """The user asked to stop."""


@dataclass(kw_only=True)
class Watch:
    """What a long copy asks and tells.

    Attributes:
        stop: whether the user wants to stop; asked between chunks.
        progress: told the bytes that have been read or read back since the last call, and which file it is.
    """

    stop: Callable[[], bool] = lambda: False
    progress: Callable[[int, str], None] = lambda count, name: None

    def step(self, count: int, name: str) -> None:
        """Tell of bytes, and stop when the user wants to.

        Args:
            count: bytes.
            name: the file's path in the backup.

        Raises:
            StoppedError: the user asked for it.
        """
        self.progress(count, name)
        if self.stop():
            raise StoppedError


@dataclass(frozen=True, kw_only=True)
class Copied:
    """What was copied.

    Attributes:
        size: bytes.
        sha256: of the bytes as they were read, and as the copy gave them back.
        prefix_sha256: SHA-256 of the first bytes, as many as were asked for; empty when there are fewer.
        stat: of the source, before it was read.
    """

    size: int
    sha256: str
    prefix_sha256: str
    stat: os.stat_result


def copy_verified(
    source: Path, target: Path, name: str, watch: Watch, *, prefix: int = 0, whole_lines: bool = False
) -> Copied | None:
    """Copy a file with its times and permissions, flush the copy to disk, drop it from memory and read it back.

    Args:
        source: a regular file; a link is refused.
        target: written anew; its folder must exist. Nobody must take it for whole before this returns.
        name: what the file is called in a line.
        watch: is told of progress, and asked whether to stop.
        prefix: how many first bytes to digest on their own.
        whole_lines: leave out a last line that is being written.

    Returns:
        What was copied; None when the source was rewritten meanwhile, so that the copy may be of two versions.

    Raises:
        FileCopyError: this file cannot be copied.
        ArchiveError: the destination cannot take any more.
        StoppedError: the user asked for it.
    """
    try:
        handle = os.open(source, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FileCopyError(f"{shown(source)}: cannot be read ({error.strerror})") from None
    with os.fdopen(handle, "rb", buffering=0) as reader:
        before = os.fstat(handle)
        if not stat.S_ISREG(before.st_mode):
            raise FileCopyError(f"{shown(source)}: is no regular file any more")
        length = _whole_lines(handle, before.st_size) if whole_lines else before.st_size
        whole, first, left, left_first = hashlib.sha256(), hashlib.sha256(), length, prefix
        try:
            writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0), 0o600)
        except OSError as error:
            raise destination_error(error, target, name) from None
        with os.fdopen(writing, "wb", buffering=0) as writer:
            while left:
                try:
                    chunk = reader.read(min(CHUNK, left))
                except OSError as error:
                    raise FileCopyError(f"{shown(source)}: cannot be read ({error.strerror})") from None
                if not chunk:
                    return None  # truncated meanwhile
                whole.update(chunk)
                first.update(chunk[:left_first])
                left_first -= min(left_first, len(chunk))
                left -= len(chunk)
                try:
                    rest = memoryview(chunk)
                    while rest:
                        rest = rest[writer.write(rest) :]
                except OSError as error:
                    raise destination_error(error, target, name) from None
                watch.step(len(chunk), name)
            try:
                os.fsync(writing)
            except OSError as error:
                raise destination_error(error, target, name) from None
            _forget(writing)
        after = os.fstat(handle)
        # a file that has grown since gave its beginning; one that has changed otherwise may have given halves of two versions
        if after.st_mtime_ns != before.st_mtime_ns and after.st_size <= before.st_size:
            return None
    copied = Copied(
        size=length,
        sha256=whole.hexdigest(),
        prefix_sha256=first.hexdigest() if prefix and left_first == 0 else "",
        stat=before,
    )
    if digest_from_disk(target, name, watch) != copied.sha256:
        raise FileCopyError(f"{name}: the copy does not read back as it was written; check the disk of {shown(target.parent)}")
    with suppress(OSError):  # some file systems know neither
        target.chmod(before.st_mode & 0o777)
        os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
    return copied


def destination_error(error: OSError, target: Path, name: str) -> FileCopyError | ArchiveError:
    """What an error at the destination means: for this file alone, or for all that would follow.

    Args:
        error: what the system said.
        target: what could not be written.
        name: what the file is called.
    """
    if error.errno in _OF_ONE_FILE:
        return FileCopyError(f"{shown(name)}: the file system of {shown(target.parent)} cannot take it ({error.strerror})")
    return ArchiveError(f"{shown(target.parent)}: cannot be written ({error.strerror})")


def _whole_lines(handle: int, size: int) -> int:
    """How many of the first `size` bytes of a file end with a whole line."""
    end = size
    while end > 0:
        start = max(0, end - 65536)
        at = os.pread(handle, end - start, start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0


def _forget(handle: int) -> None:
    """Ask the system to drop a file from memory, so that it is read from the disk; where it cannot be asked, nothing happens."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)


def digest_from_disk(path: Path, name: str, watch: Watch) -> str:
    """SHA-256 of a file, read from the disk rather than from memory where the system lets one; links are not followed.

    Args:
        path: the file.
        name: what it is called.
        watch: is told of progress, and asked whether to stop.

    Raises:
        FileCopyError: it cannot be read.
        StoppedError: the user asked for it.
    """
    digest = hashlib.sha256()
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(handle, "rb", buffering=0) as file:
            _forget(handle)
            if sys.platform == "darwin":
                import fcntl

                with suppress(OSError):
                    fcntl.fcntl(handle, _F_NOCACHE, 1)
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                watch.step(len(chunk), name)
    except OSError as error:
        raise FileCopyError(f"{shown(path)}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()


def make_folders(root: Path, path: str) -> Path:
    """Make the folders that lead to a file, and give its path; a link among them is refused, since it may lead elsewhere.

    Args:
        root: an existing folder.
        path: relative, with ``/``.

    Raises:
        ArchiveError: something that is not a folder stands in the way.
    """
    folder = root
    for part in path.split("/")[:-1]:
        folder = folder / part
        with suppress(FileExistsError):
            folder.mkdir()
        if folder.is_symlink() or not folder.is_dir():
            raise ArchiveError(f"{shown(folder)}: is not a folder; move it away, then the same command goes on")
    return root / path


def check_apart(source: Path, place: Path) -> None:
    """Refuse to copy a folder onto itself, into itself or onto what is around it; names of the same folder are seen through.

    Args:
        source: an existing folder.
        place: where it would be copied; it need not exist.

    Raises:
        InputError: one line.
    """
    there = _nearest(place)
    if place.exists() and source.samefile(place):
        raise InputError(f"{shown(place)}: is {shown(source)} itself; give a folder on another disk")
    if any(source.samefile(folder) for folder in [there, *there.parents]):
        raise InputError(f"{shown(place)}: lies inside {shown(source)}; give a folder outside it, best on another disk")
    if place.exists() and any(place.samefile(folder) for folder in source.resolve().parents):
        raise InputError(f"{shown(source)}: lies inside {shown(place)}; give a folder that does not hold it")


def check_room(place: Path, needed: int, spare: int = 0) -> None:
    """Refuse a folder that cannot be written or has not enough room. Writes nothing.

    Args:
        place: where files would be copied; it need not exist.
        needed: bytes that would be written.
        spare: bytes there that would be replaced.

    Raises:
        InputError: one line.
    """
    there = _nearest(place)
    if not there.is_dir():
        raise InputError(f"{shown(place)}: {shown(there)} is not a folder; give another place")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{shown(place)}: {shown(there)} cannot be written; check its permissions, or give another place")
    free = shutil.disk_usage(there).free + spare
    if needed > free:
        raise InputError(
            f"{shown(place)}: the disk is too full: {size_words(needed)} are needed, {size_words(free)} are free; make room, or "
            "give a place on another disk"
        )


def on_disk(size: int) -> int:
    """Bytes that a file takes on a disk: whole blocks, and a line of the manifest.

    Args:
        size: bytes of the file.
    """
    return -(-size // 4096) * 4096 + 400


def _nearest(place: Path) -> Path:
    """The place itself or the nearest folder above it that exists, links resolved."""
    there = place.absolute()
    while not os.path.lexists(there):
        there = there.parent
    return there.resolve()
