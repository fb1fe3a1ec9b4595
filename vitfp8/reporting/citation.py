"""Title, authors and bibliography of a report, from one file: ``CITATION.cff`` (https://citation-file-format.github.io)."""

from __future__ import annotations

import datetime
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vitfp8.errors import InputError
from vitfp8.params import why_no_text
from vitfp8.reporting.prose import Node, safe_url

#: Larger is no citation file.
_LARGEST_FILE = 200_000
_ORCID = re.compile(r"(?:https?://orcid\.org/)?(\d{4}-\d{4}-\d{4}-\d{3}[\dX])")


@dataclass(frozen=True, kw_only=True)
class Author:
    """A person or a body, as it signs."""

    name: str
    family: str
    affiliation: str = ""
    orcid: str = ""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A work of the bibliography.

    Attributes:
        key: what a text cites it by: the first author's family name and the year, ``dosovitskiy2021``.
        authors: as they sign.
        title: the work's.
        year: as it is given, perhaps empty.
        place: journal, conference, publisher or institution with volume and pages.
        url: where it is found, perhaps empty.
        locator: what the link reads: a DOI, an arXiv number or the address.
    """

    key: str
    authors: tuple[Author, ...]
    title: str
    year: str
    place: str
    url: str
    locator: str


@dataclass(frozen=True, kw_only=True)
class Citation:
    """What a citation file says of the work."""

    title: str
    authors: tuple[Author, ...] = ()
    abstract: str = ""
    version: str = ""
    url: str = ""
    references: tuple[Reference, ...] = ()


def read_citation(path: Path) -> Citation:
    """Read a citation file.

    Args:
        path: a ``CITATION.cff``.

    Raises:
        InputError: the file is missing, no YAML, or says no title or authors; one line that names the file and the key.
    """
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise InputError(f"{path}: is larger than a citation file can be; expected title, authors and references in YAML")
        raw = path.read_bytes()
        if why := why_no_text(raw):
            raise InputError(f"{path}: {why}")
        content = yaml.safe_load(raw.decode("utf-8"))
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
        raise InputError(f"{path}: is no YAML{place}: {str(reason).splitlines()[0]}; correct it there") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no keys; a citation file begins with cff-version, title and authors")
    title = _text(content, "title", path)
    if not title:
        raise InputError(f"{path}: has no title; add the line 'title: …'")
    authors = _authors(content, path, "authors")
    if not authors:
        raise InputError(f"{path}: names no authors; add 'authors:' and below it '  - name: …'")
    listed = content.get("references") or []
    if not isinstance(listed, list):
        raise InputError(f"{path}: 'references' is no list; each work begins with '  - type: …'")
    references: list[Reference] = []
    for number, entry in enumerate(listed, 1):
        references.append(_reference(entry, path, number, {known.key for known in references}))
    return Citation(
        title=title,
        authors=authors,
        abstract=_text(content, "abstract", path),
        version=_text(content, "version", path),
        url=safe_url(_text(content, "repository-code", path) or _text(content, "url", path)) or "",
        references=tuple(references),
    )


def _text(entry: Mapping[Any, Any], key: str, path: Path, where: str = "") -> str:
    """A value that must be a text (YAML makes years numbers and days dates), on one line."""
    value = entry.get(key, "")
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float, datetime.date)):
        raise InputError(f"{path}: '{where}{key}' is {type(value).__name__}, a text is expected; put it in quotes")
    if isinstance(value, int) and value.bit_length() > 1000:  # Python refuses to write out very large numbers
        raise InputError(f"{path}: '{where}{key}' is a number of {value.bit_length()} bits, a text is expected; put it in quotes")
    return " ".join(str(value).split())


def _authors(entry: Mapping[Any, Any], path: Path, key: str, where: str = "") -> tuple[Author, ...]:
    """The authors of an entry: persons (family-names, given-names, …) and bodies (name)."""
    listed = entry.get(key) or []
    if not isinstance(listed, list):
        raise InputError(f"{path}: '{where}{key}' is no list; each author begins with '  - name: …' or '  - family-names: …'")
    authors = []
    for number, person in enumerate(listed, 1):
        place = f"{where}{key}[{number}]."
        if not isinstance(person, dict):
            raise InputError(f"{path}: '{place[:-1]}' is no author; write '- name: …' or '- family-names: …', 'given-names: …'")
        family = " ".join(filter(None, (_text(person, part, path, place) for part in ("name-particle", "family-names"))))
        parts = [_text(person, "given-names", path, place), family, _text(person, "name-suffix", path, place)]
        name = _text(person, "name", path, place) or " ".join(filter(None, parts)) or _text(person, "alias", path, place)
        if not name:
            raise InputError(f"{path}: '{place[:-1]}' has no name; write '- name: …' or '- family-names: …', 'given-names: …'")
        orcid = _text(person, "orcid", path, place)
        match = _ORCID.fullmatch(orcid)
        if orcid and match is None:
            raise InputError(f"{path}: '{place}orcid' is {orcid[:60]!r}; expected https://orcid.org/0000-0000-0000-0000")
        affiliation = _text(person, "affiliation", path, place)
        authors.append(Author(name=name, family=family or name, affiliation=affiliation, orcid=match.group(1) if match else ""))
    return tuple(authors)


def _reference(entry: object, path: Path, number: int, keys: set[str]) -> Reference:
    """One work of the bibliography, with a key that no earlier one has."""
    where = f"references[{number}]."
    if not isinstance(entry, dict):
        raise InputError(f"{path}: '{where[:-1]}' is no work; it begins with '- type: …' and has title and authors")
    title = _text(entry, "title", path, where)
    if not title:
        raise InputError(f"{path}: '{where[:-1]}' has no title; add 'title: …'")
    authors = _authors(entry, path, "authors", where)
    date = _text(entry, "date-released", path, where) or _text(entry, "date-published", path, where)
    year = _text(entry, "year", path, where) or date[:4]
    plain = unicodedata.normalize("NFKD", (authors[0].family if authors else title).split()[-1])
    base = re.sub(r"[^a-z0-9]", "", plain.encode("ascii", "ignore").decode().lower()) + year
    key = next(
        name
        for name in [base, *(f"{base}{letter}" for letter in "bcdefghijklmnopqrstuvwxyz"), f"{base}-{number}"]
        if name not in keys
    )
    venue = entry.get("conference")
    places = [_text(entry, "journal", path, where)]
    if isinstance(venue, dict):
        places.append(_text(venue, "name", path, f"{where}conference."))
    for holder in ("publisher", "institution"):
        body = entry.get(holder)
        if isinstance(body, dict):
            places.append(_text(body, "name", path, f"{where}{holder}."))
    place = ", ".join(filter(None, places))
    volume, issue = _text(entry, "volume", path, where), _text(entry, "issue", path, where)
    place += f" {volume}" if volume else ""
    place += f"({issue})" if issue else ""
    start, end = _text(entry, "start", path, where), _text(entry, "end", path, where)
    place += f", {start}–{end}" if start and end else ""
    doi, url = _text(entry, "doi", path, where), _text(entry, "url", path, where)
    arxiv = re.fullmatch(r"10\.48550/arXiv\.(\S+)", doi, re.IGNORECASE)
    return Reference(
        key=key,
        authors=authors,
        title=title,
        year=year,
        place=place.strip(", "),
        url=safe_url(f"https://doi.org/{doi}" if doi else url) or "",
        locator=f"arXiv:{arxiv.group(1)}" if arxiv else f"doi:{doi}" if doi else url,
    )


def reference_tree(reference: Reference) -> list[Node]:
    """A work as a line of the bibliography, in pandoc's inline nodes: authors. title. place, year. link."""

    def words(text: str) -> list[Node]:
        """A text as nodes."""
        nodes: list[Node] = []
        for word in text.split():
            nodes += [{"t": "Str", "c": word}, {"t": "Space"}]
        return nodes[:-1]

    names = [author.name for author in reference.authors]
    shown = ", ".join(names) if len(names) <= 8 else ", ".join(names[:6]) + " et al."
    nodes = words(shown + ("" if shown.endswith(".") or not shown else ".")) + [{"t": "Space"}] * bool(shown)
    nodes += [{"t": "Emph", "c": words(reference.title.rstrip(".") + ".")}, {"t": "Space"}]
    place = ", ".join(filter(None, (reference.place, reference.year)))
    nodes += words(f"{place}.") if place else []
    if reference.url:
        link = {"t": "Link", "c": [["", [], []], [{"t": "Str", "c": reference.locator}], [reference.url, ""]]}
        nodes += [{"t": "Space"}, link, {"t": "Str", "c": "."}]
    return nodes
