"""Title, authors and bibliography of a report, from one file: ``CITATION.cff`` (https://citation-file-format.github.io)."""

from __future__ import annotations

import datetime
import re
import unicodedata
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vitfp8.errors import InputError
from vitfp8.params import why_no_text

_LARGEST_FILE = 200_000
_ORCID = re.compile(r"(?:https?://orcid\.org/)?(\d{4}-\d{4}-\d{4}-\d{3}[\dX])")
_URL_SCHEMES = frozenset({"http", "https", "mailto", "doi"})
_WAY_OUT = "write '- name: …' or '- family-names: …', 'given-names: …'"
#: Type of a reference in a citation file → in CSL, pandoc's format of references.
_TYPES = {"article": "article-journal", "conference-paper": "paper-conference", "book": "book", "thesis": "thesis",
          "report": "report", "software": "software", "data": "dataset", "website": "webpage"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Author:
    """A person or an organisation."""

    name: str
    family: str = ""
    given: str = ""
    affiliation: str = ""
    orcid: str = ""

    def to_csl(self) -> dict[str, str]:
        """The author as CSL names one."""
        return {"family": self.family, "given": self.given} if self.family else {"literal": self.name}


@dataclass(frozen=True, kw_only=True)
class Citation:
    """The contents of a citation file; ``references`` are CSL items, cited by first author and year: ``dosovitskiy2021``."""

    title: str
    authors: tuple[Author, ...] = ()
    abstract: str = ""
    version: str = ""
    url: str = ""
    references: tuple[dict[str, Any], ...] = ()


def safe_url(url: str) -> str | None:
    """Return a link's address if it may stand in a report: web addresses, mail, anchors, and paths relative to the report."""
    url = "".join(url.split())
    parts = urllib.parse.urlsplit(url) if "[" not in url else None
    if parts is None or (parts.scheme and parts.scheme.lower() not in _URL_SCHEMES):
        return None
    if not parts.scheme and (parts.netloc or url.startswith("/") or ":" in url.split("/")[0]):
        return None
    return urllib.parse.quote(url, safe="%/:?#@!&()*+,;=~-._")


def find_citation(folder: Path) -> Path | None:
    """Return the nearest ``CITATION.cff`` in a folder or above it."""
    folder = folder.resolve()
    return next((path for above in (folder, *folder.parents) if (path := above / "CITATION.cff").is_file()), None)


def read_citation(path: Path) -> Citation:
    """Read a citation file.

    Raises:
        InputError: the file is missing, is not YAML, or has no title or authors; one line that names the file and the key.
    """
    content = _read_yaml(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: has no keys; a citation file begins with cff-version, title and authors")
    title = _text(content, "title", path)
    if not title:
        raise InputError(f"{path}: has no title; add the line 'title: …'")
    authors = _authors(content, path)
    if not authors:
        raise InputError(f"{path}: names no authors; add 'authors:' and below it '  - name: …'")
    listed = content.get("references") or []
    if not isinstance(listed, list):
        raise InputError(f"{path}: 'references' is not a list; each work begins with '  - type: …'")
    references: list[dict[str, Any]] = []
    for number, entry in enumerate(listed, 1):
        references.append(_reference(entry, path, number, {known["id"] for known in references}))
    return Citation(
        title=title,
        authors=authors,
        abstract=_text(content, "abstract", path),
        version=_text(content, "version", path),
        url=safe_url(_text(content, "repository-code", path) or _text(content, "url", path)) or "",
        references=tuple(references),
    )


def _read_yaml(path: Path) -> Any:
    """Return the YAML of a citation file."""
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise InputError(f"{path}: is too large for a citation file; expected title, authors and references in YAML")
        raw = path.read_bytes()
        if why := why_no_text(raw):
            raise InputError(f"{path}: {why}")
        return yaml.safe_load(raw.decode("utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path}: not found; the report takes title, authors and bibliography from it (give another file with citation=…)"
        ) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; make it readable") from None
    except (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark is not None else ""
        reason = getattr(error, "problem", None) or str(error) or type(error).__name__
        raise InputError(f"{path}: is not YAML{place}: {str(reason).splitlines()[0]}; correct it there") from None


def _text(entry: Mapping[Any, Any], key: str, path: Path, where: str = "") -> str:
    """Return a value that must be text on one line; YAML turns years into numbers and days into dates."""
    value = entry.get(key, "")
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float, datetime.date)):
        raise InputError(f"{path}: '{where}{key}' is {type(value).__name__}, a text is expected; put it in quotes")
    if isinstance(value, int) and value.bit_length() > 1000:  # Python refuses to write out very large numbers
        raise InputError(f"{path}: '{where}{key}' is a number of {value.bit_length()} bits, a text is expected; put it in quotes")
    return " ".join(str(value).split())


def _authors(entry: Mapping[Any, Any], path: Path, where: str = "") -> tuple[Author, ...]:
    """Return the authors of an entry: persons (family-names, given-names, …) and organisations (name)."""
    listed = entry.get("authors") or []
    if not isinstance(listed, list):
        raise InputError(f"{path}: '{where}authors' is not a list of authors; {_WAY_OUT}")
    authors = []
    for number, person in enumerate(listed, 1):
        place = f"{where}authors[{number}]."
        if not isinstance(person, dict):
            raise InputError(f"{path}: '{place[:-1]}' is not an author; {_WAY_OUT}")
        family = " ".join(filter(None, (_text(person, part, path, place) for part in ("name-particle", "family-names"))))
        given, suffix = (_text(person, part, path, place) for part in ("given-names", "name-suffix"))
        name = _text(person, "name", path, place)
        signed = name or " ".join(filter(None, [given, family, suffix])) or _text(person, "alias", path, place)
        if not signed:
            raise InputError(f"{path}: '{place[:-1]}' has no name; {_WAY_OUT}")
        orcid = _text(person, "orcid", path, place)
        match = _ORCID.fullmatch(orcid)
        if orcid and match is None:
            raise InputError(f"{path}: '{place}orcid' is {orcid[:60]!r}; expected https://orcid.org/0000-0000-0000-0000")
        affiliation = _text(person, "affiliation", path, place)
        found = match.group(1) if match else ""
        authors.append(Author(name=signed, family="" if name else family, given=given, affiliation=affiliation, orcid=found))
    return tuple(authors)


def _reference(entry: object, path: Path, number: int, keys: set[str]) -> dict[str, Any]:
    """Return a work of the bibliography as a CSL item with an id that is not among ``keys``."""
    where = f"references[{number}]."
    if not isinstance(entry, dict):
        raise InputError(f"{path}: '{where[:-1]}' is not a work; it begins with '- type: …' and has title and authors")

    def text(key: str) -> str:
        return _text(entry, key, path, where)

    if not text("title"):
        raise InputError(f"{path}: '{where[:-1]}' has no title; add 'title: …'")
    authors = _authors(entry, path, where)
    year = text("year") or (text("date-released") or text("date-published"))[:4]
    first = ((authors[0].family or authors[0].name) if authors else text("title")).split()[-1]
    plain = unicodedata.normalize("NFKD", first).encode("ascii", "ignore").decode()
    base = re.sub(r"[^a-z0-9]", "", plain.lower()) + year
    names = [base, *(f"{base}{letter}" for letter in "bcdefghijklmnopqrstuvwxyz"), f"{base}-{number}"]

    def name_of(key: str) -> str:
        body = entry.get(key)
        return _text(body, "name", path, f"{where}{key}.") if isinstance(body, dict) else ""

    start, end = text("start"), text("end")
    item = {
        "type": _TYPES.get(text("type"), "document"), "title": text("title"), "issued": year,
        "author": [author.to_csl() for author in authors], "container-title": text("journal") or name_of("conference"),
        "publisher": name_of("publisher") or name_of("institution"), "volume": text("volume"), "issue": text("issue"),
        "page": f"{start}–{end}" if start and end else "", "DOI": text("doi"),
        "URL": "" if text("doi") else safe_url(text("url")),
    }  # fmt: skip
    return {"id": next(name for name in names if name not in keys), **{key: value for key, value in item.items() if value}}
