"""Runs in the guest of a stock kernel: what test_stock.py wants, but ordinary.sh.

One process imports all once, as in recordings.py. Of the module's writes and of vfio's,
watched, it leaves what watching.py says; then shadow.arrows of leaking.py, and
services.arrows of the scenario of that name. What programs print is in NAME.stdout, and
how each ended in ``statuses.json``.

Usage: stock.py VFIO SERVICES
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from recordings import finish, prepared, start
from watching import watch_vfio, watch_writer

LEAKING = Path(__file__).parent / "leaking.py"


def main(vfio: str, services: str) -> None:
    """Watch the two, and record the others."""
    with prepared():
        statuses = {"watch": watch_writer(), "vfio": watch_vfio([vfio])}
        for name, command in {
            "shadow": (sys.executable, str(LEAKING)),
            "services": (services, "--cdm-node", "1"),
        }.items():
            words = ("--cdm-nodes", "1", "--", *command)
            statuses[name] = finish(start(name, *words))
    Path("statuses.json").write_text(json.dumps(statuses))


if __name__ == "__main__":
    main(*sys.argv[1:])
