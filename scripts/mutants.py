#!/usr/bin/env python3
"""Do the tests notice? Change the model and the rules in small ways, and see.

    scripts/mutants.py [-j N] [--every N] [--seconds N] [PATTERN ...]

The changes ("mutants") are those of mutmut, by its own code, with its names and by its
configuration in pyproject.toml; a pattern ("*rules.ksm*") chooses some, and --every 3
every third. What no test has noticed after --seconds on a cpu counts as not noticed, so
that the score of a run that is cut short is too low and never too high. mutmut itself
starts pytest for each. Here one session of pytest runs the tests once, and notes which
of them come to which line; for each mutant a fork of it puts the changed code into the
function and runs those that come to the changed statement until one fails. Prints the
changes that no test notices and the score by module, and ends with 0, whatever it is: 2
if a test fails without any change.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import fnmatch
import importlib
import os
import resource
import select
import signal
import sys
import tempfile
import textwrap
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import libcst as cst
import pytest
from hypothesis import Phase, settings
from mutmut.configuration import config
from mutmut.mutation.file_mutation import (
    create_mutations,
    deep_replace,
    group_by_top_level_node,
)
from mutmut.mutation.trampoline_templates import mangle_function_name

ROOT = Path(__file__).resolve().parent.parent
HANGS = 30
"""Time on a cpu (s) after which a test hangs, which is noticed."""
HISTORIES = "4"
"""Random programs for each property: `make histories` has a hundred times as many."""
MEMORY = 4 << 30
"""Bytes of address space that a mutant may take."""


@dataclass(frozen=True)
class Mutant:
    """One change of one function. cls: the class that it is a method of."""

    name: str
    module: str
    cls: str | None
    function: str
    before: str
    after: str

    @cached_property
    def lines(self) -> frozenset[int]:
        """The lines of the statement that it changes; none: those of its head."""
        before, after = self.before.splitlines(), self.after.splitlines()
        changed = (
            at
            for at, pair in enumerate(zip(before, after, strict=False), 1)
            if pair[0] != pair[1]
        )
        first = next(changed, len(before))
        (function,) = ast.parse(self.before).body
        found = range(0)
        for node in ast.walk(function):
            # Statements that others are part of come before these.
            if isinstance(node, ast.stmt) and node is not function:
                lines = _lines(node)
                found = lines if first in lines else found
        shift = self.target.__code__.co_firstlineno - 1
        return frozenset(line + shift for line in found)

    @cached_property
    def target(self) -> FunctionType:
        """The function that it changes."""
        return self._function(vars(importlib.import_module(self.module)))

    def _function(self, names: dict[str, Any]) -> FunctionType:
        home = dict(vars(names[self.cls])) if self.cls else names
        found = home[self.function]
        return getattr(found, "__func__", found)

    def put_in(self) -> None:
        """Change the function itself, so that whoever has it by now has the change."""
        text = self.after
        if self.cls:
            text = f"class {self.cls}:\n{textwrap.indent(text, '    ')}"
        names = dict(self.target.__globals__)
        exec(f"from __future__ import annotations\n{text}", names)
        changed = self._function(names)
        self.target.__code__ = changed.__code__
        self.target.__defaults__ = changed.__defaults__
        self.target.__kwdefaults__ = changed.__kwdefaults__

    def __str__(self) -> str:
        lines = difflib.unified_diff(
            self.before.splitlines(), self.after.splitlines(), lineterm="", n=0
        )
        changed = [line for line in lines if line[:2] not in ("--", "++", "@@")]
        return "\n".join([self.name, *(f"    {line}" for line in changed)])


def _lines(node: ast.stmt) -> range:
    """Return the lines of a statement, without those that are in it."""
    body = getattr(node, "body", None)
    last = body[0].lineno - 1 if body else node.end_lineno or node.lineno
    return range(node.lineno, last + 1)


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Yield the mutants of a file."""
    module, mutations, _, _ = create_mutations(str(path), path.read_text())
    classes: dict[Any, str | None] = {}
    for statement in module.body:
        classes[statement] = None
        if isinstance(statement, cst.ClassDef):
            classes |= dict.fromkeys(statement.body.body, statement.name.value)
    for function, found in group_by_top_level_node(mutations).items():
        # The fields of a dataclass are no function; mutmut leaves them out as well.
        if not isinstance(function, cst.FunctionDef):
            continue
        name, cls = function.name.value, classes[function]
        mangled = mangle_function_name(name=name, class_name=cls)
        for number, mutation in enumerate(found, 1):
            changed = deep_replace(
                function, mutation.original_node, mutation.mutated_node
            )
            before, after = (
                textwrap.dedent(module.code_for_node(one)).strip("\n")
                for one in (function, changed)
            )
            yield Mutant(
                name=f"{module_of(path)}.{mangled}__mutmut_{number}",
                module=module_of(path),
                cls=cls,
                function=name,
                before=before,
                after=after,
            )


