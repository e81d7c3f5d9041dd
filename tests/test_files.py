"""Files are whole or absent, whatever fails and whenever; locks die with their holder."""

import errno
import hashlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from undo_probe import files
from undo_probe.errors import UndoProbeError

OLD = {"state": "old"}
NEW = {"state": "new", "numbers": list(range(50))}
DEAD_PID = 2**22 + 1  # above the largest process number Linux gives


class Faults:
    """Counts calls of the os functions that touch the disk and fails the N-th (or all from there on)."""

    NAMES = ("open", "write", "fsync", "close", "replace", "rename", "mkdir", "unlink", "rmdir")

    def __init__(self, fail_at: int, number: int, forever: bool) -> None:
        self.fail_at, self.number, self.forever = fail_at, number, forever
        self.calls = 0

    @property
    def reached(self) -> bool:
        return self.calls >= self.fail_at

    def wrap(self, name: str, real: Callable) -> Callable:
        def call(*args, **kwargs):
            self.calls += 1
            hit = self.calls == self.fail_at or (self.forever and self.calls > self.fail_at)
            if hit and name == "close":
                real(*args, **kwargs)  # a failed close still frees the descriptor
            if hit:
                raise OSError(self.number, os.strerror(self.number))
            return real(*args, **kwargs)

        return call

    @contextmanager
    def injected(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        with monkeypatch.context() as patch:
            for name in self.NAMES:
                patch.setattr(os, name, self.wrap(name, getattr(os, name)))
            yield


def write_json_over_old(folder: Path) -> None:
    files.write_json(folder / "record.json", NEW)


def write_by_library(folder: Path) -> None:
    with files.atomic_file(folder / "record.json") as temporary:
        temporary.write_text(json.dumps(NEW))


def write_folder(folder: Path) -> None:
    with files.atomic_folder(folder / "checkpoint") as temporary:
        (temporary / "inner").mkdir()
        files.write_json(temporary / "record.json", NEW)
        files.write_json(temporary / "inner" / "record.json", NEW)


def temporaries(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if ".tmp-" in path.name]


def assert_old_or_new(folder: Path, must_be_new: bool) -> None:
    record = files.read_json(folder / "record.json")
    assert record in ([NEW] if must_be_new else [OLD, NEW])


def assert_whole_or_absent(folder: Path, must_be_new: bool) -> None:
    checkpoint = folder / "checkpoint"
    assert checkpoint.exists() or not must_be_new
    if checkpoint.exists():
        assert files.read_json(checkpoint / "record.json") == NEW
        assert files.read_json(checkpoint / "inner" / "record.json") == NEW


@pytest.mark.parametrize("forever", [False, True], ids=["fails once", "fails from then on"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EACCES], ids=errno.errorcode.get)
@pytest.mark.parametrize(
    ("operation", "check"),
    [
        (write_json_over_old, assert_old_or_new),
        (write_by_library, assert_old_or_new),
        (write_folder, assert_whole_or_absent),
    ],
)
def test_a_fault_at_any_operation_leaves_the_old_state_or_the_new(
    operation: Callable, check: Callable, number: int, forever: bool, tmp_path: Path, monkeypatch
) -> None:
    failures = fail_at = 0
    while True:
        fail_at += 1
        folder = tmp_path / str(fail_at)
        folder.mkdir()
        files.write_json(folder / "record.json", OLD)
        faults = Faults(fail_at, number, forever)
        failed = False
        try:
            with faults.injected(monkeypatch):
                operation(folder)
        except UndoProbeError as error:
            failed = True
            assert str(folder) in str(error)
            assert files._REASONS[number][0] in str(error)
        check(folder, must_be_new=not failed)
        if not forever:
            assert temporaries(folder) == []
        failures += failed
        if not faults.reached:
            break
    assert not failed  # the last round went past the last operation
    assert failures >= 5


def test_a_fault_while_locking_never_leaves_the_folder_locked(tmp_path: Path, monkeypatch) -> None:
    fail_at = 0
    while True:
        fail_at += 1
        faults = Faults(fail_at, errno.EIO, forever=False)
        try:
            with faults.injected(monkeypatch), files.FolderLock(tmp_path):
                pass
        except UndoProbeError as error:
            assert "the disk reported an error" in str(error)
        with files.FolderLock(tmp_path):
            pass
        if not faults.reached:
            break
    assert fail_at > 5


@pytest.mark.parametrize(
    ("operation", "rename"), [(write_json_over_old, "replace"), (write_folder, "rename")]
)
def test_content_reaches_the_disk_before_its_name_and_the_name_before_the_return(
    operation: Callable, rename: str, tmp_path: Path, monkeypatch
) -> None:
    calls: list[str] = []
    for name in ("fsync", "replace", "rename"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, n=name, r=real: (calls.append(n), r(*args))[1])
    operation(tmp_path)
    assert calls[-3:] == ["fsync", rename, "fsync"]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.ENOSPC, r"no space is left \(.* MiB free\); free some space"),
        (errno.EACCES, "permission was denied; choose a folder you may write to"),
        (errno.EROFS, "read-only; choose a folder on a writable disk"),
        (errno.EBUSY, "the system refused; mend the cause"),
    ],
)
def test_a_failed_write_says_what_where_and_what_to_do(number: int, text: str, tmp_path: Path) -> None:
    with pytest.raises(UndoProbeError, match=text) as caught, files.writing(tmp_path / "a"):
        raise OSError(number, os.strerror(number))
    assert str(caught.value).startswith(f"cannot write {tmp_path / 'a'}: ")
    assert os.strerror(number) in str(caught.value)


