"""The page as text: one file, nothing from elsewhere, no code from a recording."""

from __future__ import annotations

import base64
import hashlib
import html as escapes
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from simkernel import BIND, CDM, DEFAULT, SimKernel

from cdmtrace.analysis import document, page
from cdmtrace.analysis.frames import load
from cdmtrace.analysis.replay import check
from cdmtrace.errors import CdmtraceError
from cdmtrace.render import divergence, html

GOLDEN = Path(__file__).parents[1] / "golden"
DRAWS = "/* plotly.js */"


class Parts(HTMLParser):
    """Scripts, the elements there are, and the addresses they name."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.policy = ""
        self._script: dict[str, str | None] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.tags.append(tag)
        self.links += [
            str(value) for key, value in attrs if key in ("src", "href", "action")
        ]
        if named.get("http-equiv") == "Content-Security-Policy":
            self.policy = str(named["content"])
        if tag == "script":
            self._script = named

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            self.scripts.append((self._script, data))

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._script = None


def of(name: str) -> tuple[dict[str, Any], str]:
    built = page.build(load(GOLDEN / f"{name}.arrows"), profile="intended")
    return built, html.page(built, plotly=DRAWS)


@pytest.fixture(scope="module")
def rfc() -> tuple[dict[str, Any], str]:
    return of("cdm-6.1-rfc")


def test_it_names_nothing_that_is_elsewhere(rfc: tuple[Any, str]) -> None:
    parts = Parts(rfc[1])
    assert parts.links == ["data:,"]
    assert "url(" not in rfc[1]
    assert "@import" not in rfc[1]
    assert parts.policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in parts.policy
    assert "http" not in parts.policy


def test_only_its_own_scripts_may_run(rfc: tuple[Any, str]) -> None:
    parts = Parts(rfc[1])
    (data, first), *scripts = parts.scripts
    assert data == {"type": "application/json", "id": "data"}
    assert json.loads(first)["lanes"]
    assert len(scripts) == 3
    hashes = [
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for _, text in scripts
    ]
    (allowed,) = re.findall(r"script-src ([^;]*);", parts.policy)
    assert allowed == " ".join(f"'sha256-{one}'" for one in hashes)


def test_the_library_can_stand_in_a_page() -> None:
    text = html.plotly_js()
    assert "plotly.js" in text[:100]
    assert "</script" not in text.lower()
    # Of these a browser would make something else, of which the hash is another.
    assert "\r" not in text
    assert "\0" not in text


def test_the_witnesses_are_those_of_check(rfc: tuple[Any, str]) -> None:
    said = document.check(check(load(GOLDEN / "cdm-6.1-rfc.arrows")))
    shown = [
        escapes.unescape(one)
        for one in re.findall(r"<pre>(.*?)</pre>", rfc[1], re.DOTALL)
    ]
    assert shown == [divergence.finding(one) for one in said["findings"]]


def test_what_the_recording_is_stands_at_the_top(rfc: tuple[Any, str]) -> None:
    top = escapes.unescape(rfc[1].partition("<main>")[0])
    for words in (
        "Linux 6.1.192, x86_64",
        "904 events, 0 lost",
        "nodes 1, VM_CDM 0x4000000000, pages of 4096 bytes",
        "<strong>violated</strong>, 15 findings",
        "CDM002 missing-tag (8)",
        "9 clean",
    ):
        assert words in top
    built, text = of("cdm-6.1-none")
    assert "<strong>clean</strong></p>" in text
    assert "<article" not in text
    assert built["findings"] == []


def test_what_is_missing_is_said(rfc: tuple[Any, str]) -> None:
    built = json.loads(json.dumps(rfc[0]))
    built["check"]["trace"] |= {"cut": "torn at byte 9", "lost": 3, "rows_before": 7}
    built["recording"]["absent"] = ["ksm_merge"]
    built["losses"] = [{"what": "LOST: 3 rows", "count": 3, "since": 1.5, "until": 2.5}]
    built["left_out"] |= {"lanes": 12, "findings": 1, "losses": 2}
    text = escapes.unescape(html.page(built, plotly=DRAWS))
    for words in (
        "torn at byte 9",
        "904 events, 3 lost",
        "7 rows are missing",
        "ksm_merge",
        "LOST: 3 rows",
        "12 VMAs worth less",
        "1 finding whose ids are above",
        "2 losses that are smaller",
        "16 findings",
    ):
        assert words in text


HOSTILE = (
    "</script><hr>",
    "<img src=x>",
    "</pre><a>",
    '"><i>',
    "<!--<script>",
    "{{7*7}}",
)


@pytest.mark.parametrize("comm", HOSTILE)
def test_a_task_may_call_itself_what_it_likes(comm: str) -> None:
    def tags(name: str) -> tuple[list[str], dict[str, Any]]:
        kernel = SimKernel("rfc")
        task = kernel.process(name)
        vma = task.mmap(3)
        task.mbind(vma.start, 3, BIND, CDM)
        task.faults(vma)
        task.mbind(vma.start, 3, DEFAULT)
        built = page.build(kernel.trace(), profile="intended")
        trace = built["check"]["trace"]
        trace |= {"path": name, "kernel": name, "filters": {"comm": [name]}}
        built["recording"] |= {"machine": name, "absent": [name]}
        parts = Parts(html.page(built, plotly=DRAWS))
        return parts.tags, json.loads(parts.scripts[0][1])

    plain, _ = tags("story")
    hostile, data = tags(comm)
    assert hostile == plain
    assert data["lanes"][0]["comm"] == comm


@pytest.mark.parametrize("absent", ["jinja2", "plotly.offline"])
def test_without_its_packages_it_says_what_to_install(
    absent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(CdmtraceError, match=absent) as caught:
        html.plotly_js()
    assert caught.value.hint == "python3 -m pip install 'cdmtrace[html]'"


def test_nobody_else_needs_its_packages() -> None:
    code = (
        "import sys, cdmtrace.render.html, cdmtrace.cli.report\n"
        "sys.exit(str({'jinja2', 'plotly'} & set(sys.modules) or ''))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], text=True, capture_output=True, check=False
    )
    assert done.stderr.strip() == ""
