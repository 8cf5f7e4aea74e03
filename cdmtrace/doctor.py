"""What recording needs of a machine, one check for each prerequisite.

A check never raises for what it finds: it returns a sentence, and the command that
mends what is wrong. It uses what ``record`` uses, so that both say the same.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from cdmtrace import privileges
from cdmtrace.checks import Check, State
from cdmtrace.errors import CdmtraceError, apt_hint
from cdmtrace.kernel import (
    bpf,
    config,
    headers,
    layout,
    mmheader,
    nodes,
    profiles,
    symbols,
    tracefs,
    vmflags,
)
from cdmtrace.kernel.btf import Btf, BtfMissing, TypeMissing
from cdmtrace.loader import build

LOCKDOWN: Final = Path("/sys/kernel/security/lockdown")
KPROBES_ENABLED: Final = Path("/sys/kernel/debug/kprobes/enabled")

PACKAGES: Final = ("click", "numpy", "pyarrow", "tabulate")
"""What recording imports of other people's packages, bcc aside."""


USE_THE_LAB: Final = (
    "boot another kernel, or use the laboratory's: cdmtrace lab run -- COMMAND"
)


def can_record(checks: Sequence[Check]) -> bool:
    """Return whether no prerequisite fails."""
    return all(check.state is not State.FAIL for check in checks)


def examine(
    *,
    cdm_nodes: str | None = None,
    vm_cdm_mask: str | None = None,
    kernel_profile: str | None = None,
) -> Iterator[Check]:
    """Yield one check after the other, the cheapest first.

    The arguments are as ``record`` takes them. Raises UsageTrouble if one of
    them makes no sense.
    """
    lacking = privileges.missing()
    able = not lacking
    yield check_privileges(lacking)
    yield check_python()
    yield check_lockdown()
    check, options = check_config()
    yield check
    yield check_options(options)
    yield check_kprobes_enabled()
    yield check_ring(able=able)
    yield check_programs(able=able)
    yield check_types(options)
    directory = None
    if able:
        with contextlib.suppress(CdmtraceError):
            directory = tracefs.mounted()
    yield check_tracefs(directory, able=able)
    yield check_symbols(directory)
    yield check_nodes(cdm_nodes)
    compiled = check_compiled()
    # What somebody has named is meant, and has to be there.
    named = headers.SOURCE_VARIABLE in os.environ
    yield check_headers() if named else _or_else(check_headers(), compiled)
    profile = profiles.choose(kernel_profile, platform.release(), options or {})
    check, flags = check_flags(options, profile)
    yield check
    tags = nodes.has_cdm() or config.tags(options or {})
    shadow = cdm_nodes is not None and not tags
    yield check_mask(vm_cdm_mask, flags, profile, shadow=shadow)
    yield _or_else(check_bcc(), compiled)
    yield compiled


def check_privileges(lacking: Mapping[privileges.Capability, str]) -> Check:
    """Check for the right to trace the kernel, which some of the checks need too."""
    name = "privileges"
    if not lacking:
        return _ok(name, "every capability that recording needs")
    return _fail(
        name,
        f"recording needs {privileges.sentence(lacking)}; some of the checks below "
        "cannot tell without",
        privileges.hint("cdmtrace doctor"),
    )


