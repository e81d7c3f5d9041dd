"""Files that are either whole or absent: atomic writes, hashes, locks.

Everything is written beside its final name, flushed to the disk and renamed, so a reader sees the old
state or the new one and never a mix, whenever the writer dies.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import filelock

from undo_probe.errors import UndoProbeError

DAMAGED = "; it was truncated, damaged or written by something else: restore it or remove it"
LOCK_NAME = ".lock"
HOLDER_NAME = ".lock-holder.json"

_TEMP = re.compile(r"\.tmp-(?P<host>.+)-(?P<pid>\d{1,9})-[0-9a-f]{8}(\..*)?")
_FOREIGN_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_NO_SPACE = ("no space is left", "free some space or choose a folder on another disk")
_NO_PERMISSION = ("permission was denied", "choose a folder you may write to, or change its owner or mode")
_WRONG_KIND = ("a file lies where a folder is needed, or the reverse", "move it away or choose another name")
_REASONS = {
    errno.ENOSPC: _NO_SPACE,
    errno.EDQUOT: ("the disk quota is used up", _NO_SPACE[1]),
    errno.EFBIG: ("the file would be larger than allowed", "raise the file size limit (ulimit -f)"),
    errno.EACCES: _NO_PERMISSION,
    errno.EPERM: _NO_PERMISSION,
    errno.EROFS: ("the file system is read-only", "choose a folder on a writable disk"),
    errno.EIO: ("the disk reported an error", "check the disk, then run the same command again"),
    errno.ENOENT: ("a folder on the way does not exist any more", "create it or choose another folder"),
    errno.ENOTDIR: _WRONG_KIND,
    errno.EISDIR: _WRONG_KIND,
    errno.EEXIST: ("something of that name is already there", "move it away or choose another name"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter name"),
}
_OTHERWISE = ("the system refused", "mend the cause, then run the same command again")


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn a system error met while writing `path` into one that says what to do.

    Errors of Rust libraries that only carry the system error in their text are turned too.
    """
    try:
        yield
    except UndoProbeError:
        raise
    except Exception as error:
        number = _system_errno(error)
        if number is None:
            raise
        what, advice = _REASONS.get(number, _OTHERWISE)
        raise UndoProbeError(
            f"cannot write {os.fspath(path)}: {what}{_space_left(path, number)}; {advice} (system: {error})"
        ) from error


