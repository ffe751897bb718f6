"""Checkpoints that survive kills, damage and a change of devices. Only this module uses Orbax.

A checkpoint is a nested dict of plain arrays. It has a checksum, because Orbax verifies the
structure of what it reads but not every byte. It is written in the background and appears under its
final name once it is complete.
"""

import errno
import logging
import os
import pathlib
import zlib
from typing import Any, Self

import flax.serialization
import jax
import numpy as np

from geomem import paths

__all__ = ["Checkpoints"]

_logger = logging.getLogger(__name__)


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

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, ascending."""
        return sorted(self._manager.all_steps())

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

    def restore(self, template: Any, step: int | None = None) -> tuple[int, Any] | None:
        """Return the newest undamaged checkpoint.

        A damaged checkpoint is reported, and the one before it is tried. Unless `read_only`, the
        damaged one is deleted; the resumed run writes it again.

        Args:
          template: a pytree with the state's structure, shapes and dtypes.
          step: the only step to try; default: all, the newest first.

        Returns:
          (step, state as NumPy arrays), or None if there is no checkpoint.

        Raises:
          ValueError: no such step, or every checkpoint is damaged.
        """
        steps = self.steps()
        if step is not None and step not in steps:
            raise ValueError(f"step must be one of {steps} in {self.folder}, got {step}.")
        for candidate in reversed(steps) if step is None else [step]:
            try:
                return candidate, self._read(template, candidate)
            except Exception as error:  # its type depends on the damaged file
                _logger.warning("checkpoint %d is damaged: %s", candidate, _first_line(error))
                if not self._read_only and candidate != steps[0]:
                    self._manager.delete(candidate)
        if not steps:
            return None
        raise ValueError(
            f"run must have an undamaged checkpoint, got {self.folder}, where all of {steps} are "
            "damaged."
        )

    def _read(self, template, step):
        plain = flax.serialization.to_state_dict(template)
        empty = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), plain)
        tree = {"state": empty, "checksum": np.empty((), np.uint32)}
        restored = self._manager.restore(step, args=self._args.StandardRestore(tree))
        if restored["checksum"] != _checksum(restored["state"]):
            raise ValueError("its checksum differs")
        return flax.serialization.from_state_dict(template, restored["state"])

    def _writing(self, write, *args, **kwargs):
        try:
            write(*args, **kwargs)
        except Exception as error:  # tensorstore raises ValueError for a full disk
            full = os.strerror(errno.ENOSPC)
            reason = full if full in str(error) else _first_line(error)
            raise OSError(f"checkpoints cannot be written to {self.folder}: {reason}.") from error


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