def test_system_errors_inside_rust_libraries_are_named_and_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(UndoProbeError, match="larger than allowed"), files.writing(tmp_path / "a"):
        raise RuntimeError("Error while serializing: I/O error: File too large (os error 27)")
    with pytest.raises(KeyError, match="mine"), files.writing(tmp_path / "a"):
        raise KeyError("mine")


def test_a_file_limit_met_by_safetensors_leaves_nothing_behind(tmp_path: Path) -> None:
    # The real system call fails here: this also shows that safetensors' error is recognised.
    code = (
        "import resource, signal, sys, numpy as np\n"
        "from safetensors.numpy import save_file\n"
        "from undo_probe import files\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "with files.atomic_file(sys.argv[1]) as temporary:\n"
        "    save_file({'a': np.zeros(10_000)}, temporary)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.safetensors"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "larger than allowed" in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_writer_killed_half_way_leaves_the_old_file_and_its_rest_is_swept(tmp_path: Path) -> None:
    files.write_json(tmp_path / "record.json", OLD)
    code = (
        "import os, signal, sys\n"
        "from undo_probe import files\n"
        "with files.atomic_folder(sys.argv[1] + '/checkpoint') as folder:\n"
        "    (folder / 'half').write_text('half')\n"
        "    with files.atomic_file(sys.argv[1] + '/record.json') as temporary:\n"
        "        temporary.write_text('half')\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path])
    assert done.returncode == -signal.SIGKILL
    assert files.read_json(tmp_path / "record.json") == OLD
    assert not (tmp_path / "checkpoint").exists()
    assert len(temporaries(tmp_path)) == 2
    with files.FolderLock(tmp_path):
        assert temporaries(tmp_path) == []


def test_sweep_spares_live_writers_other_hosts_and_other_names(tmp_path: Path) -> None:
    mine = tmp_path / files.temporary_name(".json")
    foreign = tmp_path / f".tmp-elsewhere-{DEAD_PID}-0123abcd"
    users = tmp_path / "notes.tmp-1"
    dead = tmp_path / mine.name.replace(f"-{os.getpid()}-", f"-{DEAD_PID}-")
    for path in (mine, foreign, users, dead):
        path.touch()
    assert files.sweep(tmp_path) == [dead]
    assert sorted(tmp_path.iterdir()) == sorted([mine, foreign, users])


def test_written_text_and_bytes_come_back(tmp_path: Path) -> None:
    files.write_text(tmp_path / "new" / "a.txt", "né\r\n")
    assert (tmp_path / "new" / "a.txt").read_bytes() == "né\r\n".encode()
    files.write_bytes(tmp_path / "b", b"")
    assert (tmp_path / "b").read_bytes() == b""
    long_name = tmp_path / ("n" * 255)
    files.write_bytes(long_name, b"x")
    assert long_name.read_bytes() == b"x"


def test_atomic_file_refuses_a_body_that_writes_nothing_or_raises(tmp_path: Path) -> None:
    with pytest.raises(UndoProbeError, match="does not exist"), files.atomic_file(tmp_path / "a"):
        pass
    with pytest.raises(ZeroDivisionError), files.atomic_file(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_atomic_folder_refuses_an_existing_one_or_keeps_it(tmp_path: Path) -> None:
    final = tmp_path / "entry"
    final.mkdir()
    with files.atomic_folder(final) as folder:  # an empty folder is taken over
        (folder / "who").write_text("first")
    with (
        pytest.raises(UndoProbeError, match="already there and not empty"),
        files.atomic_folder(final) as folder,
    ):
        (folder / "who").write_text("second")
    with files.atomic_folder(final, keep_existing=True) as folder:
        (folder / "who").write_text("third")
    assert (final / "who").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]


def test_canonical_json_does_not_depend_on_order_and_refuses_what_has_no_one_form() -> None:
    assert files.canonical_json({"b": (1, None), "a": 0.1}) == '{"a":0.1,"b":[1,null]}'
    assert files.digest({"a": 1, "b": 2}) == files.digest({"b": 2, "a": 1})
    assert files.digest({"a": 1}) != files.digest({"a": 2})
    assert files.digest([]) == hashlib.sha256(b"[]").hexdigest()
    for bad in (math.nan, math.inf, {1, 2}, Path("x"), b"x", {1: "a", "1": "b"}):
        with pytest.raises(UndoProbeError, match="cannot hash this as JSON: .*; use dicts with text keys"):
            files.canonical_json({"value": bad})


def test_file_digest_is_the_sha256_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 1000)
    assert files.file_digest(tmp_path / "a") == hashlib.sha256(b"abc" * 1000).hexdigest()
    with pytest.raises(UndoProbeError, match="cannot read .*missing: No such file or directory"):
        files.file_digest(tmp_path / "missing")


def test_a_file_truncated_at_any_byte_is_named_as_damaged(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    files.write_json(path, {"name": "é", "values": [1.5, True, {"deep": None}]})
    whole = path.read_bytes().rstrip()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UndoProbeError, match=r"record\.json is not .*restore it or remove it"):
            files.read_json(path)
    path.write_bytes(whole)
    assert files.read_json(path)["name"] == "é"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "it is empty"),
        (b"\xff\xfe", "can't decode byte 0xff in position 0"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": 1, "a": 2}', "the key 'a' appears twice"),
        (b"[" * 100_000, "not valid JSON"),
        (b"{} {}", "line 1 column 4"),
    ],
)
def test_read_json_says_what_is_wrong(content: bytes, text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UndoProbeError, match=text):
        files.read_json(tmp_path / "a.json")


