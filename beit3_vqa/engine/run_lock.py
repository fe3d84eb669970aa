"""Lock a folder, so that one run at a time writes to it. A lock whose process is dead doesn't count.

The lock is a file that names its process. On the same machine that process is looked up by its number and its start
time, since numbers are used again. A process on another machine (the folder may be on a network drive) can't be looked
up: every run writes to its lock every few seconds, and whoever wants it watches whether it changes. Clocks aren't
compared: those of two machines differ, and one may jump.
"""

import json
import logging
import os
import platform
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from beit3_vqa.errors import InputError, short
from beit3_vqa.runtime import distributed
from beit3_vqa.runtime.files import make_folder

logger = logging.getLogger(__name__)

FILE = "run.lock"
BEAT = 10.0  # seconds between writes to the lock
WATCHED = 45.0  # seconds without a write after which another machine's run is considered dead
_MAX = 10_000  # bytes that are read of a lock


@contextmanager
def run_lock(folder: str | Path) -> Iterator[None]:
    """Hold the lock of a folder inside the context; the main process of several does so for all.

    Raises:
        InputError: another run holds it, or the folder can't be written to.
    """
    lock = _Lock(Path(folder))
    distributed.run_on_main(lock.take)
    try:
        yield
    finally:
        lock.release()


def require_lock(folder: Path) -> None:
    """Raise InputError if another run has taken over the folder, as can happen while this machine sleeps."""
    path = folder / FILE
    content = _parsed(_read(path))
    if content and content.get("token") != _tokens.get(path.absolute()):
        raise InputError(f"{_who(content)} took over {folder} while this one was paused; this one ends without saving.")


_tokens: dict[Path, str] = {}  # of the locks that this process holds


class _Lock:
    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / FILE
        self.token = uuid.uuid4().hex
        self.since = time.strftime("%Y-%m-%d %H:%M:%S")
        self.beats = 0
        self._made: list[Path] = []  # folders, the innermost first
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._held = False

    def take(self) -> None:
        """Create the lock, and remove a dead run's first.

        Raises:
            InputError: another run holds it, or the folder can't be written to.
        """
        self._made = [f for f in (self.folder, *self.folder.parents) if not f.exists()]
        try:
            make_folder(self.folder)
            self._held = self._create()
            while not self._held:
                self._remove_dead(self._look())
                # Where files can't be locked, another run may remove our new lock instead of the dead one's.
                self._held = self._create() and self._stays_own()
        except OSError as error:
            raise InputError(f"{self.folder} can't be written to ({error.strerror}); give another folder.") from error
        finally:
            if not self._held:
                self._remove_made()
        _tokens[self.path.absolute()] = self.token
        self._thread.start()

    def release(self) -> None:
        """Remove the lock, and the folders that were made for it if they are still empty."""
        if not self._held:
            return
        self._stop.set()
        self._thread.join()
        _tokens.pop(self.path.absolute(), None)
        with suppress(OSError):
            if self._is_own():
                self.path.unlink()
        self._remove_made()

    def _look(self) -> bytes | None:
        """Return what the lock holds; None if it is gone by now.

        Raises:
            InputError: something is there that can't be read, so that it would be looked for again and again.
        """
        for _ in range(3):  # a run may have ended, and another begun, between two looks
            found = _read(self.path)
            if found is not None or not os.path.lexists(self.path):
                return found
            time.sleep(0.1)
        raise InputError(
            f"{self.path} is there and can't be read as the lock of a run: a folder, a link to nothing, or another "
            "user's file. Remove it, or give another --output_dir."
        )

    def _create(self) -> bool:
        with suppress(FileExistsError):
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    _wait_for(file)
                    file.write(self._content())
                    file.flush()
                    return self._is_own()  # not if it was empty for so long that another run removed it
            except OSError:  # a disk that is full
                self.path.unlink()
                raise
        return False

    def _content(self) -> bytes:
        about = {
            "host": platform.node(),
            "pid": os.getpid(),
            "since": self.since,
            "machine": _machine(),
            "started": _started(os.getpid()),
            "token": self.token,
        }
        # Always the same length, so that a write in place never leaves a reader with half an old and half a new file.
        return json.dumps({**about, "beat": f"{self.beats:012}"}).encode()

    def _stays_own(self) -> bool:
        time.sleep(0.3)
        return self._is_own()

    def _is_own(self) -> bool:
        return _parsed(_read(self.path)).get("token") == self.token

    def _beat(self) -> None:
        content = self._content()
        while not self._stop.wait(BEAT):
            self.beats += 1
            content = content[: content.rindex(b'"beat"')] + f'"beat": "{self.beats:012}"}}'.encode()
            with suppress(OSError):
                if self._is_own():
                    with self.path.open("r+b") as file:
                        file.write(content)
                elif not self.path.exists():  # deleted by hand, though this run is alive
                    self._create()

    def _remove_dead(self, seen: bytes | None) -> None:
        """Remove the lock of a run that is dead.

        Args:
            seen: what the lock holds; None if it is gone.

        Raises:
            InputError: the run is alive.
        """
        if seen is None:  # its run has ended just now
            return
        content = _parsed(seen)
        if not content:  # it may be half written: look again
            time.sleep(0.2)
            seen = _read(self.path) or seen
            content = _parsed(seen)
        lives = _lives(content)
        if lives is None:
            lives = self._changes(seen, content)
        if lives:
            raise InputError(
                f"{self.folder} is in use by {_who(content)}. Wait for it, stop it, or give another --output_dir; two "
                f"runs would take each other's files. If it is certain that nothing runs there, delete {self.path}."
            )
        self._remove(seen)

    def _remove(self, dead: bytes) -> None:
        """Remove the lock if it still is the dead run's: several runs may have found it, and one be done with it."""
        with suppress(FileNotFoundError), self.path.open("r+b" if os.access(self.path, os.W_OK) else "rb") as file:
            _wait_for(file)
            if os.path.samestat(os.fstat(file.fileno()), self.path.stat()) and file.read(_MAX) == dead:
                if os.name != "posix":  # Windows, where an open file can't be removed
                    file.close()
                self.path.unlink()

    def _changes(self, seen: bytes, content: dict[str, object]) -> bool:
        """Watch the lock for `WATCHED` seconds and return whether its run writes to it."""
        logger.info(f"{self.path} is the lock of {_who(content)}: watching {WATCHED:.0f} s for activity")
        end = time.monotonic() + WATCHED
        while time.monotonic() < end:
            time.sleep(min(1.0, WATCHED / 10))
            now = _read(self.path)
            if now != seen:
                return now is not None
        logger.info("no activity: that run is considered dead")
        return False

    def _remove_made(self) -> None:
        with suppress(OSError):  # something is in it
            for folder in self._made:
                folder.rmdir()