def module_of(path: Path) -> str:
    """Return the name that a file is imported by."""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def all_mutants(patterns: list[str]) -> list[Mutant]:
    """Return the mutants of the files that pyproject.toml names."""
    return [
        mutant
        for source in config().source_paths
        for path in sorted(source.rglob("*.py"))
        if config().should_mutate(path)
        for mutant in mutants_of(path)
        if not patterns or any(fnmatch.fnmatch(mutant.name, p) for p in patterns)
    ]


class Runner:
    """A plugin of pytest: runs all tests once, then for each mutant those it is for.

    noticed: by name, what noticed a mutant: a test, a signal, or that pytest broke.
    """

    def __init__(self, mutants: list[Mutant], options: argparse.Namespace) -> None:
        self.mutants = mutants
        self.jobs: int = options.jobs
        self.seconds: float = options.seconds
        self.verbose: bool = options.verbose
        self.noticed: dict[str, str] = {}
        self.failed = False
        self._owners: dict[CodeType, CodeType] = {}
        self._tests: dict[CodeType, dict[pytest.Item, set[int]]] = defaultdict(dict)
        self._spent: dict[pytest.Item, float] = {}
        self._kills: Counter[Any] = Counter()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Have random histories be the same each time, and not be made shorter."""
        name = "_hypothesis_internal_use_settings"
        for item in items:
            test = getattr(item, "obj", None)
            if mine := getattr(test, name, None):
                plain = settings(
                    mine, phases=[Phase.generate], derandomize=True, database=None
                )
                setattr(test, name, plain)

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run the tests as they are, and then with each mutant."""
        for mutant in self.mutants:
            for code in _all_of(mutant.target.__code__):
                self._owners[code] = mutant.target.__code__
        for item in session.items:
            self._watch(item)
        self.failed = session.testsfailed > 0
        if not self.failed:
            self._all(session)
            # Else what failed above may have failed for another reason.
            for item in session.items:
                _run(item)
            self.failed = session.testsfailed > 0
        return True

    def _watch(self, item: pytest.Item) -> None:
        """Run a test, and note to which lines it comes."""
        called: dict[CodeType, set[int]] = defaultdict(set)

        def trace(frame: FrameType, _event: str, _arg: Any) -> Any:
            owner = self._owners.get(frame.f_code)
            if owner is None:
                return None
            lines = called[owner]

            def line(frame: FrameType, _event: str, _arg: Any) -> Any:
                lines.add(frame.f_lineno)
                return line

            return line

        begun = time.process_time()
        sys.settrace(trace)
        _run(item)
        sys.settrace(None)
        self._spent[item] = time.process_time() - begun
        for code, lines in called.items():
            self._tests[code][item] = lines

    def _all(self, session: pytest.Session) -> None:
        todo = list(reversed(self.mutants))
        busy: dict[int, tuple[int, Mutant, list[pytest.Item]]] = {}
        while todo or busy:
            while todo and len(busy) < self.jobs:
                mutant = todo.pop()
                items = self._turns(mutant)
                pid, pipe = _fork(session, mutant, items, self.seconds)
                busy[pipe] = pid, mutant, items
            for pipe in select.select(list(busy), [], [])[0]:
                pid, mutant, items = busy.pop(pipe)
                with os.fdopen(pipe) as told:
                    number = told.read()
                _, status = os.waitpid(pid, 0)
                if number:
                    test = items[int(number)]
                    self._kills[test] += 1
                    self._kills[test, mutant.target.__code__] += 1
                    self.noticed[mutant.name] = test.nodeid
                elif os.WIFSIGNALED(status):
                    name = signal.Signals(os.WTERMSIG(status)).name
                    self.noticed[mutant.name] = name
                elif status:
                    self.noticed[mutant.name] = "pytest broke"
                else:
                    done = len(self.mutants) - len(todo) - len(busy)
                    print(f"\n[{done}] {mutant}", flush=True)
                if self.verbose and mutant.name in self.noticed:
                    print(f"\n{mutant.name}: {self.noticed[mutant.name]}", flush=True)

    def _turns(self, mutant: Mutant) -> list[pytest.Item]:
        """Return the tests that come to a change, those first that tell soonest.

        What has noticed other changes of the function is likely to notice this one.
        """
        code = mutant.target.__code__

        def worth(item: pytest.Item) -> float:
            kills = self._kills[item] + 10 * self._kills[item, code] + 0.1
            return kills / max(self._spent[item], 0.001)

        tests = [
            test
            for test, lines in self._tests[code].items()
            if not mutant.lines or not lines.isdisjoint(mutant.lines)
        ]
        return sorted(tests, key=worth, reverse=True)


