from __future__ import annotations

import json
from pathlib import Path

import pytest

from cdmtrace.lab import accel
from cdmtrace.lab.accel import Accelerator
from cdmtrace.lab.paths import Layout


def fake_qemu(tmp_path: Path, body: str) -> str:
    path = tmp_path / "qemu"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_a_kernel_that_gets_to_its_root_proves_kvm(tmp_path: Path) -> None:
    qemu = fake_qemu(tmp_path, "echo 'VFS: Unable to mount root fs'; sleep 1000")
    assert accel.probe_kvm(Path("k"), qemu=qemu)[0]


def test_an_abort_a_hang_and_a_missing_qemu_do_not(tmp_path: Path) -> None:
    aborts = fake_qemu(tmp_path, "echo assertion; kill -ABRT $$")
    assert not accel.probe_kvm(Path("k"), qemu=aborts)[0]
    hangs = fake_qemu(tmp_path, "echo 'Linux version'; sleep 1000")
    works, why = accel.probe_kvm(Path("k"), qemu=hangs, timeout=0.3)
    assert not works
    assert "within 0.3 s" in why
    assert not accel.probe_kvm(Path("k"), qemu="/no/such/qemu")[0]


def test_the_verdict_is_kept_for_this_boot_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(accel, "KVM_DEVICE", device)
    layout = Layout(root=tmp_path / "lab")
    probes = []

    def probe(kernel: Path, *, qemu: str) -> tuple[bool, str]:
        probes.append(kernel)
        return True, "it booted"

    monkeypatch.setattr(accel, "probe_kvm", probe)
    for _ in range(2):
        chosen, why = accel.choose(Path("k"), layout)
        assert (chosen, why) == (Accelerator.KVM, "it booted")
    assert len(probes) == 1
    record = json.loads(layout.kvm_verdict.read_text())
    layout.kvm_verdict.write_text(json.dumps({**record, "boot_id": "another"}))
    accel.choose(Path("k"), layout)
    assert len(probes) == 2
    layout.kvm_verdict.write_text("{")
    accel.choose(Path("k"), layout)
    assert len(probes) == 3


def test_without_the_device_nothing_is_booted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accel, "KVM_DEVICE", tmp_path / "none")
    chosen, why = accel.choose(Path("k"), Layout(root=tmp_path))
    assert chosen is Accelerator.TCG
    assert "there is no" in why
