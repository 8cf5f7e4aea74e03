"""Recordings of a fleet, judged as a worker judges them, in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import referencing
from mutations import GOLDEN

from cdmtrace.fleet import work
from cdmtrace.fleet.places import Place

SCHEMAS = Path(__file__).resolve().parents[1] / "cdmtrace/schemas"
NONE, RFC, FOREIGN = (
    GOLDEN / f"{name}.arrows"
    for name in ("cdm-6.1-none", "cdm-6.1-rfc", "foreign-6.1-rfc")
)


def schema(name: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((SCHEMAS / name).read_text())
    return told


def validator(name: str) -> jsonschema.Draft202012Validator:
    """Return what validates a document that builds on that of check."""
    jsonschema.Draft202012Validator.check_schema(schema(name))
    resources = [
        (one["$id"], referencing.Resource.from_contents(one))
        for one in (schema("check-1.json"), schema(name))
    ]
    return jsonschema.Draft202012Validator(
        schema(name), registry=referencing.Registry().with_resources(resources)
    )


def place(path: Path, name: str | None = None) -> Place:
    return Place(at=str(path), name=name or str(path))


def done(job: Any, path: Path, name: str | None = None, **asked: Any) -> Any:
    """Return what a worker knows of a recording, as survey() has it."""
    question = work.Question(**{"profile": "intended", **asked})
    reply = job([place(path, name)], question)
    made = {"name": name or str(path), "machine": "x86_64", "boot_id": ""}
    return {**made, **reply["done"]}


FAILED = {
    "name": "bad.arrows",
    "files": ["bad.arrows"],
    "message": "bad.arrows: is not a trace file",
    "hint": "cdmtrace record",
    "details": None,
}
