"""The kernel that is traced: what has to be known of it before a probe is compiled."""

from __future__ import annotations

import os
import platform
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdmtrace import __version__
from cdmtrace.errors import RecordError
from cdmtrace.format.schema import Header, ProbeEntry
from cdmtrace.kernel import config, layout, nodes, profiles, vmflags
from cdmtrace.kernel.btf import Btf
from cdmtrace.planning import Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """One kernel. ``numbers``: macros for the BPF program, see bpf/cdmtrace.bpf.c.

    vm_cdm_mask: 0 where it has no VM_CDM (shadow mode). The two keys among the
    numbers are drawn for one recording.
    """

    cdm_nodes: tuple[int, ...]
    cdm_nodes_from: str
    vm_cdm_mask: int
    vm_cdm_mask_from: str
    mask_taken_by: str | None
    flags: vmflags.Flags
    numbers: Mapping[str, int]

    @classmethod
    def running(
        cls,
        directory: Path | None,
        cdm_nodes: str | None,
        vm_cdm_mask: str | None,
        *,
        kernel_profile: str | None = None,
        force: bool,
    ) -> Target:
        """Return what is known of the kernel we run on.

        directory: its headers, None without any. cdm_nodes, vm_cdm_mask,
        kernel_profile: as they were asked for; None: found out. force: take a bit that
        has another meaning. Raises RecordError and its kin.
        """
        found_nodes, nodes_from = nodes.discover(cdm_nodes)
        kernel_config = config.load()
        if lacking := config.lacking(kernel_config):
            raise RecordError("; ".join(lacking), hint="cdmtrace doctor")
        types = Btf.load()
        profile = profiles.choose(kernel_profile, platform.release(), kernel_config)
        flags = vmflags.running(directory, kernel_config, lambda: types, profile)
        mask, mask_from, taken = vmflags.find_mask(
            vm_cdm_mask,
            flags,
            profile,
            force=force,
            shadow=cdm_nodes is not None
            and not (nodes.has_cdm() or config.tags(kernel_config)),
        )
        return cls(
            cdm_nodes=found_nodes,
            cdm_nodes_from=nodes_from,
            vm_cdm_mask=mask,
            vm_cdm_mask_from=mask_from,
            mask_taken_by=taken,
            flags=flags,
            numbers={
                **layout.defines(types, kernel_config),
                "CDM_NODES": sum(1 << nid for nid in found_nodes),
                "CDM_MASK": mask,
                "KEY0": secrets.randbits(64),
                "KEY1": secrets.randbits(64),
                "MEMORY_NODES": sum(1 << nid for nid in nodes.online() if nid < 64),
            },
        )

    @property
    def shadow(self) -> str | None:
        """What to say where it has no VM_CDM; None where it has."""
        if self.vm_cdm_mask:
            return None
        return (
            f"shadow mode: {self.flags.source} does not define VM_CDM, so told is what "
            "would have to be tagged, and rules about the tag are not checked"
        )

    def header(
        self,
        plans: tuple[Plan, ...],
        *,
        ring_pages: int,
        command: tuple[str, ...],
        filters: Mapping[str, Any],
    ) -> Header:
        """Return the head of a trace that begins now."""
        return Header(
            tool=f"cdmtrace {__version__}",
            kernel_release=platform.release(),
            kernel_build=platform.version(),
            machine=platform.machine(),
            boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            started=time.monotonic_ns(),
            utc_offset=time.time_ns() - time.monotonic_ns(),
            page_size=os.sysconf("SC_PAGE_SIZE"),
            ring_size=ring_pages * os.sysconf("SC_PAGE_SIZE"),
            cdm_nodes=self.cdm_nodes,
            cdm_nodes_from=self.cdm_nodes_from,
            vm_cdm_mask=self.vm_cdm_mask,
            vm_cdm_mask_from=self.vm_cdm_mask_from,
            vm_flags=self.flags.names,
            vm_flags_from=self.flags.source,
            probes=_probe_table(plans),
            command=command,
            filters=dict(filters),
            extra={
                "stacks_of": ["changes", "arrivals", "departures"],
                **(
                    {"vm_cdm_taken_by": self.mask_taken_by}
                    if self.mask_taken_by
                    else {}
                ),
            },
        )


def _probe_table(plans: tuple[Plan, ...]) -> tuple[ProbeEntry, ...]:
    return tuple(
        ProbeEntry(
            id=int(item.probe.probe),
            name=item.probe.name,
            symbol=None if item.why_not else ", ".join(dict.fromkeys(item.symbols)),
            kind=", ".join(dict.fromkeys(str(a.kind) for a in item.probe.attachments)),
            why_not=item.why_not,
        )
        for item in plans
    )
