"""Where recordings are: files, directories and URLs, and what each may be called."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from cdmtrace.errors import CdmtraceError, UnreadableFile, UsageTrouble
from cdmtrace.format.schema import printable
from cdmtrace.urls import is_url

SUFFIX: Final = ".arrows"
"""What the name of a file ends in that is looked for in a directory or below a URL."""

_DEEP: Final = 16
"""Directories below one that are looked into: a listing over HTTP may have no end."""

_LOCAL: Final = "file://"

_SECRETS: Final = (
    # A password may hold anything, though it should be escaped. Where it has what ends
    # the name of a host, nobody knows which is which.
    (re.compile(r"(?<=://)[^/\s?#]*[?#][^/\s]*@\S*"), "..."),
    (re.compile(r"(?<=://)[^/\s]*@"), ""),
    # What a signed URL is signed with is behind its question mark.
    (re.compile(r"(://[^\s?#]*)[?#]\S*"), r"\1"),
)

_SUCH_AS: Final = "such as s3://BUCKET/PREFIX or https://HOST/DIRECTORY/"

_SILENCE: Final = 60.0
"""Seconds that a server over HTTP may say nothing; a file has all that it takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A file of a recording.

    at: what a worker opens, an absolute path or a URL; it may have a password in it.
    name: what it is called wherever people read.
    """

    at: str = field(repr=False)
    name: str

    def __str__(self) -> str:
        return self.name


def scrubbed(text: str) -> str:
    """Return text whose URLs have neither user nor query, as passwords are in both."""
    for secret, instead in _SECRETS:
        text = secret.sub(instead, text)
    return text


def find(words: Iterable[str | Path]) -> list[Place]:
    """Return the files that words of the command line name, each once, as given.

    Of a directory and of a URL they are those below it that end in SUFFIX, by name; one
    that ends so is a file itself. Raises UnreadableFile for what cannot be listed,
    UsageTrouble where there is no such file, and CdmtraceError for a protocol of which
    the package is missing.
    """
    found: dict[str, Place] = {}
    for word in words:
        for place in _found(word):
            found.setdefault(place.at, place)
    return list(found.values())


def _found(word: str | Path) -> Iterator[Place]:
    if isinstance(word, str) and word.startswith(_LOCAL):
        word = Path(unquote(word.removeprefix(_LOCAL)))
    if isinstance(word, Path):
        # Path.is_dir() raises where a name is too long; that is told of the file.
        there = os.path.isdir(word)  # noqa: PTH112
        paths = _below(word) if there else [word]
        for path in paths:
            yield Place(at=str(path.absolute()), name=str(path))
    elif _path(word).endswith(SUFFIX):
        yield Place(at=word, name=_name(word))
    else:
        for url in _listed(word):
            yield Place(at=url, name=_name(url))


def _path(url: str) -> str:
    try:
        return urlsplit(url).path
    except ValueError as error:
        # It may quote what is before the @.
        raise UsageTrouble(f"{_name(url)}: is no URL", hint=_SUCH_AS) from error


def _name(url: str) -> str:
    return printable(scrubbed(url))


def _below(directory: Path) -> list[Path]:
    """Return the recordings in a directory and in those below it."""

    def refuse(error: OSError) -> None:
        name = printable(str(error.filename))
        raise UnreadableFile(
            f"{name}: cannot be listed: {error.strerror}",
            hint=f"ls -l {shlex.quote(name)}",
        ) from error

    found = [
        Path(where, name)
        for where, _, names in os.walk(directory, onerror=refuse)
        for name in names
        if name.endswith(SUFFIX)
    ]
    return sorted(found) or _none(printable(str(directory)))


def _listed(url: str) -> list[str]:
    """Return the URLs of the recordings below one."""
    system, root = opened(url)
    try:
        found = {_spelled(url, root, name) for name in _walked(system, root, _DEEP)}
    except Exception as error:
        # Each protocol has a library of its own, and errors of its own.
        raise UnreadableFile(
            f"{_name(url)}: cannot be listed: {said(error)}",
            hint="name a file, or a directory that can be listed, with the credentials "
            "that its protocol asks for",
        ) from error
    return sorted(found) or _none(_name(url))


def _spelled(url: str, root: str, name: str) -> str:
    """Return the URL of what is found below one, by all that was typed before it.

    root, name: both as their file system calls them, mostly without user and host.
    Raises ValueError for what is not below it.
    """
    if is_url(name):
        return name
    above = root.rstrip("/")
    if above and not name.startswith(f"{above}/"):
        raise ValueError(f"{name} is not below {root}")
    base = url if url.endswith("://") else f"{url.rstrip('/')}/"
    return base + name[len(above) :].removeprefix("/")


def _walked(system: Any, directory: str, deep: int) -> Iterator[str]:
    """Yield the recordings below a directory, as deep as that. Raises what ls() does.

    The file system's own find() and walk() leave out what cannot be listed.
    """
    for one in system.ls(directory, detail=True):
        name = one["name"]
        if one["type"] != "directory":
            if name.endswith(SUFFIX):
                yield name
        elif deep and name.rstrip("/") != directory.rstrip("/"):
            yield from _walked(system, name, deep - 1)


def _none(where: str) -> list[Any]:
    raise UsageTrouble(
        f"{where}: there is no recording in it",
        hint=f"files that end in {SUFFIX} are taken for recordings; name any other one",
    )


def opened(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, of fsspec, and what the URL is called there.

    Raises CdmtraceError where what its protocol needs is not installed, and
    UsageTrouble for a protocol that nobody knows.
    """
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url, **_options(url))
    except ImportError as error:
        package = printable(str(error))
        raise CdmtraceError(
            f"{_name(url)}: its protocol needs a package that is not installed: "
            f"{package}",
            hint="python3 -m pip install s3fs, gcsfs or adlfs, on every worker too",
        ) from error
    except Exception as error:
        # It may quote a part of what is before the @, where no pattern knows it.
        why = type(error).__name__ if "@" in url else said(error)
        raise UsageTrouble(
            f"{_name(url)}: is no URL that can be opened: {why}",
            hint=_SUCH_AS,
        ) from error
    return system, str(path)


def _options(url: str) -> dict[str, Any]:
    """Return what fsspec is told of the protocols of a URL, by protocol."""
    protocols = {one.partition("://")[0] for one in url.split("::")}
    spoken = protocols & {"http", "https"}
    if not spoken:
        return {}
    from aiohttp import ClientTimeout

    timeout = ClientTimeout(total=None, sock_connect=30.0, sock_read=_SILENCE)
    return {protocol: {"client_kwargs": {"timeout": timeout}} for protocol in spoken}


def said(error: BaseException) -> str:
    """Return in a line what an error says, without what is nobody's business."""
    text = printable(scrubbed(str(error).split("\n", 1)[0]))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
