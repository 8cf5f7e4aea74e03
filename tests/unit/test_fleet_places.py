"""Where the recordings of a fleet are, and how a worker comes by them."""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fleets import NONE, RFC, place
from parting import split
from serving import Quiet, serving

from cdmtrace.analysis import check, document, frames
from cdmtrace.errors import CdmtraceError, UnreadableFile, UsageTrouble
from cdmtrace.fleet import fetch, places, work
from cdmtrace.fleet.places import Place, find, opened, said, scrubbed
from cdmtrace.urls import is_url

SECRETS = "http://user:hunter2@{}/{}?X-Amz-Signature=hunter3"
QUESTION = work.Question(profile="intended", full=True)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A directory, and HOST:PORT where a server has it."""
    folder = tmp_path / "served"
    folder.mkdir()
    with serving(folder) as host:
        yield folder, host


# --- names --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://bucket/a@b/x.arrows", "s3://bucket/a@b/x.arrows"),
        ("https://user:pw@host/x.arrows", "https://host/x.arrows"),
        ("https://host/x.arrows?sig=pw#pw", "https://host/x.arrows"),
        ("simplecache::s3://key:pw@bucket/x", "simplecache::s3://bucket/x"),
        ("404, url='http://u:pw@h/x?pw' (pw.txt)", "404, url='http://h/x (pw.txt)"),
        ("http://a:pw@h/?pw and http://b:pw@h/?pw", "http://h/ and http://h/"),
        ("what? no: user@host", "what? no: user@host"),
        ("http://u:p@w@h/x", "http://h/x"),
        ("http://u:p#w@h/x.arrows", "http://..."),
        ("http://u:p?w@h/x.arrows and more", "http://... and more"),
        ("http://h/it's/x?sig=p'w)p\"w", "http://h/it's/x"),
        ("http://h/x?next=/a@pw", "http://h/x"),
    ],
)
def test_no_password_is_told(text: str, shown: str) -> None:
    assert scrubbed(text) == shown
    assert said(ValueError(f"{text}\nmore")) == f"ValueError: {shown}"


def test_a_place_does_not_print_what_is_in_it() -> None:
    one = Place(at="http://user:pw@host/", name="http://host/")
    assert "pw" not in f"{one} {one!r}"


def test_what_is_a_url() -> None:
    assert is_url("s3://b/x")
    assert is_url("simplecache::s3://b/x")
    assert is_url("S3://b/x")
    assert not is_url("/tmp/s3://b")
    assert not is_url("a:b.arrows")
    assert not is_url("a::b.arrows")


# --- what there is ------------------------------------------------------------


def test_a_directory_is_looked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b/2.arrows", "b/1.arrows", "a/x.0001.arrows", "a/notes.txt"):
        path = Path("d") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    Path("d/b/round").symlink_to(tmp_path / "d")
    Path("alone").touch()
    found = find([Path("alone"), Path("d"), Path("d/b/1.arrows")])
    names = ["alone", "d/a/x.0001.arrows", "d/b/1.arrows", "d/b/2.arrows"]
    assert [str(one) for one in found] == names
    # A worker has a current directory of its own.
    assert [one.at for one in found] == [str(tmp_path / name) for name in names]
    assert find([f"file://{tmp_path}/d/b"])[0].at == str(tmp_path / "d/b/1.arrows")


def test_a_directory_without_one_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.txt").touch()
    with pytest.raises(UsageTrouble, match="there is no recording in it") as told:
        find([tmp_path])
    assert ".arrows" in (told.value.hint or "")


def test_a_directory_that_cannot_be_listed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.arrows").touch()
    # Root may list everything, but no path is longer than that.
    monkeypatch.chdir(tmp_path)
    name = "\x1b '" + "d" * 247
    for _ in range(17):
        Path(name).mkdir()
        os.chdir(name)
    monkeypatch.chdir(tmp_path)
    match = "d: cannot be listed: File name too long"
    with pytest.raises(UnreadableFile, match=match) as told:
        find([tmp_path])
    assert "\x1b" not in str(told.value)
    path = told.value.message.partition(": cannot")[0]
    assert shlex.split(told.value.hint or "") == ["ls", "-l", path]


def test_a_directory_that_is_called_strangely(tmp_path: Path) -> None:
    strange = tmp_path / "a \x1b[2J"
    strange.mkdir()
    with pytest.raises(UsageTrouble) as told:
        find([strange])
    assert "a ?[2J: there is no recording" in told.value.message


def test_a_server_is_looked_through(served: tuple[Path, str]) -> None:
    folder, host = served
    (folder / "a/b").mkdir(parents=True)
    for name in ("x.arrows", "a/b/y z.arrows", "a/readme"):
        (folder / name).touch()
    found = find([f"http://user:hunter2@{host}/"])
    names = [f"http://{host}/{name}" for name in ("a/b/y%20z.arrows", "x.arrows")]
    assert [one.name for one in found] == names
    assert all("user:hunter2@" in one.at for one in found)


@pytest.mark.parametrize("chain", ["", "simplecache::"])
def test_a_file_has_all_the_time_that_it_takes(chain: str) -> None:
    """aiohttp gives five minutes to a whole file, unless told otherwise."""
    system, _ = opened(f"{chain}http://host/x.arrows")
    timeout = (system.fs if chain else system).client_kwargs["timeout"]
    assert timeout.total is None
    assert timeout.sock_connect
    assert timeout.sock_read


def test_what_cannot_be_listed_in_part_is_told(served: tuple[Path, str]) -> None:
    """A recording that is left out in silence would be one that is clean."""
    folder, host = served
    (folder / "x.arrows").touch()
    (folder / "index.html").write_text('<a href="x.arrows">x</a> <a href="no/">no</a>')
    with pytest.raises(UnreadableFile, match="cannot be listed: FileNotFoundError"):
        find([f"http://{host}/"])


@pytest.mark.parametrize(
    ("url", "root", "name", "spelled"),
    [
        ("ftp://u:pw@h/", "/", "/x", "ftp://u:pw@h/x"),
        ("sftp://u@h/d/", "/d", "/d/a/x", "sftp://u@h/d/a/x"),
        ("abfs://c@account/d", "c/d", "c/d/x", "abfs://c@account/d/x"),
        ("gs://", "", "bucket/x", "gs://bucket/x"),
        ("s3://b/d", "b/d", "b/d//x", "s3://b/d//x"),
        ("simplecache::s3://b/d", "b/d", "b/d/x", "simplecache::s3://b/d/x"),
        ("http://h/d", "http://h/d", "http://h/d/x", "http://h/d/x"),
    ],
)
def test_a_listing_keeps_what_was_typed(
    url: str, root: str, name: str, spelled: str
) -> None:
    """The host, the user, the account: file systems leave them out of their names."""
    assert places._spelled(url, root, name) == spelled
    if url.startswith("ftp"):
        system = fsspec.get_filesystem_class("ftp")
        assert system._strip_protocol(url) == root
        assert system._strip_protocol(spelled) == name


def test_what_is_in_memory_is_listed() -> None:
    system = fsspec.filesystem("memory")
    for name in ("/listed/x.arrows", "/listed/a/y.arrows", "/other/z.arrows"):
        system.pipe_file(name, b"")
    found = [one.at for one in find(["memory://listed/"])]
    assert found == ["memory://listed/a/y.arrows", "memory://listed/x.arrows"]
    for url in found:
        assert opened(url)[0].exists(opened(url)[1])


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://user:hunter2@127.0.0.1:1/", "cannot be listed"),
        ("foo://user:hunter2@host/", "is no URL that can be opened: ValueError$"),
        ("ftp://user:hunter2#@host/", "is no URL that can be opened: ValueError$"),
        ("http://user:hunter2@[::1/", "http://\\[::1/: is no URL$"),
    ],
)
def test_trouble_with_a_url(url: str, said: str) -> None:
    with pytest.raises(CdmtraceError) as told:
        find([url])
    assert re.search(said, told.value.message)
    assert "hunter2" not in str(told.value)


def test_a_protocol_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(CdmtraceError, match="needs a package") as told:
        find(["s3://bucket/prefix"])
    assert "pip install s3fs" in (told.value.hint or "")


# --- how a worker comes by it -------------------------------------------------


def test_what_comes_over_a_network_is_the_same(
    served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, host = served
    (folder / "x.arrows").write_bytes(RFC.read_bytes())
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    (one,) = find([SECRETS.format(host, "x.arrows")])
    head = work.head([one])
    assert head["done"]["machine"] == "x86_64"
    reply = work.check([one], QUESTION)
    here: Any = document.check(check(frames.load(RFC)))
    url = f"http://{host}/x.arrows"
    here["trace"].update(path=url, files=[url])
    assert reply["done"]["check"] == here
    assert "hunter" not in str((head, reply))
    assert list(scratch.iterdir()) == []


def test_what_is_wrong_is_told_by_its_url(served: tuple[Path, str]) -> None:
    folder, host = served
    (folder / "cut.arrows").write_bytes(NONE.read_bytes()[:100_000])
    (folder / "bad.arrows").write_bytes(b"no trace" * 9)
    (folder / "half.arrows").write_bytes(NONE.read_bytes()[:100])

    def told(name: str) -> Any:
        (one,) = find([SECRETS.format(host, name)])
        replies = (work.head([one]), work.check([one], QUESTION))
        assert "hunter" not in str(replies)
        return replies

    for name, why in (
        ("bad.arrows", "is not a trace file"),
        ("half.arrows", "is cut or damaged in its header"),
        ("none.arrows", "cannot be read: FileNotFoundError"),
    ):
        for reply in told(name):
            assert f"http://{host}/{name}: {why}" in reply["error"]["message"]
    head, cut = told("cut.arrows")
    assert "done" in head
    assert "batch 4 at byte" in cut["done"]["trace"]["cut"]


def test_parts_are_called_by_their_urls(served: tuple[Path, str]) -> None:
    folder, host = served
    files = split("cdm-6.1-none", folder, 14 << 10)
    found = find([f"http://{host}/"])
    assert len(found) == len(files) > 11
    # The second digit of a number must not be taken for a number.
    cut = files[10]
    cut.write_bytes(cut.read_bytes()[:-100])
    reply = work.check(found, QUESTION)
    assert f"http://{host}/{cut.name}: " in reply["done"]["trace"]["cut"]
    assert reply["done"]["trace"]["files"] == [one.name for one in found]


def test_what_is_too_large_is_not_copied(
    served: tuple[Path, str], tmp_path: Path
) -> None:
    folder, host = served
    (folder / "x.arrows").write_bytes(NONE.read_bytes())
    found = find([f"http://{host}/x.arrows"])
    size = NONE.stat().st_size
    with fetch.local(found, size) as (path,):
        assert path.read_bytes() == NONE.read_bytes()
    assert not path.exists()
    with (
        pytest.raises(UnreadableFile, match=r"has more than 119\.1 KiB"),
        fetch.local(found, size - 1),
    ):
        pass


def test_a_header_may_be_long(
    served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, host = served
    (folder / "x.arrows").write_bytes(NONE.read_bytes())
    (one,) = find([f"http://{host}/x.arrows"])
    # Longer than what is asked for first.
    monkeypatch.setattr(fetch, "_FEW", 1000)
    assert fetch.header(one) == fetch.header(place(NONE))


class Slow(Quiet):
    """Sends a file as a stream, and pauses after its first bytes."""

    def end_headers(self) -> None:
        self.send_header("Accept-Ranges", "none")
        super().end_headers()

    def copyfile(self, source: Any, outputfile: Any) -> None:
        outputfile.write(source.read(100))
        time.sleep(0.5)
        super().copyfile(source, outputfile)


def test_a_pause_is_no_end(tmp_path: Path) -> None:
    (tmp_path / "x.arrows").write_bytes(NONE.read_bytes())
    with serving(tmp_path, Slow) as host:
        (one,) = find([f"http://{host}/x.arrows"])
        assert fetch.header(one) == fetch.header(place(NONE))


def test_a_full_disk_is_told(
    served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, host = served
    (folder / "x.arrows").write_bytes(NONE.read_bytes())
    (one,) = find([SECRETS.format(host, "x.arrows")])
    full = Path("/dev/full")
    for copy in (
        lambda: fetch._copied(one, full, 1 << 30),
        lambda: fetch._begin(one, full, 1 << 20),
    ):
        with pytest.raises(CdmtraceError, match="no room for a copy: No space") as told:
            copy()
        assert "--local-directory" in (told.value.hint or "")
        assert "hunter" not in str(told.value)
    monkeypatch.setattr("tempfile.tempdir", str(folder / "none"))
    reply = work.head([one])["error"]
    assert reply["message"] == (
        f"there is no place for what http://{host}/x.arrows needs: No such file or "
        "directory"
    )


# --- what a worker replies ----------------------------------------------------


def test_a_worker_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Dask is raised, it writes to a log, with all arguments."""

    def fail(error: BaseException) -> Any:
        def load(*paths: Path) -> None:
            raise error

        monkeypatch.setattr(work, "load", load)
        return work.check([place(RFC, "x")], QUESTION)["error"]

    told = fail(MemoryError())
    assert told["message"] == "x: a worker has not enough memory for it"
    told = fail(KeyError("http://user:hunter2@host/"))
    assert told["message"] == "x: this is a fault of cdmtrace: KeyError: 'http://host/'"
    assert "test_fleet_places.py, line" in told["details"]


def test_a_rule_that_fails_is_told_of_the_recording() -> None:
    source = (Path(__file__).parents[2] / "examples/rules/slow_mbind.py").read_bytes()
    broken = source.replace(b"return Judgement()", b"return 7")
    question = work.Question(profile="intended", own=(("mine.py", broken),))
    told = work.check([place(RFC)], question)["error"]
    assert told["message"].startswith("mine.py: LAB001 slow-mbind failed to judge row")
