"""``check --format junit``: a test suite for each recording, a test for each rule.

There is no standard. Written is what Jenkins and GitLab read, which differ: Jenkins
takes the attribute ``message``, GitLab the text of an element, so that a reason is in
both. What is skipped fails in neither, and an error does in both.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Final
from xml.etree import ElementTree

from cdmtrace.render.outcomes import Call, Case, Outcome, cases, line

_ELEMENTS: Final = {
    Outcome.FAILED: "failure",
    Outcome.ERROR: "error",
    Outcome.SKIPPED: "skipped",
}

_TOLD: Final = ("kernel", "events", "lost", "vm_cdm_mask")
"""Of a recording, as a property of its suite."""


def render(call: Call) -> str:
    """Return it as a document of XML, in ASCII: it is the same in any encoding."""
    root = ElementTree.Element("testsuites", name="cdmtrace check")
    suites = [(one, cases(one, call.left_open)) for one in call.documents]
    _count(root, [case for _, own in suites for case in own])
    for (document, own), name in zip(suites, _names(call.documents), strict=True):
        root.append(_suite(document, own, name))
    ElementTree.indent(root)
    head = '<?xml version="1.0" encoding="us-ascii"?>\n'
    text: bytes = ElementTree.tostring(root, encoding="us-ascii", xml_declaration=False)
    return f"{head}{text.decode('ascii')}\n"


def _suite(
    document: Mapping[str, Any], own: Sequence[Case], name: str
) -> ElementTree.Element:
    trace = document["trace"]
    suite = ElementTree.Element("testsuite", name=line(trace["path"]))
    _count(suite, own)
    properties = ElementTree.SubElement(suite, "properties")
    told = {
        "verdict": document["verdict"],
        "profile": document["profile"],
        **{key: trace[key] for key in _TOLD},
        "cdm_nodes": ",".join(map(str, trace["cdm_nodes"])),
    }
    for key, value in told.items():
        ElementTree.SubElement(properties, "property", name=key, value=line(str(value)))
    for case in own:
        suite.append(_case(case, name))
    return suite


def _case(case: Case, classname: str) -> ElementTree.Element:
    element = ElementTree.Element(
        "testcase",
        classname=classname,
        name=case.name,
        assertions=str(case.checked),
    )
    if case.outcome is not Outcome.PASSED:
        result = ElementTree.SubElement(
            element, _ELEMENTS[case.outcome], message=case.why
        )
        if case.bad:
            result.set("type", case.verdict)
        result.text = case.told or case.why
    elif case.told:
        ElementTree.SubElement(element, "system-out").text = case.told
    return element


def _count(element: ElementTree.Element, own: Sequence[Case]) -> None:
    element.set("tests", str(len(own)))
    for outcome, attribute in (
        (Outcome.FAILED, "failures"),
        (Outcome.ERROR, "errors"),
        (Outcome.SKIPPED, "skipped"),
    ):
        element.set(attribute, str(sum(case.outcome is outcome for case in own)))


def _names(documents: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the name of a class for each recording.

    Jenkins takes what is before the last full stop for a package; GitLab drops a test
    whose class and name it has seen already.
    """
    names: list[str] = []
    for document in documents:
        path = line(document["trace"]["path"]).removesuffix(".arrows")
        base = f"cdmtrace.{path.replace('.', '_')}"
        tries = chain([base], (f"{base} {number}" for number in itertools.count(2)))
        names.append(next(name for name in tries if name not in names))
    return names
