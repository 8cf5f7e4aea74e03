"""From a file to verdict, document and exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import simstory
from simfile import save
from simkernel import CDM, PREFERRED, SimKernel

from cdmtrace.analysis import check, document, load
from cdmtrace.analysis.result import Verdict
from cdmtrace.analysis.status import exit_status, verdict
from cdmtrace.cli import main
from cdmtrace.errors import TraceFileError

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "cdmtrace/schemas/check-1.json").read_text())


def story(*quirks: str) -> SimKernel:
    kernel = SimKernel(*quirks)
    simstory.tell(kernel)
    return kernel


@pytest.fixture
def rfc(tmp_path: Path) -> Path:
    return save(story("rfc").trace(), tmp_path / "rfc.arrows")


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    return save(story().trace(), tmp_path / "clean.arrows")


def test_what_is_read_is_what_was_written(rfc: Path) -> None:
    trace, expected = load(rfc), story("rfc").trace()
    assert trace.terms.cdm == expected.terms.cdm
    assert trace.terms.tag == expected.terms.tag
    assert trace.terms.probes == expected.terms.probes
    assert list(trace.events) == list(expected.events)
    assert (trace.count, trace.clean_end, trace.cut) == (expected.count, True, None)


def test_a_file_that_was_cut_says_so_and_is_judged(tmp_path: Path) -> None:
    path = save(story("rfc").trace(), tmp_path / "cut.arrows", end=False)
    path.write_bytes(path.read_bytes()[:-100])
    trace = load(path)
    assert not trace.clean_end
    assert trace.cut
    assert 0 < trace.count < story("rfc").trace().count
    assert check(trace).findings


def test_losses_are_intervals(tmp_path: Path) -> None:
    kernel = story()
    kernel.lose("rmap_remove", 0)
    (gap,) = load(save(kernel.trace(), tmp_path / "lossy.arrows")).gaps
    assert (gap.probe, gap.reason, gap.count) == ("rmap_remove", "ring", 1)
    assert gap.since < gap.until


def test_not_a_trace_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("no trace")
    with pytest.raises(TraceFileError):
        load(path)


@pytest.mark.parametrize("profile", ["intended", "rfc-v2"])
@pytest.mark.parametrize("quirks", [(), ("rfc",), ("one-way",)])
def test_the_document_obeys_its_schema(profile: str, quirks: tuple[str, ...]) -> None:
    result = check(story(*quirks).trace(), profile=profile)
    text = json.dumps(document.check(result))
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(text))


def test_a_fingerprint_survives_a_reboot() -> None:
    first, second = SimKernel("rfc"), SimKernel("rfc")
    second.now, second.next_tid, second.ids = 77_000_000_000, 4000, 900
    second.next_addr = 0x155500000000
    prints = []
    for kernel in (first, second):
        simstory.tell(kernel)
        result = check(kernel.trace())
        prints.append([(f.rule.id, f.cause, f.fingerprint) for f in result.findings])
    assert prints[0] == prints[1]
    assert len({p for _, _, p in prints[0]}) == len({(r, c) for r, c, _ in prints[0]})


def test_a_fingerprint_tells_causes_apart() -> None:
    kernel = story("rfc")
    prints = {f.cause: f.fingerprint for f in check(kernel.trace()).findings}
    assert len(set(prints.values())) == len(prints)


# --- the command line ----------------------------------------------------------


def test_the_exit_status_is_the_verdict(
    rfc: Path, clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = story()
    kernel.lose("vma_split", 0)
    lossy = save(kernel.trace(), tmp_path / "lossy.arrows")
    assert main(["check", str(rfc)]) == 1
    assert main(["diff", str(rfc)]) == 1
    assert main(["check", str(clean)]) == 0
    assert main(["check", str(clean), str(rfc)]) == 1
    assert main(["check", str(lossy)]) == 3
    assert main(["check", "--allow-inconclusive", str(lossy)]) == 0
    assert main(["check", "--rules", "CDM003,implicit-allocation", str(lossy)]) == 0
    assert main(["check", "--profile", "rfc-v2", str(rfc)]) == 0
    assert main(["check", "--profile", "rfc-v2", "--rules", "CDM001", str(rfc)]) == 3
    assert main(["check", "--rules", "CDM999", str(rfc)]) == 2
    assert main(["check", str(tmp_path / "none")]) == 2
    assert main(["check"]) == 2
    capsys.readouterr()


def test_check_prints_json(rfc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--format", "json", str(rfc)]) == 1
    shown = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator(SCHEMA).validate(shown)
    assert shown["verdict"] == "violated"
    assert shown["trace"]["path"] == str(rfc)
    assert shown["trace"]["vm_cdm_mask"] == "0x4000000000"
    assert main(["check", "--format", "json", str(rfc), str(rfc)]) == 1
    assert len(json.loads(capsys.readouterr().out)) == 2


def test_explain(rfc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain"]) == 0
    assert "CDM014" in capsys.readouterr().out
    assert main(["explain", "stale-tag"]) == 0
    assert "one-way trip" in capsys.readouterr().out
    assert main(["explain", "CDM099"]) == 2
    main(["check", "--format", "json", str(rfc)])
    first = json.loads(capsys.readouterr().out)["findings"][0]["fingerprint"]
    assert main(["explain", str(rfc), first[:8]]) == 0
    assert "The argument:" in capsys.readouterr().out
    assert main(["explain", str(rfc), "zz"]) == 2


@pytest.mark.parametrize("form", ["table", "json", "ndjson", "csv", "markdown"])
def test_report(rfc: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--format", form, str(rfc)]) == 0
    out = capsys.readouterr().out
    assert "move_pages" in out
    assert "PREFERRED:1" in out


def test_check_imports_no_pandas(clean: Path) -> None:
    code = (
        "import sys; from cdmtrace.cli import main; "
        f"status = main(['check', {str(clean)!r}]); "
        "sys.exit(status or 'pandas' in sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=ROOT, stdout=subprocess.DEVNULL
    )


def test_info_findings_and_vacuous_rules_set_no_status() -> None:
    result = check(SimKernel().trace())
    assert {one.verdict for one in result.rules} == {Verdict.VACUOUS}
    assert verdict(result, named=True) is Verdict.VACUOUS
    assert exit_status([result], named=True, allow_inconclusive=False) == 0


def test_the_recorder_must_bracket_a_task_to_name_it() -> None:
    kernel = SimKernel("task-policy")
    task = kernel.process("numactl")
    vma = task.mmap(3)
    task.set_mempolicy(PREFERRED, CDM)
    task.faults(vma)
    (finding,) = check(kernel.trace()).findings
    assert (finding.mm.comm, finding.mm.pid) == ("numactl", task.pid)