def check_python() -> Check:
    """Check that what recording imports is there, without importing it."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        return _fail(
            "python",
            f"{' and '.join(missing)} missing: traces cannot be written",
            f"python3 -m pip install {' '.join(missing)}",
        )
    return _ok("python", f"Python {platform.python_version()}, {', '.join(PACKAGES)}")


def check_lockdown(path: Path = LOCKDOWN) -> Check:
    """Check that the kernel lets its memory be read (security/lockdown)."""
    try:
        text = path.read_text()
    except OSError:
        return _ok("lockdown", "not in force, as far as can be seen")
    match = re.search(r"\[(\w+)\]", text)
    mode = match[1] if match else text.strip()
    if mode == "confidentiality":
        return _fail(
            "lockdown",
            "the kernel is locked down for confidentiality: probes cannot be attached "
            "and its memory cannot be read",
            "boot with lockdown=integrity, or without lockdown",
        )
    return _ok("lockdown", f"{mode}: probes are allowed")


def check_config(
    load: Callable[[], Mapping[str, str]] = config.load,
) -> tuple[Check, Mapping[str, str] | None]:
    """Check that the configuration of the running kernel is known; return it too."""
    try:
        options = load()
    except config.ConfigMissing as error:
        return _of_error("config", error), None
    text = f"{len(options):,} options of kernel {platform.release()}"
    return _ok("config", text), options


def check_options(options: Mapping[str, str] | None) -> Check:
    """Check for the parts of the kernel that tracing is made of."""
    if options is None:
        return _warn(
            "kernel",
            "that it can be traced cannot be told without the kernel's configuration",
        )
    if lacking := config.lacking(options):
        return _fail("kernel", "; ".join(lacking), USE_THE_LAB)
    return _ok("kernel", "kprobes and BPF are built in")


def check_kprobes_enabled(path: Path = KPROBES_ENABLED) -> Check:
    """Check that kprobes are not switched off: they would attach and see nothing."""
    try:
        text = path.read_text().strip()
    except OSError:
        return _ok("kprobes", "not switched off, as far as can be seen")
    if text == "0":
        return _fail(
            "kprobes",
            "kprobes are switched off: they would be attached and see nothing",
            f"echo 1 | sudo tee {path}",
        )
    return _ok("kprobes", "switched on")


def check_ring(*, able: bool, probe: Callable[[int], bool] = bpf.has_map_type) -> Check:
    """Check for the map that events are handed over in (since 5.8)."""
    return _bpf_feature(
        "ring buffer",
        lambda: probe(bpf.MAP_RINGBUF),
        "this kernel has no BPF ring buffer: events cannot be handed over",
        "boot a kernel of version 5.8 or later",
        able=able,
    )


def check_programs(
    *, able: bool, probe: Callable[[int], bool] = bpf.has_program_type
) -> Check:
    """Check that the kernel takes programs for kprobes and tracepoints."""
    return _bpf_feature(
        "programs",
        lambda: probe(bpf.PROG_KPROBE) and probe(bpf.PROG_TRACEPOINT),
        "this kernel takes no BPF programs for kprobes and tracepoints",
        "boot a kernel that has CONFIG_BPF_EVENTS=y",
        able=able,
    )


def _bpf_feature(
    name: str, probe: Callable[[], bool], missing: str, remedy: str, *, able: bool
) -> Check:
    if not able:
        return _unknown(name)
    try:
        there = probe()
    except CdmtraceError as error:
        return _of_error(name, error)
    return (
        _ok(name, "accepted by the kernel") if there else _fail(name, missing, remedy)
    )


def check_types(
    options: Mapping[str, str] | None, load: Callable[[], Btf] = Btf.load
) -> Check:
    """Check that the kernel says where the members of its structs are (BTF)."""
    name = "layout"
    try:
        types = load()
        numbers = layout.defines(types, options or {})
    except TypeMissing as error:
        return _fail(
            name,
            f"{error.message}: cdmtrace does not know this kernel's layout yet",
            USE_THE_LAB,
        )
    except (BtfMissing, layout.LayoutUnknown) as error:
        return _of_error(name, error)
    if options is None:
        return _warn(
            name,
            "where the node is in a page's flags cannot be told without the "
            "kernel's configuration",
        )
    bits = numbers["NODES_MASK"].bit_length()
    where = f"at bit {numbers['NODES_PGSHIFT']}" if bits else "of a single node"
    return _ok(name, f"{len(numbers)} numbers from BTF; node of a page {where}")


def check_tracefs(directory: Path | None, *, able: bool) -> Check:
    """Check for the tracepoints of system calls."""
    name = "tracefs"
    if directory is None and not able:
        return _unknown(name)
    if directory is None:
        return _fail(
            name,
            "tracefs cannot be mounted: system calls cannot be seen",
            f"sudo mount -t tracefs tracefs {tracefs.TRACEFS[0]}",
        )
    count = len(tracefs.tracepoints(directory))
    if not count:
        return _warn(
            name,
            f"{directory}/events has no syscalls: system calls will not be seen",
            "boot a kernel that has CONFIG_FTRACE_SYSCALLS=y",
        )
    return _ok(name, f"{directory}, {count} tracepoints of system calls")


def check_symbols(
    directory: Path | None,
    kallsyms: Path = symbols.KALLSYMS,
    load: Callable[[], Btf] = Btf.load,
) -> Check:
    """Check that the kernel has what the probes go to, with the arguments they read.

    directory: tracefs; None if it is not known, then only functions are looked at.
    """
    from cdmtrace.planning import plan
    from cdmtrace.probes import Kind

    name = "symbols"
    try:
        present, types = symbols.functions(kallsyms), load()
    except (symbols.SymbolsUnknown, BtfMissing) as error:
        return _of_error(name, error)
    functions, tracepoints = present, frozenset[str]()
    if directory is not None:
        functions = tracefs.traceable(directory, present)
        tracepoints = tracefs.tracepoints(directory)
    plans = [
        item
        for item in plan(functions, tracepoints, types, present=present)
        # Where no tracepoint can be seen, the check of tracefs says so.
        if tracepoints or Kind.TRACEPOINT not in item.probe.kinds
    ]
    missing = [item for item in plans if item.missing]
    sentence = "; ".join(
        f"{item.missing} is missing: {item.probe.name} will not be recorded"
        for item in missing
    )
    if any(item.probe.required for item in missing):
        return _fail(
            name, sentence, "cdmtrace probes; use a kernel that has these functions"
        )
    if missing:
        return _warn(name, sentence, "cdmtrace probes, for the rules that this costs")
    if unseen := [copy for item in plans for copy in item.unseen]:
        return _warn(
            name,
            f"calls of {', '.join(unseen)} will not be seen: the compiler made "
            "copies of functions",
            "cdmtrace probes",
        )
    return _ok(name, f"all {len(plans)} probes have something to attach to")


def check_nodes(
    given: str | None = None,
    *,
    root: Path = nodes.NODES,
    cmdline: Path = nodes.CMDLINE,
) -> Check:
    """Check that the kernel says which nodes are CDM. Raises UsageTrouble."""
    try:
        found, source = nodes.discover(given, root=root, cmdline=cmdline)
    except nodes.NodesUnknown as error:
        return _warn("CDM nodes", error.message, error.hint)
    return _ok("CDM nodes", f"{', '.join(map(str, found))} (from {source})")


def check_headers() -> Check:
    """Check for what bcc compiles with."""
    name = "headers"
    try:
        found = headers.require()
    except headers.HeadersMissing as error:
        return _of_error(name, error)
    if found == headers.KHEADERS:
        missing = [tool for tool in ("tar", "xz") if shutil.which(tool) is None]
        if missing:
            return _fail(
                name,
                f"{' and '.join(missing)} missing: {found} cannot be unpacked",
                apt_hint("tar", "xz-utils"),
            )
    return _ok(name, str(found))


def check_flags(
    options: Mapping[str, str] | None,
    profile: profiles.Profile,
    load: Callable[[], Btf] = Btf.load,
) -> tuple[Check, vmflags.Flags]:
    """Check whose the bits of vm_flags are, and how that is known; return it too."""
    name = "vm_flags"
    with contextlib.ExitStack() as stack:
        directory = None
        with contextlib.suppress(headers.HeadersMissing):
            directory = stack.enter_context(headers.available(mmheader.MM_H))
        flags = vmflags.running(directory, options or {}, load, profile)
    text = f"{len(flags.names)} bits named (from {flags.source})"
    remedy = apt_hint(f"linux-headers-{platform.release()}")
    return _ok(name, text) if flags.sure else _warn(name, text, remedy), flags


def check_mask(
    given: str | None,
    flags: vmflags.Flags,
    profile: profiles.Profile,
    *,
    shadow: bool = False,
) -> Check:
    """Check which bit of vm_flags is VM_CDM, if any has to be (not in shadow mode).

    Raises UsageTrouble.
    """
    name = "VM_CDM"
    try:
        mask, source, _ = vmflags.find_mask(given, flags, profile, shadow=shadow)
    except vmflags.MaskUnknown as error:
        return _warn(name, error.message, error.hint)
    except vmflags.BitTaken as error:
        return _of_error(name, error)
    if not mask:
        return _ok(name, f"{source}, so rules about the tag are not checked")
    return _ok(name, f"{mask:#x}, bit {mask.bit_length() - 1} (from {source})")


def check_bcc() -> Check:
    """Check that bcc, and not PyPI's project of that name, can be imported."""
    try:
        from cdmtrace.loader.bcc import import_bcc

        module = import_bcc()
    except CdmtraceError as error:
        return _of_error("bcc", error)
    except ImportError as error:
        return _fail("bcc", f"{error}: see the check of python above")
    return _ok("bcc", str(getattr(module, "__version__", "imported")))


def check_compiled() -> Check:
    """Check for the probes as libbpf loads them, where bcc cannot compile them."""
    name = "compiled probes"
    try:
        build.find()
    except build.ObjectMissing as error:
        return _warn(name, error.message, error.hint)
    return _ok(name, "what libbpf loads where bcc cannot compile")


def _or_else(check: Check, other: Check) -> Check:
    """Return a check that fails as no more than a warning, if the other one is well."""
    if check.state is State.FAIL and other.state is State.OK:
        return replace(check, state=State.WARN)
    return check


def _ok(name: str, text: str) -> Check:
    return Check(name=name, state=State.OK, text=text)


def _warn(name: str, text: str, remedy: str | None = None) -> Check:
    return Check(name=name, state=State.WARN, text=text, remedy=remedy)


def _fail(name: str, text: str, remedy: str | None = None) -> Check:
    return Check(name=name, state=State.FAIL, text=text, remedy=remedy)


def _of_error(name: str, error: CdmtraceError) -> Check:
    return _fail(name, error.message, error.hint)


def _unknown(name: str) -> Check:
    remedy = privileges.hint("cdmtrace doctor")
    return _warn(name, "cannot be told without privileges", remedy)
