"""Where a command writes: locked while it runs, and changed from one run's files to the other's.

New files are written to a hidden folder in the output folder. When the run is complete, one rename
marks them as finished; then the old run's files are removed and the new ones take their place. A
process that is killed leaves the files of one run. If it is killed in between, the next command
that writes here finishes the exchange. The lock belongs to the operating system, which releases it
when the process ends in any way. In a bucket there are neither locks nor renames: files are
uploaded at the end, the record last.
"""

import atexit
import contextlib
import errno
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Collection

import jax

from geomem import paths

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

_held: dict[pathlib.Path, int] = {}  # file descriptors of locks, by what they lock
_created: list[pathlib.Path] = []  # folders that did not exist before
_staged: set[pathlib.Path] = set()


class Output:
    """The files of one run, which appear together in `commit`.

    If a run has several processes, only the first writes; the others get a temporary folder.

    Args:
      out: the output folder, or the file NAME.npz, which NAME.png and NAME.json accompany.

    Attributes:
      out: the folder that will hold the files.
      folder: the folder to write them to.
      record: the name of the file that describes the run.

    Raises:
      ValueError: `out` cannot be written, or another process is writing there.
    """

    def __init__(self, out: paths.AnyPath):
        self._place = paths.as_path(out)
        self.out, self.record = _record(self._place)
        self._local = isinstance(self.out, pathlib.Path) and jax.process_index() == 0
        if not self._local:
            if jax.process_index() == 0:
                make_folder(self.out)
            self.folder = pathlib.Path(tempfile.mkdtemp(prefix="geomem-"))
            atexit.register(shutil.rmtree, self.folder, ignore_errors=True)
            return
        lock(self._place)
        name = "geomem" if self.record == "run.json" else self.record.removesuffix(".json")
        self.folder, self._finished = (self.out / f".{name}.{end}" for end in ("new", "finished"))
        if self._finished.exists():
            self._exchange()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        _staged.add(self.folder)

    def commit(self) -> None:
        """Replace the files of an earlier run by those that were written, and release the lock."""
        if self._local:
            self.folder.rename(self._finished)
            _staged.discard(self.folder)
            self._exchange()
            release(self._place)
        elif jax.process_index() == 0:
            for path in sorted(self.folder.iterdir(), key=lambda path: self._is_record(path.name)):
                with paths.open_whole(self.out / path.name) as file, path.open("rb") as source:
                    shutil.copyfileobj(source, file)
        paths.moved(self.folder, self.out)
        self.folder = self.out

    def _exchange(self):
        # The records come last: the old one tells what to remove, the new one that all is there.
        new = sorted((path.name for path in self._finished.iterdir()), key=self._is_record)
        if self.record in new:
            old = {*new, *_recorded_files(self.out / self.record)}
            for name in sorted(old, key=self._is_record):
                with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                    (self.out / name).unlink()
        for name in new:
            if (self.out / name).is_dir():  # somebody's folder with the name of a result
                (self.out / name).rename(self.out / f"{name}.folder")
            (self._finished / name).rename(self.out / name)
        self._finished.rmdir()

    def _is_record(self, name):
        return name == self.record


def lock(out: paths.AnyPath, argument: str = "out") -> None:
    """Lock a local output folder or file for this process, and create the folder.

    Raises:
      ValueError: it cannot be written, or another process holds the lock; names `argument`.
    """
    place = paths.as_path(out)
    folder, _ = _record(place)
    if not isinstance(place, pathlib.Path) or jax.process_index() > 0:
        return
    make_folder(folder, argument)
    if place.resolve() in _held or fcntl is None:
        return
    target = _lock_file(place)
    while True:
        descriptor = os.open(target, os.O_RDONLY | (os.O_CREAT if target != place else 0), 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise ValueError(
                    f"{argument} must not be in use by another process, got {place}."
                ) from None
            return  # a file system without locks
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(target)):
                break
        os.close(descriptor)  # its last holder has removed the file
    _held[place.resolve()] = descriptor


def release(out: paths.AnyPath) -> None:
    """Release a lock, if this process holds it."""
    place = paths.as_path(out)
    if isinstance(place, pathlib.Path) and place.resolve() in _held:
        if (target := _lock_file(place)) != place:
            target.unlink(missing_ok=True)
        os.close(_held.pop(place.resolve()))


@atexit.register
def discard() -> None:
    """Remove what an unfinished run has written, and folders that it has created in vain."""
    for folder in list(_staged):
        shutil.rmtree(folder, ignore_errors=True)
    for place in list(_held):
        release(place)
    for folder in reversed(_created):
        with contextlib.suppress(OSError):  # not empty
            folder.rmdir()


def make_folder(out: paths.AnyPath, argument: str = "out") -> pathlib.Path:
    """Create an output folder, local or in a bucket (gs://...), and check that it is writable.

    Raises:
      ValueError: it is a file, or its file system or bucket cannot be written; names `argument`.
    """
    folder = paths.as_path(out)
    try:
        if isinstance(folder, pathlib.Path):
            if any(path.is_file() for path in (folder, *folder.parents)):
                raise ValueError("a file is there")
            missing = [path for path in (folder, *folder.parents) if not path.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            _created.extend(reversed(missing))
        probe = folder / ".geomem-probe"
        probe.write_text("")
        probe.unlink()
    except Exception as error:  # a bucket's client has errors of its own
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise ValueError(
            f"{argument} must be a writable folder, got {folder} ({reason})."
        ) from None
    return folder


def _record(place):
    """The folder of an output, and the name of its record."""
    if place.suffix == ".npz":
        return place.parent, place.with_suffix(".json").name
    return place, "run.json"


def _lock_file(place):
    """What to lock: the folder itself, or a hidden file beside an .npz file."""
    return place.with_name(f".{place.name}.lock") if place.suffix == ".npz" else place


def _recorded_files(record) -> Collection[str]:
    """The names of the files that an earlier run wrote, from its record."""
    try:
        names = json.loads(record.read_text())["files"]
        return [name for name in names if pathlib.PurePath(name).name == name]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
