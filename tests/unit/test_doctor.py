"""Each check by itself, on a machine that has one thing wrong."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, NoReturn

import pytest
from signatures import ARGUMENTS, types_of

from cdmtrace import doctor, privileges
from cdmtrace.checks import Check, State
from cdmtrace.errors import RecordError, UsageTrouble
from cdmtrace.kernel import btf, config, headers, profiles, tracefs
from cdmtrace.kernel.layout import MAPLE_TREE, MEMBERS, OPTIONAL
from cdmtrace.loader import bcc, build

WHOLE = {**dict.fromkeys(config.NEEDED, "y"), "CONFIG_NODES_SHIFT": "6"}


def said(check: Check, state: State, *parts: str) -> None:
    """Hold a check to its state, to words of its sentence, and to having a remedy."""
    assert check.state is state, check
    text = f"{check.text} -> {check.remedy}"
    assert all(part in text for part in parts), text
    assert (check.remedy is None) is (state is State.OK)


def test_privileges(monkeypatch: pytest.MonkeyPatch) -> None:
    said(doctor.check_privileges({}), State.OK)
    lacking = {privileges.Capability.BPF: "to load programs"}
    words = "recording needs CAP_BPF (to load programs)"
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    said(doctor.check_privileges(lacking), State.FAIL, words, "sudo cdmtrace doctor")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    said(doctor.check_privileges(lacking), State.FAIL, words, "taken from this root")


def test_python(monkeypatch: pytest.MonkeyPatch) -> None:
    said(doctor.check_python(), State.OK, "numpy")
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == "pyarrow" else real(name),
    )
    said(doctor.check_python(), State.FAIL, "pyarrow missing: ", "pip install pyarrow")


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("[none] integrity confidentiality\n", State.OK),
        ("none [integrity] confidentiality\n", State.OK),
        ("none integrity [confidentiality]\n", State.FAIL),
        (None, State.OK),
    ],
)
def test_lockdown(tmp_path: Path, text: str | None, state: State) -> None:
    path = tmp_path / "lockdown"
    if text is not None:
        path.write_text(text)
    said(doctor.check_lockdown(path), state)


def test_configuration() -> None:
    def missing() -> NoReturn:
        raise config.ConfigMissing("the configuration was not found", hint="install")

    check, options = doctor.check_config(missing)
    said(check, State.FAIL, "was not found -> install")
    assert options is None
    check, options = doctor.check_config(lambda: WHOLE)
    said(check, State.OK, f"{len(WHOLE)} options")
    assert options == WHOLE


def test_parts_of_the_kernel() -> None:
    said(doctor.check_options(WHOLE), State.OK)
    without = {name: value for name, value in WHOLE.items() if name != "CONFIG_KPROBES"}
    said(
        doctor.check_options(without),
        State.FAIL,
        "CONFIG_KPROBES is not set in this kernel: no probe can be put into",
        "cdmtrace lab run",
    )
    assert doctor.check_options(None).state is State.WARN


@pytest.mark.parametrize(("text", "state"), [("1\n", State.OK), ("0\n", State.FAIL)])
def test_kprobes_that_are_switched_off(tmp_path: Path, text: str, state: State) -> None:
    path = tmp_path / "enabled"
    said(doctor.check_kprobes_enabled(path), State.OK)
    path.write_text(text)
    said(doctor.check_kprobes_enabled(path), state)


@pytest.mark.parametrize("check", [doctor.check_ring, doctor.check_programs])
def test_parts_of_bpf(check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(number: int) -> NoReturn:
        raise RecordError("cannot be found out", hint="as root")

    said(check(able=True, probe=lambda number: True), State.OK)
    said(check(able=True, probe=lambda number: False), State.FAIL, "this kernel ")
    said(check(able=True, probe=refused), State.FAIL, "found out -> as root")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    said(check(able=False, probe=refused), State.WARN, "without privileges", "sudo ")


class FakeBtf(btf.Btf):
    def __init__(self, *missing: str) -> None:
        object.__setattr__(self, "_library", missing)

    def offset(self, struct: str, member: str) -> int:
        every = (*MEMBERS, *MAPLE_TREE, *OPTIONAL)
        if member in self._library or (struct, member) not in every:
            raise btf.TypeMissing(f"struct {struct} of this kernel has no {member}")
        return every.index((struct, member))

    def sizeof(self, struct: str) -> int:
        return 64

    def enumerator(self, enum: str, name: str) -> int:
        return 16

    def arguments(self, function: str) -> tuple[str, ...] | None:
        told = types_of("6.1").arguments(function)
        return None if told is None else () if function in self._library else (*told,)


def no_types() -> NoReturn:
    raise btf.BtfMissing("no type information", hint="boot another")


def test_layout() -> None:
    said(doctor.check_types(WHOLE, FakeBtf), State.OK, "at bit 58")
    said(doctor.check_types(WHOLE, no_types), State.FAIL, "no type information")
    said(
        doctor.check_types(WHOLE, lambda: FakeBtf("compound_head")),
        State.FAIL,
        "struct page of this kernel has no compound_head",
    )
    said(
        doctor.check_types({**WHOLE, "CONFIG_SPARSEMEM": "y"}, FakeBtf),
        State.FAIL,
        "section numbers",
    )
    assert doctor.check_types(None, FakeBtf).state is State.WARN


def test_tracefs(tmp_path: Path) -> None:
    said(doctor.check_tracefs(None, able=False), State.WARN, "without privileges")
    said(
        doctor.check_tracefs(None, able=True),
        State.FAIL,
        "cannot be mounted",
        "mount -t tracefs",
    )
    (tmp_path / "events").mkdir()
    said(
        doctor.check_tracefs(tmp_path, able=True),
        State.WARN,
        "system calls will not be seen",
        "CONFIG_FTRACE_SYSCALLS=y",
    )
    (tmp_path / "events/syscalls/sys_enter_mbind").mkdir(parents=True)
    said(doctor.check_tracefs(tmp_path, able=True), State.OK, "1 tracepoint")


FUNCTIONS = tuple(ARGUMENTS["6.1"])


def kallsyms(tmp_path: Path, *functions: str) -> Path:
    path = tmp_path / "kallsyms"
    path.write_text("".join(f"0000000000000000 T {name}\n" for name in functions))
    return path


def test_symbols(tmp_path: Path) -> None:
    def check(*functions: str, directory: Path | None = None) -> Check:
        path = kallsyms(tmp_path, *functions)
        return doctor.check_symbols(directory, path, FakeBtf)

    said(check(*FUNCTIONS), State.OK, "all 25 probes")
    required = [name for name in FUNCTIONS if name != "page_remove_rmap"]
    said(
        check(*required),
        State.FAIL,
        "page_remove_rmap is missing: rmap_remove will not be recorded",
    )
    optional = [name for name in FUNCTIONS if name != "ksm_madvise"]
    said(
        check(*optional),
        State.WARN,
        "ksm_madvise is missing: ksm_madvise will not be recorded",
        "cdmtrace probes",
    )
    said(
        doctor.check_symbols(
            None, kallsyms(tmp_path, *FUNCTIONS), lambda: FakeBtf("unmap_vmas")
        ),
        State.WARN,
        "of unmap_vmas() is missing: vma_free will not be recorded",
    )
    said(
        doctor.check_symbols(None, kallsyms(tmp_path, *FUNCTIONS), no_types),
        State.FAIL,
        "no type information -> boot another",
    )
    said(check(*FUNCTIONS, "mbind_range.isra.0"), State.WARN, "mbind_range.isra.0")
    (tmp_path / "events/syscalls/sys_enter_mbind").mkdir(parents=True)
    said(
        check(*FUNCTIONS, directory=tmp_path),
        State.WARN,
        "sys_exit_mbind is missing",
    )
    said(
        doctor.check_symbols(None, tmp_path / "none", FakeBtf),
        State.FAIL,
        "functions are unknown",
        "CONFIG_KALLSYMS=y",
    )


def test_nodes(tmp_path: Path) -> None:
    (tmp_path / "cmdline").write_text("quiet\n")
    (tmp_path / "online").write_text("0-1\n")

    def check(given: str | None = None) -> Check:
        return doctor.check_nodes(given, root=tmp_path, cmdline=tmp_path / "cmdline")

    said(check(), State.WARN, "does not say which nodes", "--cdm-nodes 1")
    said(check("1"), State.OK, "1 (from --cdm-nodes)")
    with pytest.raises(UsageTrouble):
        check("x")


def test_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(headers.SOURCE_VARIABLE, str(tmp_path / "gone"))
    said(doctor.check_headers(), State.FAIL, "does not exist -> unset ")
    monkeypatch.setenv(headers.SOURCE_VARIABLE, str(tmp_path))
    said(doctor.check_headers(), State.OK, str(tmp_path))
    monkeypatch.setattr(headers, "KHEADERS", tmp_path)
    monkeypatch.setenv("PATH", "")
    said(doctor.check_headers(), State.FAIL, "tar and xz missing", "xz-utils")


def types_are_missing() -> NoReturn:
    raise btf.BtfMissing("no type information")


def test_flags_and_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(headers.SOURCE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(doctor.platform, "release", lambda: "6.1.0-56-amd64")
    monkeypatch.setattr(doctor.platform, "machine", lambda: "x86_64")

    def check(
        given: str | None, profile: profiles.Profile = profiles.UPSTREAM
    ) -> tuple[Check, Check]:
        first, flags = doctor.check_flags({}, profile, types_are_missing)
        return first, doctor.check_mask(given, flags, profile)

    first, second = check(None)
    said(first, State.OK, "37 bits named (from cdmtrace's table, Linux 6.1)")
    said(second, State.WARN, "--vm-cdm-mask bit:38")
    said(check("bit:40")[1], State.OK, "0x10000000000, bit 40")
    said(check("bit:32")[1], State.FAIL, "CDM020", "VM_PKEY_BIT0", "table")
    first, second = check(None, profiles.OPENEULER)
    said(first, State.OK, "Linux 6.1, and the profile openeuler")
    said(second, State.OK, "0x100000000, bit 32", "profile openeuler")
    with pytest.raises(UsageTrouble):
        check("3")
    _, flags = doctor.check_flags({}, profiles.UPSTREAM, types_are_missing)
    in_shadow = doctor.check_mask(None, flags, profiles.UPSTREAM, shadow=True)
    said(in_shadow, State.OK, "none: shadow mode; cdmtrace's table, Linux 6.1 does not")
    said(in_shadow, State.OK, "define it, so rules about the tag are not checked")

    monkeypatch.setattr(doctor.platform, "release", lambda: "8.0.1")
    said(check(None)[0], State.WARN, "as 8.0 is not in it", "headers-8.0.1")

    text = "#define VM_CDM BIT(38)\n#define VM_MERGEABLE 0x80000000\n"
    (tmp_path / "include/linux").mkdir(parents=True)
    (tmp_path / "include/linux/mm.h").write_text(text)
    first, second = check(None)
    said(
        first, State.OK, "2 bits named (from include/linux/mm.h of the running kernel)"
    )
    said(second, State.OK, "bit 38", "mm.h")
    said(check("bit:31")[1], State.FAIL, "CDM020", "VM_MERGEABLE")


def test_flags_without_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "find", lambda release: None)
    monkeypatch.setattr(doctor.platform, "release", lambda: "6.12.1")
    check, flags = doctor.check_flags(None, profiles.UPSTREAM, types_are_missing)
    said(check, State.OK, "(from cdmtrace's table, Linux 6.12)")
    assert flags.owner(1 << 63) == "VM_SEALED"


def test_bcc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> NoReturn:
        raise bcc.BccMissing("bcc cannot be imported", hint="apt-get install bcc")

    monkeypatch.setattr(bcc, "import_bcc", missing)
    said(doctor.check_bcc(), State.FAIL, "cannot be imported -> apt-get")


@pytest.mark.parametrize(
    ("text", "state"), [("other sources", State.WARN), (None, State.OK)]
)
def test_who_has_compiled_probes_needs_neither_bcc_nor_headers(
    monkeypatch: pytest.MonkeyPatch, text: str | None, state: State
) -> None:
    def find() -> bytes:
        if text:
            raise build.ObjectMissing(text, hint="make bpf")
        return b""

    def fails() -> Check:
        return Check(name="x", state=State.FAIL, text="is missing", remedy="get it")

    monkeypatch.delenv(headers.SOURCE_VARIABLE, raising=False)
    monkeypatch.setattr(build, "find", find)
    monkeypatch.setattr(doctor, "check_headers", fails)
    monkeypatch.setattr(doctor, "check_bcc", fails)
    checks = [*doctor.examine()]
    said(checks[-1], state, f"{text} -> make bpf" if text else "libbpf loads")
    instead = {State.WARN: State.FAIL, State.OK: State.WARN}[state]
    assert [c.state for c in checks if c.name == "x"] == [instead, instead]
    # Headers that somebody has named are meant.
    monkeypatch.setenv(headers.SOURCE_VARIABLE, "/none")
    states = [c.state for c in doctor.examine() if c.name == "x"]
    assert states == [State.FAIL, instead]


def test_verdict() -> None:
    ok, warn, fail = (Check(name="x", state=state, text="x") for state in State)
    assert doctor.can_record((ok, warn))
    assert not doctor.can_record((ok, warn, fail))


def test_a_profile_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(headers.SOURCE_VARIABLE, str(tmp_path))
    (tmp_path / "include/linux").mkdir(parents=True)
    (tmp_path / "include/linux/mm.h").write_text("#define VM_READ 1\n")
    monkeypatch.setattr(privileges, "missing", lambda: {privileges.Capability.BPF: ""})

    def found(profile: str) -> Check:
        checks = doctor.examine(kernel_profile=profile)
        return next(check for check in checks if check.name == "VM_CDM")

    said(found("openeuler"), State.OK, "bit 32 (from the profile openeuler)")
    said(found("upstream"), State.WARN, "mm.h of the running kernel does not define it")


def test_all_of_it_on_this_machine_without_root(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever this machine is like, every check says something and none raises."""

    def never() -> NoReturn:
        raise AssertionError("tracefs is mounted by root alone")

    lacking = {privileges.Capability.BPF: "to load programs"}
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr(privileges, "missing", lambda: lacking)
    monkeypatch.setattr(tracefs, "mounted", never)
    checks = list(doctor.examine())
    assert checks[0].name == "privileges"
    assert checks[-1].name == "compiled probes"
    assert len({check.name for check in checks}) == len(checks) == 17
    assert not doctor.can_record(checks)
    assert all(check.remedy for check in checks if check.state is State.FAIL)
