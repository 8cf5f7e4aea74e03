"""The command group and the way from an exception to an exit status.

Verbs are imported when they are called and not before: in an emulated guest every
import costs seconds, and ``cdmtrace --help`` needs none of them.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from cdmtrace import __version__
from cdmtrace.errors import CdmtraceError, ExitStatus
from cdmtrace.signals import Ended

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, kw_only=True, slots=True)
class Verb:
    """Where a verb's click command lives (``module:attribute``) and its summary."""

    target: str
    summary: str


VERBS: dict[str, Verb] = {
    "record": Verb(
        target="cdmtrace.cli.record:record",
        summary="Trace the kernel into a file while a command runs.",
    ),
    "watch": Verb(
        target="cdmtrace.cli.watch:watch",
        summary="Every write to vm_flags of a VMA, by hardware watchpoints.",
    ),
    "live": Verb(
        target="cdmtrace.cli.live:live",
        summary="Show a recording while it is made.",
    ),
    "check": Verb(
        target="cdmtrace.cli.check:check",
        summary="Hold a trace against the reference model: every divergence.",
    ),
    "diff": Verb(
        target="cdmtrace.cli.check:check",
        summary="The same as check.",
    ),
    "report": Verb(
        target="cdmtrace.cli.report:report",
        summary="What happened: per process, VMA, node and way.",
    ),
    "timeline": Verb(
        target="cdmtrace.cli.timeline:timeline",
        summary="The life of one VMA: policy, tag, pages by node, locks.",
    ),
    "explain": Verb(
        target="cdmtrace.cli.explain:explain",
        summary="A rule, or one finding told as an argument.",
    ),
    "compare": Verb(
        target="cdmtrace.cli.compare:compare",
        summary="Two traces: which findings are new, gone, unchanged.",
    ),
    "export": Verb(
        target="cdmtrace.cli.export:export",
        summary="A trace as Parquet, CSV, NDJSON, or for Perfetto.",
    ),
    "query": Verb(
        target="cdmtrace.cli.query:query",
        summary="SQL over a trace, or one of the recipes for it.",
    ),
    "info": Verb(
        target="cdmtrace.cli.info:info",
        summary="What a trace file holds, and what was lost.",
    ),
    "probes": Verb(
        target="cdmtrace.cli.probes:probes",
        summary="What would be attached on this kernel.",
    ),
    "doctor": Verb(
        target="cdmtrace.cli.doctor:doctor",
        summary="Can this machine record? If not, what mends it.",
    ),
    "lab": Verb(
        target="cdmtrace.cli.lab:lab",
        summary="The QEMU laboratory: kernels, quirks, scenarios.",
    ),
}


_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
"""What a disk may say to a write, beside that it is done."""


class _ReaderGone(Exception):
    """Nobody reads what is printed any more."""


class LazyGroup(click.Group):
    """A click group whose commands are imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order of the table."""
        return [*VERBS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command of one verb, or None."""
        verb = VERBS.get(cmd_name)
        if verb is None:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = verb.target.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb.

        A broken pipe is kept from click, which would end with 1: that is a finding.
        """
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _ReaderGone from error

    def format_commands(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        """Write the list of verbs without importing them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.summary) for name, verb in VERBS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={
        "auto_envvar_prefix": "CDMTRACE",
        "help_option_names": ["-h", "--help"],
    },
    epilog=(
        "Every option can be given as an environment variable: CDMTRACE, the verb "
        "and the option in capitals, as in CDMTRACE_LAB_RUN_TIMEOUT. One that a call "
        "has no use for does nothing."
    ),
)
@click.version_option(__version__, prog_name="cdmtrace")
def cli() -> None:
    """Observe how a kernel tags VMAs that hold coherent device memory."""


def report_error(error: CdmtraceError) -> None:
    """Print an error, its details and its remedy on stderr."""
    click.echo(f"cdmtrace: {error.message}", err=True)
    if error.details:
        for line in error.details.rstrip("\n").splitlines():
            click.echo(f"  {line}", err=True)
    if error.hint:
        click.echo(f"  hint: {error.hint}", err=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    try:
        result: Any = cli.main(
            args=list(arguments) if arguments is not None else None,
            prog_name="cdmtrace",
            standalone_mode=False,
        )
    except CdmtraceError as error:
        report_error(error)
        return error.exit_status
    except click.ClickException as error:
        error.show()
        return ExitStatus.TROUBLE
    except MemoryError:
        report_error(
            CdmtraceError(
                "there is not enough memory for that",
                hint="give it a part of the recording, or a machine with more memory",
            )
        )
        return ExitStatus.TROUBLE
    except (click.Abort, KeyboardInterrupt):
        click.echo("cdmtrace: interrupted", err=True)
        return ExitStatus.INTERRUPTED
    except Ended as ended:
        click.echo(f"cdmtrace: {ended}", err=True)
        return 128 + ended.number
    except _ReaderGone:
        _let_stdout_go()
        return ExitStatus.BROKEN_PIPE
    except Exception as error:
        if not (isinstance(error, OSError) and error.errno in _FULL):
            # Left to the interpreter it would end with 1: that is a finding.
            traceback.print_exc()
            report_error(CdmtraceError("this is a fault of cdmtrace"))
            return ExitStatus.TROUBLE
        _let_stdout_go()
        report_error(
            CdmtraceError(
                f"what is printed cannot be written: {error.strerror}",
                hint="df says which disk is full",
            )
        )
        return ExitStatus.TROUBLE
    return result if isinstance(result, int) else ExitStatus.OK


def _let_stdout_go() -> None:
    """Have nothing more written there.

    The interpreter must not complain about it once more when it flushes stdout on the
    way out.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
