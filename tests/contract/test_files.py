"""Stage, flush, rename: the old or the new is there, never something between."""

import errno
import os
import subprocess
import sys

import pytest

from edgeft.contract import files
from edgeft.contract.errors import EdgeftError, UsageError
from edgeft.contract.files import (
    disk_errors,
    exchange,
    locked,
    read_json,
    refuse_existing,
    scratch,
    sha256,
    staged,
    write_json,
)

DISK = [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def dead_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_stage_takes_the_name_at_the_end(tmp_path):
    with staged(tmp_path / "out") as stage:
        (stage / "sub").mkdir()
        (stage / "sub" / "file").write_text("new")
        assert stage.parent == tmp_path, "a rename must not cross file systems"
        assert not (tmp_path / "out").exists()
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "sub" / "file").read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_after_an_exception(tmp_path, error):
    with pytest.raises(error), staged(tmp_path / "out") as stage:
        (stage / "file").write_text("half")
        raise error
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", ["folder", "file", "broken link"])
def test_an_existing_target_is_refused_and_kept(tmp_path, kind):
    out = tmp_path / "out"
    {"folder": out.mkdir, "file": out.touch, "broken link": lambda: out.symlink_to("nowhere")}[kind]()
    with pytest.raises(UsageError, match="already exists"):
        refuse_existing(out)
    with pytest.raises(UsageError, match="already exists"), staged(out):
        pytest.fail("must not get here")
    assert names(tmp_path) == ["out"]


def test_a_folder_of_folders_is_made(tmp_path):
    with staged(tmp_path / "a" / "b") as stage:
        (stage / "file").touch()
    assert (tmp_path / "a" / "b" / "file").is_file()


def test_replace_keeps_the_old_one_until_the_end(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    with pytest.raises(ValueError, match="no"), staged(out, replace=True):
        raise ValueError("no")
    assert names(out) == ["old"]
    with staged(out, replace=True) as stage:
        (stage / "new").touch()
        assert names(out) == ["old"]
    assert names(out) == ["new"]
    assert names(tmp_path) == ["out"]


def test_scratch_is_gone_afterwards(tmp_path):
    with scratch(tmp_path / "out") as folder:
        (folder / "file").touch()
    assert names(tmp_path) == []


def test_the_stage_of_a_dead_process_is_swept(tmp_path):
    dead = tmp_path / f".out.partial-{dead_process()}"
    dead.mkdir()
    (dead / "file").touch()
    others = [f".out.partial-{os.getppid()}", ".out.partial-notes", f".other.partial-{dead.name.rpartition('-')[2]}"]
    for name in others:
        (tmp_path / name).mkdir()
    with staged(tmp_path / "out"):
        assert not dead.exists()
    assert names(tmp_path) == sorted([*others, "out"])


def test_killed_between_two_renames_the_old_one_comes_back(tmp_path):
    old = tmp_path / f".out.old-{dead_process()}"
    old.mkdir()
    (old / "file").write_text("old")
    with pytest.raises(ValueError, match="no"), staged(tmp_path / "out", replace=True):
        raise ValueError("no")
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "file").read_text() == "old"


def test_killed_after_both_renames_the_new_one_stays(tmp_path):
    (tmp_path / f".out.old-{dead_process()}").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("new")
    with scratch(tmp_path / "out"):
        pass
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "file").read_text() == "new"


def test_a_killed_process_with_our_number(tmp_path):
    """In a container every process may have the same number as the one that was killed."""
    (tmp_path / f".out.partial-{os.getpid()}").mkdir()
    with staged(tmp_path / "out"):
        pass
    assert names(tmp_path) == ["out"]


def test_a_name_with_brackets_is_swept_too(tmp_path):
    (tmp_path / f".o[u]t.partial-{dead_process()}").mkdir()
    with staged(tmp_path / "o[u]t"):
        pass
    assert names(tmp_path) == ["o[u]t"]


# --- errors of the disk


@pytest.mark.parametrize("code", DISK)
def test_disk_error_is_one_message(tmp_path, code):
    with pytest.raises(EdgeftError, match="out: cannot be written") as caught, disk_errors(tmp_path / "out"):
        raise OSError(code, os.strerror(code))
    assert os.strerror(code) in str(caught.value)
    assert caught.value.exit_code == 1
    assert caught.value.__cause__ is None


def test_other_errors_pass_through(tmp_path):
    with pytest.raises(FileNotFoundError), disk_errors(tmp_path):
        raise FileNotFoundError(errno.ENOENT, "gone")


