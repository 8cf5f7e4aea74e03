"""The shell script that the guest runs: prepare, run the command, leave its status."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from cdmtrace.lab import quirks as quirk_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SCRIPT = "guest.sh"
STARTED = "started"
REFUSED = "refused"
STATUS = "status"
STDOUT = "stdout"
STDERR = "stderr"

STATUSES = "statuses.json"
"""How each of several recordings of one guest has ended, by name."""

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
{quirks}{modules}
leave {started} "$(uname -r)"
{command} >{stdout} 2>{stderr} </dev/null
leave {status} "$?"
"""

_QUIRKS = """\
test -e {file} || refuse 'this kernel has no quirks: there is no {file} in it'
printf '%s' {names} > {file} || refuse 'this kernel refused the quirks {names}'
cat {file} > quirks
"""


_MODULE = """/sbin/insmod {module} || refuse {complaint}
"""


def guest_script(
    *,
    run_dir: Path,
    command: Sequence[str],
    quirks: Sequence[str],
    environment: Mapping[str, str],
    modules: Sequence[Path] = (),
) -> str:
    """Return the script's text.

    ``modules`` are loaded first. The command runs in ``run_dir`` with
    ``environment`` added, its standard input empty, its output in the files
    ``stdout`` and ``stderr`` there.
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
        modules="".join(
            _MODULE.format(
                module=shlex.quote(str(module)),
                complaint=shlex.quote(f"this kernel refused the module {module}"),
            )
            for module in modules
        ),
        command=shlex.join(command),
        refused=REFUSED,
        started=STARTED,
        status=STATUS,
        stdout=STDOUT,
        stderr=STDERR,
    )


def in_memory(*words: str) -> tuple[str, ...]:
    """Return a command, to be run in a guest with copies of bcc's libraries.

    Of a library that is mapped from a guest's root, which is on 9p, little is read at a
    time, and LLVM's has 100 MiB. A copy reads 500 KiB at once.
    Where bcc is not to be found, the words are returned as they are.
    """
    library = next(Path("/usr/lib").glob("*/libbcc.so.0"), None)
    if library is None:
        return words
    needed = subprocess.run(
        ["ldd", library], text=True, capture_output=True, check=True
    )
    files = [str(library), *re.findall(r"=> (/\S+)", needed.stdout)]
    script = f'mkdir /tmp/lib && cp {shlex.join(files)} /tmp/lib && exec "$@"'
    return ("sh", "-c", script, "sh", "env", "LD_LIBRARY_PATH=/tmp/lib", *words)