def _all_of(code: CodeType) -> Iterator[CodeType]:
    """Yield the code of a function and of those in it."""
    yield code
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _all_of(inner)


def _run(item: pytest.Item) -> None:
    item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)


def _fork(
    session: pytest.Session,
    mutant: Mutant,
    items: list[pytest.Item],
    seconds: float,
) -> tuple[int, int]:
    """Try a mutant in a process of its own.

    Return its pid, and a pipe from which the number of the test that failed can be
    read, or nothing.
    """
    hear, say = os.pipe()
    pid = os.fork()
    if pid:
        os.close(say)
        return pid, hear
    status = 0
    try:
        os.close(hear)
        limit = int(seconds) + HANGS
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        # It writes to a copy of stdout that pytest has made.
        session.config.pluginmanager.unregister(name="terminalreporter")
        mutant.put_in()
        for number, item in enumerate(items):
            _run(item)
            if session.testsfailed:
                os.write(say, str(number).encode())
            if session.testsfailed or time.process_time() > seconds:
                break
    except BaseException:
        status = 1
    os._exit(status)


def main() -> int:
    """Print what no test notices, and the score."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-j", "--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("-v", "--verbose", action="store_true", help="say who notices")
    parser.add_argument("patterns", nargs="*")
    options = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    os.environ |= {"CDMTRACE_HISTORIES": HISTORIES, "CDMTRACE_KERNEL_TESTS": "0"}
    mutants = all_mutants(options.patterns)[:: options.every]
    runner = Runner(mutants, options)
    with tempfile.TemporaryDirectory() as directory:
        pytest.main(
            [
                *("-q", "--tb=no", "--no-header", "--assert=plain", "--timeout=0"),
                # Other sessions of pytest clear the common one up.
                f"--basetemp={directory}/tests",
                *("-o", "tmp_path_retention_policy=none"),
                *config().pytest_add_cli_args,
                *config().pytest_add_cli_args_test_selection,
            ],
            plugins=[runner],
        )
    if runner.failed:
        print("a test fails without any change: nothing can be said")
        return 2
    noticed: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for mutant in mutants:
        for name in (mutant.module.removeprefix("cdmtrace.analysis."), "all"):
            total[name] += 1
            noticed[name] += mutant.name in runner.noticed
    print(f"\n{'module':20}  mutants  noticed  per cent")
    for name, count in total.items():
        share = 100 * noticed[name] / count
        print(f"{name:20}  {count:7}  {noticed[name]:7}  {share:8.1f}")
    otherwise = Counter(how for how in runner.noticed.values() if "::" not in how)
    for how, count in otherwise.items():
        print(f"{count} not by a test that failed: {how}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
