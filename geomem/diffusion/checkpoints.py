"""Checkpoints that survive kills, damage and a change of devices. Only this module uses Orbax.

A checkpoint is a nested dict of plain arrays. It has a checksum, because Orbax verifies the
structure of what it reads but not every byte. It is written in the background and appears under its
final name once it is complete.
"""

import errno
import itertools
import logging
import os
import pathlib
import zlib
from typing import Any, Self

import flax.serialization
import jax
import numpy as np
from jax.experimental import multihost_utils

from geomem import paths

__all__ = ["Checkpoints"]

_logger = logging.getLogger(__name__)
_ITEM = "default"  # the folder of the arrays in a checkpoint of Orbax
# tensorstore's codes for failures that are not damage.
_NO_DAMAGE = "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED"


class Checkpoints:
    """The checkpoints of one run folder; a context manager that waits for the last one.

    Args:
      folder: the run folder, local or in a bucket; checkpoints are in its `checkpoints/STEP`.
      keep: number of newest checkpoints to keep.
      read_only: change nothing in the folder; another process may be writing to it.
    """

    def __init__(self, folder: paths.AnyPath, keep: int = 3, *, read_only: bool = False):
        import orbax.checkpoint as ocp

        # Orbax logs every save and restore as a warning.
        logging.getLogger("absl").setLevel(logging.ERROR)
        folder = paths.as_path(folder)
        folder = folder.absolute() if isinstance(folder, pathlib.Path) else folder
        self.folder = folder / "checkpoints"
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=not read_only, read_only=read_only
        )
        self._read_only = read_only
        if not read_only and self.folder.exists():
            for path in self.folder.iterdir():  # Orbax would take it for the newest checkpoint
                if path.name.isdigit() and not (path / _ITEM).exists():
                    self._set_aside(path)
        self._reader = ocp.StandardCheckpointer()
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        self._args = ocp.args

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            self._writing(self._manager.wait_until_finished)
        except OSError:
            if error is None:  # do not hide the error that ended the run
                raise
        finally:
            self._manager.close()
            self._reader.close()

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, ascending."""
        steps = self._manager.all_steps()
        return sorted(step for step in steps if (self.folder / str(step) / _ITEM).exists())

    def save(self, step: int, state: Any) -> None:
        """Start writing the state of a step in the background.

        Waits for the previous checkpoint. A step that is already saved stays as it is.

        Args:
          step: the step.
          state: a pytree of NumPy arrays that are not changed later.

        Raises:
          OSError: this or the previous checkpoint cannot be written, for example on a full disk.
        """
        if step not in self.steps():
            tree = _plain(state)
            self._writing(self._manager.save, step, args=self._args.StandardSave(tree))

    def restore(
        self, template: Any, step: int | None = None, argument: str = "run"
    ) -> tuple[int, Any] | None:
        """Return the newest undamaged checkpoint.

        A checkpoint is damaged if it cannot be decoded or its checksum differs. This is reported,
        and the one before it is tried. Unless `read_only`, a damaged one is renamed to
        STEP.damaged, and the resumed run writes it again; nothing is deleted.

        Args:
          template: a pytree with the state's structure, shapes and dtypes.
          step: the only step to try; default: all, the newest first.
          argument: what errors call the run folder.

        Returns:
          (step, state as NumPy arrays), or None if there is no checkpoint.

        Raises:
          ValueError: no such step, every checkpoint is damaged, or one is whole but holds arrays of
            other names or shapes.
          OSError: a checkpoint cannot be read for another reason, such as missing permission.
        """
        steps = self.steps()
        if step is not None and step not in steps:
            raise ValueError(f"step must be one of {steps} in {self.folder}, got {step}.")
        reports = []
        for candidate in reversed(steps) if step is None else [step]:
            self._check_shapes(template, candidate, argument)
            try:
                restored = self._read(template, candidate)
                for report in reports:
                    _logger.warning(report)
                return candidate, restored
            except MemoryError:
                raise
            except Exception as error:  # its type depends on the damaged file
                self._check_damage(candidate, error)
                reports.append(f"checkpoint {candidate} is damaged: {_first_line(error)}")
                if not self._read_only and candidate != steps[0]:
                    if jax.process_count() > 1:
                        multihost_utils.sync_global_devices("geomem damaged checkpoint")
                    self._set_aside(self.folder / str(candidate))
                    self._manager.reload()
        if not steps:
            return None
        reason = reports[0].partition(": ")[2]
        raise ValueError(
            f"{argument} must have an undamaged checkpoint, got {self.folder}, where all of "
            f"{steps} are damaged ({reason})."
        )

    def _read(self, template, step):
        tree = {"state": _empty(template), "checksum": np.empty((), np.uint32)}
        restored = self._reader.restore(self.folder / str(step) / _ITEM, tree)
        if restored["checksum"] != _checksum(restored["state"]):
            raise ValueError("its checksum differs")
        return flax.serialization.from_state_dict(template, restored["state"])

    def _check_damage(self, step, error):
        """Raise an OSError if a checkpoint was not read for another reason than damage."""
        denied = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
        if denied or any(code in str(error) for code in _NO_DAMAGE):
            reason = getattr(error, "strerror", None) or _first_line(error)
            message = f"checkpoint {self.folder / str(step)} cannot be read: {reason}."
            raise OSError(message) from error

    def _check_shapes(self, template, step, argument):
        """Raise a ValueError if a whole checkpoint is not of this network."""
        try:
            stored: Any = self._reader.metadata(self.folder / str(step) / _ITEM)
            shapes = _shapes(getattr(stored, "item_metadata", stored).tree["state"])
        except Exception:  # damaged, as reading it will tell
            return
        if shapes != _shapes(_empty(template)):
            raise ValueError(
                f"{argument} must hold checkpoints of this network, got "
                f"{self.folder / str(step)}, whose arrays have other names or shapes."
            )

    def _set_aside(self, path):
        """Rename what is not a whole checkpoint to NAME.damaged, or NAME.damaged-2, ..."""
        if jax.process_index() > 0:
            return
        name = f"{path.name}.damaged"
        for count in itertools.count(2):
            if not (path.parent / name).exists():
                break
            name = f"{path.name}.damaged-{count}"
        path.rename(path.parent / name)

    def _writing(self, write, *args, **kwargs):
        try:
            write(*args, **kwargs)
        except Exception as error:  # tensorstore raises ValueError for a full disk
            full = os.strerror(errno.ENOSPC)
            reason = full if full in str(error) else _first_line(error)
            raise OSError(f"checkpoints cannot be written to {self.folder}: {reason}.") from error


def _empty(template):
    plain = flax.serialization.to_state_dict(template)
    return jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), plain)


def _shapes(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {jax.tree_util.keystr(path): tuple(leaf.shape) for path, leaf in leaves}


def _first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _plain(state):
    plain = jax.tree.map(np.asarray, flax.serialization.to_state_dict(state))
    return {"state": plain, "checksum": np.array(_checksum(plain), np.uint32)}


def _checksum(tree):
    """The CRC-32 of the arrays' bytes, in the order of their names."""
    value = 0
    for leaf in jax.tree.leaves(tree):
        value = zlib.crc32(np.ascontiguousarray(leaf).data, value)
    return value