def test_read_json_of_a_missing_file_or_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UndoProbeError, match="cannot read .*: No such file or directory; check the name"):
        files.read_json(tmp_path / "a.json")
    with pytest.raises(UndoProbeError, match="Is a directory"):
        files.read_json(tmp_path)


# --- locks -----------------------------------------------------------------------------------------

HOLD = (
    "import sys, time\n"
    "from undo_probe.files import FolderLock\n"
    "with FolderLock(sys.argv[1]):\n"
    "    print('held', flush=True)\n"
    "    time.sleep(60)\n"
)


@contextmanager
def held_by_another_process(folder: Path) -> Iterator[subprocess.Popen]:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, folder, "--flag"], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        yield holder
    finally:
        holder.kill()
        holder.communicate()


def test_a_second_process_is_refused_with_the_holders_name_until_it_dies(tmp_path: Path) -> None:
    with held_by_another_process(tmp_path) as holder:
        with pytest.raises(UndoProbeError) as caught, files.FolderLock(tmp_path):
            pass
        text = str(caught.value)
        assert f"{tmp_path} is in use by process {holder.pid} on {socket.gethostname()} since 20" in text
        assert "--flag" in text
        assert "wait for it to end" in text
        holder.kill()
        holder.wait()
        # The killed holder's note is still there; the kernel has freed the lock all the same.
        with files.FolderLock(tmp_path):
            assert files.read_json(tmp_path / files.HOLDER_NAME)["pid"] == os.getpid()
    assert not (tmp_path / files.HOLDER_NAME).exists()


def test_waiting_calls_back_and_ends_when_the_holder_does(tmp_path: Path) -> None:
    told: list[tuple[int, float]] = []
    with held_by_another_process(tmp_path) as holder:

        def on_wait(who: files.Holder | None, waited: float) -> None:
            assert who is not None
            told.append((who.pid, waited))
            if len(told) == 2:
                holder.kill()

        with files.FolderLock(tmp_path, wait=30, on_wait=on_wait):
            assert [pid for pid, _ in told] == [holder.pid, holder.pid]
            assert told[1][1] >= 1


def test_waiting_runs_out(tmp_path: Path) -> None:
    begin = time.monotonic()
    with (
        files.FolderLock(tmp_path),
        pytest.raises(UndoProbeError, match=rf"process {os.getpid()} .*\(waited 0 s\)"),
        files.FolderLock(tmp_path, wait=0.3),
    ):
        pass
    assert 0.3 <= time.monotonic() - begin < 5
    with files.FolderLock(tmp_path):  # and the refused second lock did not disturb the first's end
        pass


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # Python 3.12+
@pytest.mark.parametrize("how", ["fork", "exec"])
def test_children_do_not_inherit_the_lock(how: str, tmp_path: Path) -> None:
    children: list[int] = []
    try:
        with files.FolderLock(tmp_path):
            if how == "fork":
                child = os.fork()
                if child == 0:
                    time.sleep(60)
                    os._exit(0)
                children.append(child)
            else:
                children.append(os.posix_spawn("/bin/sleep", ["sleep", "60"], os.environ))
        with files.FolderLock(tmp_path):
            assert os.waitpid(children[0], os.WNOHANG) == (0, 0)  # the child still lives
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def test_a_fork_outliving_a_killed_holder_does_not_keep_its_lock(tmp_path: Path) -> None:
    code = HOLD.replace("    print", "    import os\n    if os.fork() == 0: time.sleep(60)\n    print")
    holder = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        holder.kill()
        holder.wait()
        with files.FolderLock(tmp_path, wait=2):
            assert os.killpg(holder.pid, 0) is None  # its child lives on
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        assert holder.stdout is not None
        holder.stdout.close()
