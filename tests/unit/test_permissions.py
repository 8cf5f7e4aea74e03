"""What may touch the pages of a node, as it is typed and as a file says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdmtrace.analysis.permissions import (
    BY_DEFAULT,
    DEFAULT,
    Permissions,
    read,
    require_nodes,
)
from cdmtrace.errors import UsageTrouble

KNOWN = {
    "mempolicy": "NP_OPS_MEMPOLICY",
    "compaction": "NP_OPS_COMPACTION",
    "ksm": None,
}


def allowed(*texts: str, file: str | None = None) -> Permissions:
    return read(texts, file, KNOWN)


def written(directory: Path, text: str) -> str:
    path = directory / "np.toml"
    path.write_text(text)
    return str(path)


def refusal(*texts: str, file: str | None = None) -> tuple[str, str]:
    with pytest.raises(UsageTrouble) as error:
        allowed(*texts, file=file)
    return str(error.value).splitlines()[0], error.value.hint or ""


def test_the_default() -> None:
    assert allowed() == DEFAULT
    assert DEFAULT.of(1) == BY_DEFAULT == {"mempolicy"}
    assert DEFAULT.allow(1, "mempolicy")
    assert not DEFAULT.allow(1, "ksm")
    assert DEFAULT.named == frozenset()


@pytest.mark.parametrize("text", ["1:ksm", "1: ksm ", "*:ksm", "all:ksm", "1:ksm,,"])
def test_what_is_typed_comes_on_top(text: str) -> None:
    permissions = allowed(text)
    assert permissions.of(1) == {"mempolicy", "ksm"}
    assert permissions.allow(2, "ksm") is not text.startswith("1")


def test_it_may_be_said_again() -> None:
    permissions = allowed("1:ksm", "1:compaction", "2:ksm", "all:compaction")
    assert permissions.of(1) == {"mempolicy", "ksm", "compaction"}
    assert permissions.of(2) == {"mempolicy", "ksm", "compaction"}
    assert permissions.of(3) == {"mempolicy", "compaction"}
    assert permissions.named == {1, 2}


def test_a_service_may_be_called_by_its_flag() -> None:
    assert allowed("1:NP_OPS_COMPACTION").of(1) == {"mempolicy", "compaction"}


@pytest.mark.parametrize("word", ["*", "all"])
def test_all_services(word: str) -> None:
    permissions = allowed(f"1:{word}")
    assert all(permissions.allow(1, name) for name in KNOWN)
    assert not permissions.allow(0, "ksm")


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("1", "--allow 1: no colon between node and services", "--allow 1:migration"),
        ("1:", "--allow 1:: names no service", "--allow 1:migration"),
        (":ksm", "--allow :ksm: '' is no node", "0 to 63, or all"),
        ("64:ksm", "--allow 64:ksm: '64' is no node", "0 to 63"),
        ("-1:ksm", "--allow -1:ksm: '-1' is no node", "0 to 63"),
        ("²:ksm", "--allow ²:ksm: '²' is no node", "0 to 63"),
        (f"{'9' * 5000}:ksm", "is no node", "0 to 63"),
        ("1:kms", "no service is called 'kms'; did you mean ksm?", "one of mempolicy,"),
        ("1:NP_OPS_KSM", "no service is called 'NP_OPS_KSM'", "ksm, or all"),
    ],
)
def test_what_is_typed_wrongly(text: str, said: str, hint: str) -> None:
    told, more = refusal(text)
    assert said in told
    assert hint in more


def test_a_file_says_all_that_is_allowed(tmp_path: Path) -> None:
    """Of a node that it does not name, mempolicy is, as ever."""
    file = written(tmp_path, '[node.1]\nallow = ["compaction"]\n[node.2]\nallow = []\n')
    permissions = allowed(file=file)
    assert permissions.of(1) == {"compaction"}
    assert permissions.of(2) == frozenset()
    assert permissions.of(3) == {"mempolicy"}
    assert permissions.named == {1, 2}
    assert allowed("1:ksm", file=file).of(1) == {"compaction", "ksm"}


def test_a_file_may_be_about_all_nodes(tmp_path: Path) -> None:
    file = written(
        tmp_path, '[node.all]\nallow = ["NP_OPS_COMPACTION"]\n[node.1]\nallow = ["*"]\n'
    )
    assert allowed(file=file).of(7) == {"compaction"}
    assert allowed(file=file).allow(1, "ksm")


def test_an_empty_file(tmp_path: Path) -> None:
    assert allowed(file=written(tmp_path, "")) == DEFAULT


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[node.1", "not TOML: Expected ']'"),
        ("[nodes.1]\n", "nodes: no such key"),
        ("node = 3\n", "node: is no table"),
        ("node.1 = 3\n", "node.1: is no table"),
        ("[node.x]\nallow = []\n", "node.x: 'x' is no node"),
        ("[node.1]\nallowed = []\n", "node.1: allowed: no such key"),
        ("[node.1]\n", "node.1.allow: is no list"),
        ('[node.1]\nallow = "ksm"\n', "node.1.allow: is no list"),
        ("[node.1]\nallow = [1]\n", "node.1.allow: is no list"),
        ('[node.1]\nallow = ["kms"]\n', "node.1.allow: no service is called 'kms'"),
    ],
)
def test_a_file_that_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    file = written(tmp_path, text)
    told, hint = refusal(file=file)
    assert told.startswith(f"{file}: ")
    assert said in told
    assert hint


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "np.toml"
    path.write_bytes(b"\xff\xfe")
    assert "not TOML" in refusal(file=str(path))[0]
    assert refusal(file=str(tmp_path / "none")) == (
        f"{tmp_path / 'none'}: cannot be read: No such file or directory",
        "--permissions names a file of TOML",
    )


def test_nodes_that_nobody_protects() -> None:
    require_nodes(allowed("1:ksm", "all:ksm"), [1, 2])
    with pytest.raises(UsageTrouble, match="node 3 is allowed something") as error:
        require_nodes(allowed("3:ksm", "1:ksm"), [2, 1])
    assert "CDM nodes of the recording: 1, 2" in (error.value.hint or "")
