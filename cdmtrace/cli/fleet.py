"""What check and report take beside files: directories, URLs, and a cluster's help."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from cdmtrace.cli.options import files_argument, of_no_use, option, size
from cdmtrace.cli.progress import ticker
from cdmtrace.errors import UsageTrouble
from cdmtrace.render.tables import FORMATS
from cdmtrace.signals import signals_unwind
from cdmtrace.units import count
from cdmtrace.urls import is_url

if TYPE_CHECKING:
    from cdmtrace.fleet.crew import Work
    from cdmtrace.fleet.survey import Survey
    from cdmtrace.fleet.work import Question


class _FileOrUrl(click.Path):
    """A path, or a URL, which is left as it is: a path has no two slashes in a row."""

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:
        """Return a str for a URL, and a Path else."""
        if isinstance(value, str) and is_url(value):
            return value
        return super().convert(value, param, ctx)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fleet:
    """Which recordings, and who is to read them.

    words: as given; a URL is a str. scheduler, workers: as for crew(). copy_limit:
    bytes, None where nobody says.
    """

    words: tuple[str | Path, ...]
    scheduler: str | None
    workers: int | None
    copy_limit: int | None

    @property
    def wanted(self) -> bool:
        """Whether it is a fleet, and not a recording or some. Raises UsageTrouble."""
        if self.scheduler is not None:
            of_no_use(
                "workers",
                "--workers is about this machine, and --scheduler has its own",
                hint="leave one of them out",
            )
        if self.scheduler or self._several:
            return True
        of_no_use(
            "copy_limit",
            "--copy-limit is about a directory, a URL or --scheduler, and here is none",
            hint="name the directory that the recordings are in",
        )
        return False

    @property
    def _several(self) -> bool:
        # Path.is_dir() raises where a name is too long, or in what may not be searched.
        return any(
            isinstance(word, str) or os.path.isdir(word)  # noqa: PTH112
            for word in self.words
        )

    @property
    def paths(self) -> list[Path]:
        """The files, where it is no fleet."""
        return [Path(word) for word in self.words]

    def require_form(self, form: str) -> None:
        """Raise UsageTrouble for a format that has no place for a fleet."""
        if form in FORMATS:
            return
        hint = f"--format {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise UsageTrouble(
            f"--format {form} is about recordings that are named one by one",
            hint=hint if self._several else f"{hint}, or without --scheduler",
        )

    def survey(self, job: Work, **asked: Any) -> Survey:
        """Have the job done. asked: the question. Raises what survey() does."""
        from cdmtrace.fleet.survey import survey
        from cdmtrace.fleet.work import COPY_LIMIT, Question

        limit = COPY_LIMIT if self.copy_limit is None else self.copy_limit
        question: Question = Question(limit=limit, **asked)
        with signals_unwind():
            return survey(
                self.words,
                job,
                question,
                scheduler=self.scheduler,
                workers=self.workers,
                ticker=ticker(),
            )


def tell_failed(document: Mapping[str, Any]) -> None:
    """Say on stderr that some recordings are missing from what is printed."""
    if document["failed"]:
        many = count(len(document["failed"]), "recording")
        click.echo(f"cdmtrace: {many} could not be read: see what is printed", err=True)


def _size(context: object, parameter: object, text: str | None) -> int | None:
    """Return a size that is given as an option."""
    del context, parameter
    return None if text is None else size(text)


_Command = TypeVar("_Command", bound=Callable[..., Any])

_PARAMETERS: Final = (
    files_argument(kind=_FileOrUrl(path_type=Path)),
    option(
        "--scheduler",
        metavar="ADDRESS",
        help="A Dask cluster that reads the recordings, by its scheduler's address. "
        "Of a directory or a URL without it, processes of this machine do.",
    ),
    option(
        "--workers",
        type=click.IntRange(1, 1024),
        metavar="N",
        help="How many processes of this machine, where there is no --scheduler. "
        "Unless given: as many as CPUs, and one for a recording of less than 200,000 "
        "events. Fewer where a recording cannot be parted so. One recording is read by "
        "one with --rules-from, and for a page.",
    ),
    option(
        "--copy-limit",
        metavar="SIZE",
        callback=_size,
        help="How large a file may be that a worker copies from a URL to its disk: 4G "
        "unless given.",
    ),
)


def of_recordings(command: _Command) -> Callable[..., Any]:
    """Give a verb files, directories and URLs, and what says who reads them.

    It gets them as ``fleet``.
    """

    @functools.wraps(command)
    def gathered(
        *args: Any,
        files: tuple[str | Path, ...],
        scheduler: str | None,
        workers: int | None,
        copy_limit: int | None,
        **more: Any,
    ) -> Any:
        fleet = Fleet(
            words=files, scheduler=scheduler, workers=workers, copy_limit=copy_limit
        )
        return command(*args, fleet=fleet, **more)

    wrapped: Callable[..., Any] = gathered
    for one in reversed(_PARAMETERS):
        wrapped = one(wrapped)
    return wrapped