def _system_errno(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno or 0
    match = _FOREIGN_OS_ERROR.search(str(error))
    return int(match[1]) if match else None


def _space_left(path: str | os.PathLike[str], number: int) -> str:
    if number in (errno.ENOSPC, errno.EDQUOT):
        with suppress(OSError):
            return f" ({shutil.disk_usage(Path(path).parent).free / 2**20:.1f} MiB free)"
    return ""


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path to write to; on leaving, flush it to the disk and rename it to `path`.

    The temporary file has the suffix of `path`, so it suits libraries that write files themselves.
    Missing parent folders are made. On an error the old file stays and no temporary file is left.
    """
    final = Path(path)
    with writing(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary_beside(final)
        try:
            yield temporary
            _sync(temporary)
            temporary.replace(final)
            _sync_folder(final.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_file(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        finally:
            os.close(descriptor)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8 with the line ends it has."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike[str], obj: object) -> None:
    """Write `obj` to `path` atomically as indented JSON; NaN and infinity are refused."""
    write_text(path, _dump(obj, f"cannot write {os.fspath(path)}", indent=2) + "\n")


@contextmanager
def atomic_folder(path: str | os.PathLike[str], keep_existing: bool = False) -> Iterator[Path]:
    """Give a temporary folder to fill; on leaving, flush all in it and rename it to `path`.

    Args:
        path: The final folder. It must not exist (an empty one is taken over).
        keep_existing: If another writer finished `path` first, keep theirs and drop ours without an
            error; for folders whose name is the key of their content.

    Yields:
        The temporary folder beside `path`. It is removed on an error; one left by a killed process is
        removed by the next `atomic_folder` or `FolderLock` there.
    """
    final = Path(path)
    with writing(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        sweep(final.parent)
        temporary = _temporary_beside(final)
        temporary.mkdir()
        try:
            yield temporary
            _sync_tree(temporary)
            _rename_folder(temporary, final, keep_existing)
            _sync_folder(final.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def sweep(folder: str | os.PathLike[str]) -> list[Path]:
    """Remove temporary files and folders in `folder` whose writer on this host is dead; return them."""
    swept: list[Path] = []
    with suppress(OSError):
        for path in Path(folder).iterdir():
            match = _TEMP.fullmatch(path.name)
            if match is None or match["host"] != _host() or _is_alive(int(match["pid"])):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink()
            swept.append(path)
    return swept


def temporary_name(suffix: str = "") -> str:
    """Return a new name that `sweep` knows: it holds this host and this process."""
    return f".tmp-{_host()}-{os.getpid()}-{secrets.token_hex(4)}{suffix}"


def _temporary_beside(final: Path) -> Path:
    return final.parent / temporary_name(final.suffix)


def _host() -> str:
    # Process numbers mean nothing on another host (or in another container) that shares the disk.
    return re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname())[:60] or "localhost"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno != errno.ESRCH
    return True


def _rename_folder(temporary: Path, final: Path, keep_existing: bool) -> None:
    try:
        temporary.rename(final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not keep_existing:
            raise UndoProbeError(
                f"cannot write {final}: a folder of that name is already there and not empty; "
                "choose another name or remove it"
            ) from error
        shutil.rmtree(temporary)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    try:
        _sync(path)
    except OSError as error:
        # Some network file systems cannot flush a folder; the rename has happened all the same.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def _sync_tree(folder: Path) -> None:
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            _sync(Path(root, name))
        _sync_folder(Path(root))


def canonical_json(obj: object) -> str:
    """Return the one JSON text of `obj`: sorted keys, no spaces, ASCII, no NaN or infinity."""
    return _dump(obj, "cannot hash this", sort_keys=True, separators=(",", ":"))


def digest(obj: object) -> str:
    """Return the SHA-256 of `canonical_json(obj)` in hexadecimal."""
    return hashlib.sha256(canonical_json(obj).encode("ascii")).hexdigest()


def file_digest(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    with reading(path), Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns what the system refuses inside into an UndoProbeError with the reason."""
    try:
        yield
    except OSError as error:
        raise UndoProbeError(
            f"cannot read {path}: {error.strerror}; check the name and its rights"
        ) from error


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file; a missing, truncated or otherwise damaged one is an `UndoProbeError`."""
    with reading(path):
        data = Path(path).read_bytes()
    try:
        return json.loads(
            data.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_refuse_twice
        )
    except json.JSONDecodeError as error:
        where = (
            "it is empty"
            if not error.doc.strip()
            else f"{error.msg}, line {error.lineno} column {error.colno}"
        )
        raise UndoProbeError(f"{path} is not whole, valid JSON: {where}{DAMAGED}") from None
    except (ValueError, RecursionError) as error:
        raise UndoProbeError(f"{path} is not valid JSON: {error}{DAMAGED}") from None


def _dump(obj: object, failed: str, **options: Any) -> str:
    try:
        return json.dumps(obj, allow_nan=False, **options)
    except (TypeError, ValueError, RecursionError) as error:
        allowed = "use dicts with text keys, lists, text, finite numbers, booleans and None"
        raise UndoProbeError(f"{failed} as JSON: {error}; {allowed}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} appears twice")
    return found


@dataclass(frozen=True)
class Holder:
    """Who holds a lock: what `FolderLock` notes beside it."""

    pid: int
    host: str
    started: str
    command: str

    def __str__(self) -> str:
        """Say it in a few words."""
        return f"process {self.pid} on {self.host} since {self.started} ({self.command})"


class FolderLock:
    """One process works in a folder at a time; a context manager.

    The lock itself is the kernel's (flock): it is freed when its holder dies, however that happens, and
    child processes do not inherit it. The note beside it only tells others whom they wait for.

    Args:
        folder: The folder to lock; made if it is missing.
        wait: Seconds to wait for another holder; 0 or None refuses at once, `math.inf` waits for ever.
        on_wait: Called about once a second while waiting, with the holder (None if it left no note) and
            the seconds waited so far.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        wait: float | None = 0,
        on_wait: Callable[[Holder | None, float], None] | None = None,
    ) -> None:
        """Keep the settings; nothing is locked before the `with` block."""
        self.folder = Path(folder)
        self._wait = wait or 0
        self._on_wait = on_wait
        # A soft lock (a mere file) would outlive a killed holder, so it is no fall-back for us.
        self._lock = filelock.FileLock(self.folder / LOCK_NAME, thread_local=False, fallback_to_soft=False)

    def __enter__(self) -> "FolderLock":
        """Take the lock, sweep what dead writers left, and note who holds it."""
        with writing(self.folder / LOCK_NAME):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._acquire()
            try:
                sweep(self.folder)
                write_json(self.folder / HOLDER_NAME, asdict(_this_process()))
            except BaseException:
                self._lock.release()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the note, then free the lock."""
        with suppress(OSError):
            (self.folder / HOLDER_NAME).unlink()
        with writing(self.folder / LOCK_NAME):
            self._lock.release()

    def _acquire(self) -> None:
        begin = time.monotonic()
        told = -1.0
        while True:
            with suppress(filelock.Timeout):
                self._lock.acquire(blocking=False)
                return
            waited = time.monotonic() - begin
            if waited >= self._wait:
                raise UndoProbeError(self._refusal(waited))
            if self._on_wait is not None and waited - told >= 1:
                told = waited
                self._on_wait(_read_holder(self.folder), waited)
            time.sleep(min(0.1, self._wait - waited))

    def _refusal(self, waited: float) -> str:
        holder = _read_holder(self.folder) or "another process"
        after = f" (waited {waited:.0f} s)" if self._wait else ""
        return f"{self.folder} is in use by {holder}{after}; wait for it to end or choose another folder"


def _this_process() -> Holder:
    command = " ".join([Path(sys.argv[0]).name or "python", *sys.argv[1:]])[:200]
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Holder(os.getpid(), socket.gethostname(), now, command)


def _read_holder(folder: Path) -> Holder | None:
    try:
        return Holder(**read_json(folder / HOLDER_NAME))
    except (UndoProbeError, TypeError):
        return None
