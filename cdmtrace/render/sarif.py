"""``check --format sarif``: SARIF 2.1.0, a run for each recording.

There is no source file to point at. Where a finding is, is the recording, which is the
artifact that was analysed, and in it a VMA of a process: a logical location. The
witness is a code flow, a thread flow for each task, in the order of time.

https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/sarif-v2.1.0-errata01-os.html
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from cdmtrace import __version__
from cdmtrace.errors import ExitStatus
from cdmtrace.render import divergence, rulebook
from cdmtrace.render.outcomes import Call, LeftOpen, audited, line
from cdmtrace.units import count

Object = dict[str, Any]
Document = Mapping[str, Any]

SCHEMA: Final = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/"
    "sarif-schema-2.1.0.json"
)
FINGERPRINT: Final = "cdmtraceFinding/v1"
"""Under this name the ids of findings are in partialFingerprints."""

_LEVELS: Final = {"error": "error", "warning": "warning", "info": "note"}

_NOTIFICATIONS: Final = {
    "inconclusive": "A rule that lost events or missing probes leave open.",
    "unchecked": "A rule that this kernel, or this recording, cannot show.",
    "vacuous": "A rule whose premise never held: nothing happened that it is about.",
    "audit": "The model held against the kernel's own count of pages.",
    "recording": "What the recording lacks.",
}
"""Id of a notification -> what it is about."""


def render(call: Call) -> str:
    """Return it as a document of JSON."""
    runs = [_run(one, call) for one in call.documents]
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": runs}, indent=2)


def _run(document: Document, call: Call) -> Object:
    rules = [one["rule"] for one in document["rules"]]
    trace = document["trace"]
    return {
        "tool": {
            "driver": {
                "name": "cdmtrace",
                "version": __version__,
                "rules": [_descriptor(call.rules[rule]) for rule in rules],
                "notifications": [
                    {"id": id_, "shortDescription": {"text": about}}
                    for id_, about in _NOTIFICATIONS.items()
                ],
            }
        },
        # What ends with a slash is a category: one for each profile and recording.
        "automationDetails": {
            "id": f"cdmtrace/{document['profile']}/{line(trace['path'])}/"
        },
        "invocations": [_invocation(document, call)],
        "artifacts": [
            {
                "location": _artifact(file),
                "roles": ["analysisTarget"],
                "mimeType": "application/vnd.apache.arrow.stream",
            }
            for file in trace["files"]
        ],
        "results": [_result(one, document, rules) for one in document["findings"]],
        "properties": {
            key: document[key] for key in ("verdict", "profile", "trace", "rules")
        },
    }


def _descriptor(rule: Document) -> Object:
    return {
        "id": rule["rule"],
        "name": rule["name"],
        "shortDescription": {"text": rule["name"].replace("-", " ")},
        "fullDescription": {"text": rule["statement"]},
        "help": {
            "text": divergence.rule(rule),
            "markdown": rulebook.markdown(rule),
        },
        "defaultConfiguration": {"level": _LEVELS[rule["severity"]]},
        "properties": {"source": rule["source"], "profiles": rule["profiles"]},
    }


def _invocation(document: Document, call: Call) -> Object:
    """Return what came of the call: its exit status is that of all recordings."""
    trace = document["trace"]
    lacks = divergence.recording(trace, document["profile"])[1:]
    if trace["lost"]:
        lacks.insert(0, f"{count(trace['lost'], 'event')} lost")
    told = [_notification("recording", "warning", sentence) for sentence in lacks]
    told += [
        _reason(one, index, call.left_open)
        for index, one in enumerate(document["rules"])
        if one["why"]
    ]
    if document["audit"]:
        case = audited(document["audit"], call.left_open)
        level = "error" if case.bad else "note"
        told.append(_notification("audit", level, case.why or "no difference"))
    return {
        "executionSuccessful": call.status != ExitStatus.TROUBLE,
        "exitCode": int(call.status),
        "toolExecutionNotifications": told,
    }


def _reason(rule: Document, index: int, left_open: LeftOpen) -> Object:
    """Return why a rule could not be judged, or, if it is violated, not all of it."""
    verdict = rule["verdict"]
    id_ = verdict if verdict in _NOTIFICATIONS else "inconclusive"
    open_ = id_ == "inconclusive" or verdict in left_open.get(rule["rule"], ())
    told = f"{rule['rule']} {rule['name']}: {rule['why']}"
    return {
        **_notification(id_, "warning" if open_ else "note", told),
        "associatedRule": {"id": rule["rule"], "index": index},
    }


def _notification(id_: str, level: str, text: str) -> Object:
    index = list(_NOTIFICATIONS).index(id_)
    return {
        "descriptor": {"id": id_, "index": index},
        "level": level,
        "message": _message(text),
    }


def _result(finding: Document, document: Document, rules: Sequence[str]) -> Object:
    file = document["trace"]["path"]
    told = {
        "ruleId": finding["rule"],
        "ruleIndex": rules.index(finding["rule"]),
        "level": _LEVELS[finding["severity"]],
        "message": _message(
            f"{finding['name']}, cause: {finding['cause']}. "
            f"Required: {finding['expected']}. The kernel had: {finding['observed']}. "
            f"{finding['breaks']}"
        ),
        "locations": [
            {
                "physicalLocation": {"artifactLocation": _artifact(file, index=0)},
                "logicalLocations": _where(finding),
            }
        ],
        "partialFingerprints": {FINGERPRINT: finding["fingerprint"]},
        "occurrenceCount": finding["count"],
        "codeFlows": [_flow(finding["witness"])],
        "properties": {
            key: finding[key]
            for key in ("cause", "pid", "comm", "mm", "vma", "expected", "observed")
        },
    }
    if document["baseline"]:
        told["suppressions"] = _suppressions(finding, document["baseline"]["file"])
    return told


def _suppressions(finding: Document, file: str) -> list[Object]:
    """Return why a finding is suppressed. None is an empty list, where others are."""
    if not finding["suppressed"]:
        return []
    return [
        {
            "kind": "external",
            "status": "accepted",
            "justification": finding["suppressed"]["reason"],
            "location": {"physicalLocation": {"artifactLocation": _artifact(file)}},
        }
    ]


def _where(finding: Document) -> list[Object]:
    """Return the VMA, and the process that it is of; none of a whole recording."""
    start, end = (int(finding["vma"][key], 16) for key in ("start", "end"))
    if not end:
        return []
    vma = f"{start:x}-{end:x}"
    task = f"{finding['comm'] or '?'}[{finding['pid']}]"
    return [
        {"name": vma, "fullyQualifiedName": f"{task}/{vma}", "kind": "vma"},
        {"name": task, "kind": "process"},
    ]


def _flow(steps: Sequence[Document]) -> Object:
    tasks: dict[str, list[Object]] = {}
    for order, step in enumerate(steps, 1):
        task = f"{step['comm'] or '?'}/{step['tid']}"
        tasks.setdefault(task, []).append(_step(step, order))
    return {
        "threadFlows": [
            {"id": task, "locations": locations} for task, locations in tasks.items()
        ]
    }


def _step(step: Document, order: int) -> Object:
    """Return one event. order: its place in the witness, whichever task's it is."""
    state = {
        "mmap lock": step["lock"],
        "vm_flags before": step["before"],
        "vm_flags after": step["after"],
    }
    told: Object = {
        "location": {
            "logicalLocations": [{"name": step["probe"], "kind": "function"}],
            "message": _message(step["what"]),
        },
        "executionOrder": order,
        "properties": {
            key: step[key] for key in ("seq", "ts", "since_start", "kind", "cpu", "pid")
        },
    }
    if any(state.values()):
        told["state"] = {key: {"text": text} for key, text in state.items() if text}
    if step["stack"]:
        told["stack"] = {"frames": list(_frames(step["stack"]))}
    return told


def _frames(functions: Iterable[str]) -> Iterable[Object]:
    for name in functions:
        yield {"location": {"logicalLocations": [{"name": name, "kind": "function"}]}}


def _message(text: str) -> Object:
    """Return a plain message.

    A reader makes a link of ``[text](target)`` in one (3.11.6 of the standard), and
    names of tasks are the tasks' own to choose.
    """
    return {"text": line(text).replace("](", "] (")}


def _artifact(file: str, **more: int) -> Object:
    """Return where a file is: a path as it was given, relative or not, as a URI."""
    path = quote(file.encode("utf-8", "surrogateescape"))
    return {"uri": f"file://{path}" if path.startswith("/") else path, **more}
