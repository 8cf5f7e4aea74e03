"""The shell script that the guest runs: prepare, run the command, leave its status."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from cdmtrace.lab import quirks as quirk_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

SCRIPT = "guest.sh"
STARTED = "started"
REFUSED = "refused"
STATUS = "status"
STDOUT = "stdout"
STDERR = "stderr"

# A file that the host reads while we write it appears whole: written beside, renamed.
_TEMPLATE = """\
#!/bin/sh
# Written by cdmtrace lab run; runs in the guest.
cd {run_dir} || exit 125
leave() {{
\tprintf '%s\\n' "$2" > ".$1.tmp" && sync && mv ".$1.tmp" "$1" && sync
}}
refuse() {{
\tleave {refused} "$1"
\texit 125
}}
{exports}
grep -q ' /sys/kernel/debug debugfs ' /proc/mounts ||
\tmount -t debugfs none /sys/kernel/debug ||
\trefuse 'debugfs cannot be mounted in the guest'
grep -q ' /sys/kernel/tracing tracefs ' /proc/mounts ||
\tmount -t tracefs none /sys/kernel/tracing 2>/dev/null
{quirks}
leave {started} "$(uname -r)"
{command} >{stdout} 2>{stderr} </dev/null
leave {status} "$?"
"""

_QUIRKS = """\
test -e {file} || refuse 'this kernel has no quirks: there is no {file} in it'
printf '%s' {names} > {file} || refuse 'this kernel refused the quirks {names}'
cat {file} > quirks
"""


def guest_script(
    *,
    run_dir: Path,
    command: Sequence[str],
    quirks: Sequence[str],
    environment: Mapping[str, str],
) -> str:
    """Return the script's text.

    The command runs in ``run_dir`` with ``environment`` added, its standard input
    empty, its output in the files ``stdout`` and ``stderr`` there.
    """
    exports = "\n".join(
        f"export {name}={shlex.quote(value)}" for name, value in environment.items()
    )
    switch = ""
    if quirks:
        switch = _QUIRKS.format(
            file=quirk_table.DEBUGFS_FILE, names=quirk_table.as_argument(tuple(quirks))
        )
    return _TEMPLATE.format(
        run_dir=shlex.quote(str(run_dir)),
        exports=exports,
        quirks=switch,
        command=shlex.join(command),
        refused=REFUSED,
        started=STARTED,
        status=STATUS,
        stdout=STDOUT,
        stderr=STDERR,
    )