def _wait_for(file: IO[bytes]) -> None:
    """Wait until no other process holds this file, so that nobody writes or removes it between our look and our deed.

    It is held until it is closed. Windows, and file systems that can't do it, go on at once.
    """
    with suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)


def _read(path: Path) -> bytes | None:
    """Return what the lock holds; None if there is none."""
    try:
        with path.open("rb") as file:
            return file.read(_MAX)
    except OSError:
        return None


def _parsed(content: bytes | None) -> dict[str, object]:
    """Return the content of a lock as an object; empty if it is half written or isn't ours."""
    try:
        found = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _who(content: dict[str, object]) -> str:
    if "pid" not in content:
        return "another run, which doesn't say where it is"
    host, process, since = (short(content.get(name)).strip("'") for name in ("host", "pid", "since"))
    return f"another run (process {process} on {host}, since {since})"


def _lives(content: dict[str, object]) -> bool | None:
    """Return whether the process of a lock is alive; None if that can't be seen from here."""
    process = content.get("pid")
    if type(process) is not int or content.get("machine") != _machine() or content.get("started") is None:
        return None
    started = _started(process)
    return None if started is None and _is_hidden(process) else started == content["started"]


def _is_hidden(process: int) -> bool:
    """Return whether the process is another user's and the system tells nothing but that it exists."""
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _machine() -> str:
    """Return a text that is equal for processes that can see each other, and differs between containers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{platform.node()} {uuid.getnode()}"


def _started(process: int) -> str | None:
    """Return when a process began, in a unit of the system's; None if it is dead or can't be looked up."""
    try:
        # After the name, which may hold anything, come the state and, 19 fields later, the start in ticks since boot.
        fields = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    try:
        command = ["ps", "-o", "lstart=", "-p", str(process)]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    except OSError:
        return None
