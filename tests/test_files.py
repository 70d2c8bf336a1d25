"""Files that are whole or absent, and what is refused before it is read."""

import os
import secrets
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from atnet.errors import ConfigError, DataError, WeightsError
from atnet.files import UNFINISHED, open_regular, placing_whole, quoted, read_regular, resolve_run, write_whole

POSIX = pytest.mark.skipif(os.name != "posix", reason="links, pipes and devices of POSIX")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "record.json"
    write_whole(path, b"old")

    def break_off() -> None:
        with placing_whole(path) as inside:
            inside.write_bytes(b"half of the new one")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        break_off()
    assert path.read_bytes() == b"old"
    with placing_whole(path) as inside:
        inside.write_bytes(b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["record.json"]


@POSIX
def test_permissions_are_those_that_the_user_gives_new_files(tmp_path):
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "one", b"1")
        with placing_whole(tmp_path / "other") as inside:
            inside.write_bytes(b"2")
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("one", "other")] == [0o640, 0o640]


@POSIX
def test_a_link_where_the_unfinished_file_will_be_is_not_followed(tmp_path, monkeypatch):
    """Its name cannot be guessed; were it, the link of a stranger would still lead nowhere."""
    mine = tmp_path / "mine"
    mine.write_text("years of work")
    monkeypatch.setattr(secrets, "token_hex", lambda count: "0" * 2 * count)
    planted = tmp_path / f".report.html.{'0' * 16}.tmp"
    assert UNFINISHED.fullmatch(planted.name)["name"] == "report.html"
    planted.symlink_to("mine")
    with pytest.raises(FileExistsError):
        write_whole(tmp_path / "report.html", b"<html>")
    assert mine.read_text() == "years of work"


@POSIX
def test_a_link_under_the_files_own_name_is_replaced(tmp_path):
    (tmp_path / "mine").write_text("years of work")
    (tmp_path / "report.html").symlink_to("mine")
    write_whole(tmp_path / "report.html", b"<html>")
    assert (tmp_path / "mine").read_text() == "years of work"
    assert (tmp_path / "report.html").read_bytes() == b"<html>"


def test_of_processes_that_write_one_file_at_once_one_has_it_whole(tmp_path):
    code = (
        "import sys; from pathlib import Path; from atnet.files import write_whole\n"
        "for _ in range(200): write_whole(Path('one'), sys.argv[1].encode() * 100_000)"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, letter], stderr=subprocess.PIPE) for letter in "abc"]
    for process in processes:
        assert process.communicate()[1] == b""
        assert process.returncode == 0
    content = Path("one").read_bytes()
    assert len(content) == 100_000
    assert len(set(content)) == 1
    assert os.listdir(tmp_path) == ["one"]


@POSIX
@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: os.mkfifo(path), "a named pipe"),
        (lambda path: path.symlink_to("/dev/zero"), "a device"),
        (lambda path: path.mkdir(), "a folder"),
        (lambda path: path.symlink_to(path.name), "links"),
        (lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 10**12), "1,000,000,000,000 bytes"),
    ],
)
def test_what_is_no_file_of_modest_size_is_refused_unread(tmp_path, make, why):
    path = tmp_path / "list.csv"
    make(path)
    with pytest.raises(DataError, match=f"list.csv.*{why}"):
        read_regular(path, 1000, DataError)


def test_what_is_absent_or_no_name_is_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError), open_regular(tmp_path / "absent", 10):
        pass
    with pytest.raises(WeightsError, match="cannot be read"), open_regular("a\0b", 10, WeightsError):
        pass
    (tmp_path / "ten").write_bytes(b"0123456789")
    assert read_regular(tmp_path / "ten", 10) == b"0123456789"


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a\0b", b"", b"x" * 5000])
def test_a_pointer_that_is_no_path_is_refused(content):
    Path("runs").mkdir()
    Path("runs/last").write_bytes(content)
    with pytest.raises(ConfigError, match="runs/last"):
        resolve_run("runs/last")


@POSIX
def test_a_pointer_to_itself_is_refused():
    Path("runs").mkdir()
    Path("runs/last").symlink_to("last")
    with pytest.raises(ConfigError, match="runs/last"):
        resolve_run("runs/last")


def test_a_command_to_type_holds_a_path_together():
    assert quoted(Path("my runs") / "it's; rm -rf") == """'my runs/it'"'"'s; rm -rf'"""
    assert quoted("runs/a") == "runs/a"
