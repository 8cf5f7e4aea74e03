"""Files over HTTP, from this process."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Say nothing."""


class Patient(ThreadingHTTPServer):
    def handle_error(self, *args: object) -> None:
        """Mind no client that goes in the middle of a file."""


@contextlib.contextmanager
def serving(folder: Path, how: type[Quiet] = Quiet) -> Iterator[str]:
    """Have a server of a directory for the block, and its HOST:PORT."""
    handler = functools.partial(how, directory=str(folder))
    with Patient(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