@pytest.mark.parametrize("code", DISK)
def test_a_disk_that_fails_at_the_flush_leaves_nothing(tmp_path, monkeypatch, code):
    def fail(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(EdgeftError, match="cannot be written"), staged(tmp_path / "out") as stage:
        (stage / "file").touch()
    with pytest.raises(EdgeftError, match="cannot be written"):
        write_json(tmp_path / "x.json", {})
    assert names(tmp_path) == []


def test_a_folder_below_a_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(EdgeftError, match="cannot be written"), staged(tmp_path / "file" / "out"):
        pytest.fail("must not get here")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_name_that_is_too_long(tmp_path):
    with pytest.raises(EdgeftError), staged(tmp_path / ("x" * 300)):
        pytest.fail("must not get here")


def test_a_folder_that_may_not_be_written(tmp_path):
    tmp_path.chmod(0o500)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("root may write anywhere")
        with pytest.raises(EdgeftError, match="cannot be written"), staged(tmp_path / "out"):
            pytest.fail("must not get here")
    finally:
        tmp_path.chmod(0o700)


FULL = """
import sys
from pathlib import Path
from edgeft.contract.errors import EdgeftError
from edgeft.contract.files import exchange, staged
try:
    with staged(Path(sys.argv[1]) / "out") as stage:
        (stage / "file").write_bytes(bytes(1 << 20))
except EdgeftError as error:
    print(error)
print(*Path(sys.argv[1]).iterdir())
"""


def test_a_disk_that_is_full(tmp_path):
    """A mount of its own in a namespace of its own: nothing stays mounted, whatever happens."""
    inside = 'mount -t tmpfs -o size=64k tmpfs "$1" && exec "$2" -c "$3" "$1"'
    try:
        done = subprocess.run(["unshare", "-rm", "sh", "-c", inside, "sh", tmp_path, sys.executable, FULL],
                              capture_output=True, text=True, timeout=20)
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    if "mount" in done.stderr or "unshare" in done.stderr:
        pytest.skip("mounting is not permitted here")
    assert done.stderr == ""
    assert "out: cannot be written (No space left on device)" in done.stdout
    assert done.stdout.splitlines()[-1] == "", "something is left"


# --- JSON


def test_write_json_reads_back(tmp_path):
    value = {"a": [1, 2.5, None], "ü": {"b": "\n"}}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    assert "ü" in (tmp_path / "x.json").read_text(encoding="utf-8")
    assert names(tmp_path) == ["x.json"]


def test_write_json_keeps_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        write_json(path, {"new": 2, "bad": object()})
    assert read_json(path) == {"old": 1}

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(EdgeftError, match="No space left"):
        write_json(path, {"new": 2})
    assert read_json(path) == {"old": 1}
    assert names(tmp_path) == ["x.json"]


@pytest.mark.parametrize(("data", "said"), [(b"{", "is not JSON"), (b"[]", "found list"), (b"3", "found int"),
                                            (b'"\xff"', "is not JSON"), (b"[" * 100_000, "is not JSON")])
def test_read_json_says_what_is_wrong(tmp_path, data, said):
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(EdgeftError, match=said):
        read_json(tmp_path / "x.json")


def test_read_json_of_no_file(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(EdgeftError, match="cannot be read"):
            read_json(path)


def test_sha256_depends_on_every_byte(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").write_bytes(b"abd")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(tmp_path / "a") != sha256(tmp_path / "b")


@pytest.mark.parametrize("in_one_step", [True, False])
def test_exchange_swaps_two_names(tmp_path, monkeypatch, in_one_step):
    if not in_one_step:
        monkeypatch.setattr("edgeft.contract.files.sys.platform", "other")
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"was-{name}").touch()
    exchange(tmp_path / "one", tmp_path / "other")
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*"))
    assert found == ["one/was-other", "other/was-one"]
    assert len(list(tmp_path.iterdir())) == 2


# --- one process at a time


COUNTING = """
import contextlib, sys, time
from pathlib import Path
from edgeft.contract.files import locked, read_json, write_json
folder = Path(sys.argv[1])
for _ in range(40):
    with locked(folder) if sys.argv[2] == "locked" else contextlib.nullcontext():
        count = read_json(folder / "count.json")["count"]
        time.sleep(0.005)
        (folder / "count.json").write_text('{"count": %d}' % (count + 1))
"""


@pytest.mark.parametrize("how", ["locked", "free"])
def test_two_processes_that_count_lose_nothing_behind_a_lock(tmp_path, how):
    write_json(tmp_path / "count.json", {"count": 0})
    both = [subprocess.Popen([sys.executable, "-c", COUNTING, tmp_path, how], stderr=subprocess.PIPE, text=True)
            for _ in range(2)]
    said = [process.communicate(timeout=60)[1] for process in both]
    if how == "free":  # lost counts, or a file read while it was half written
        assert any(said) or read_json(tmp_path / "count.json")["count"] < 80
        return
    assert [process.returncode for process in both] == [0, 0], said
    assert read_json(tmp_path / "count.json") == {"count": 80}
    assert any("another process is changing it; waiting" in text for text in said)
    assert names(tmp_path) == ["count.json"]


def test_a_folder_that_changed_its_name_is_not_mistaken_for_the_one_that_was_meant(tmp_path):
    """Who waited for a bundle while another was installed there must see the new one, and hold its lock."""
    (tmp_path / "place").mkdir()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "file").touch()
    code = ("import sys\nfrom pathlib import Path\nfrom edgeft.contract.files import locked\n"
            "with locked(Path(sys.argv[1])):\n    (Path(sys.argv[1]) / 'seen').touch()\n")
    with locked(tmp_path / "place"):
        other = subprocess.Popen([sys.executable, "-c", code, tmp_path / "place"], stderr=subprocess.PIPE, text=True)
        assert "waiting" in other.stderr.readline()
        exchange(tmp_path / "new", tmp_path / "place")
        held = locked(tmp_path / "place")
        held.__enter__()
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(timeout=1)  # it holds the old folder's lock now, and waits for the new one's
    finally:
        held.__exit__(None, None, None)
    assert other.wait(timeout=20) == 0
    other.stderr.close()
    assert names(tmp_path / "place") == ["file", "seen"]


def test_an_exchange_that_is_refused_changes_nothing(tmp_path, monkeypatch):
    """Where one step is all it takes, a refusal is no reason to try three."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()

    class Refusing:
        def renameat2(self, *_):
            files.ctypes.set_errno(errno.EACCES)
            return -1

    monkeypatch.setattr(files.ctypes, "CDLL", lambda *_, **__: Refusing())
    if sys.platform == "linux":
        with pytest.raises(PermissionError):
            exchange(tmp_path / "one", tmp_path / "other")
    assert names(tmp_path) == ["one", "other"]
