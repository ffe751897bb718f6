"""Checkpoints that survive kills, damage and a change of devices. The only module on Orbax.

A checkpoint is a nested dict of plain arrays under names, with a checksum: Orbax verifies the
structure of what it reads but not every byte. It is written in the background, and appears under
its final name only when it is whole.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import pathlib
import signal
import threading
import zlib
from collections.abc import Mapping
from typing import Any

import flax.serialization
import flax.traverse_util
import jax
import numpy as np

from geomem import paths

__all__ = ["Checkpoints", "StopSignal", "claim_folder", "read_facts"]

_FACTS = "config.json"
_logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run folder; a context manager that waits for the last one.

    Args:
      folder: the run folder, local or in a bucket; checkpoints go to its `checkpoints/STEP`.
      keep: how many of the newest are kept.
      read_only: change nothing in the folder, which another process may be writing.
    """

    def __init__(self, folder: paths.AnyPath, keep: int = 3, *, read_only: bool = False):
        import orbax.checkpoint as ocp

        # Orbax reports every save and restore at levels that are meant for its own authors.
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

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            self._writing(self._manager.wait_until_finished)
        except OSError:
            if error is None:  # never hide what ended the run
                raise
        finally:
            self._manager.close()

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any) -> None:
        """Start writing `state` (a pytree of NumPy arrays, not changed later) for `step`.

        Waits for the checkpoint before it; a step that is saved already is left as it is.

        Raises:
          OSError: this or the previous checkpoint cannot be written, for example on a full disk.
        """
        if step not in self.steps():
            tree = _plain(state)
            self._writing(self._manager.save, step, args=self._args.StandardSave(tree))

    def restore(self, template: Any, step: int | None = None) -> tuple[int, Any] | None:
        """The newest checkpoint that is whole.

        A damaged one is reported and the one before it is taken; unless read_only, the damaged one
        is deleted (the run will write it again).

        Args:
          template: a pytree with the state's structure, shapes and dtypes.
          step: take this one, or none.

        Returns:
          (step, state as NumPy arrays), or None if there is no checkpoint.

        Raises:
          ValueError: no such step, or every checkpoint is damaged.
        """
        steps = self.steps()
        if step is not None and step not in steps:
            raise ValueError(f"step: {step}, wanted one of {steps} in {self.folder}")
        for candidate in reversed(steps) if step is None else [step]:
            try:
                return candidate, self._read(template, candidate)
            except Exception as error:  # what damage raises depends on the file that it hit
                _logger.warning("checkpoint %d is damaged: %s", candidate, _first_line(error))
                if not self._read_only and candidate != steps[0]:
                    self._manager.delete(candidate)
        if not steps:
            return None
        raise ValueError(f"run: no usable checkpoint among {steps} in {self.folder}")

    def _read(self, template, step):
        plain = flax.serialization.to_state_dict(template)
        wanted = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), plain)
        wanted = {"state": wanted, "checksum": np.empty((), np.uint32)}
        found = self._manager.restore(step, args=self._args.StandardRestore(wanted))
        if found["checksum"] != _checksum(found["state"]):
            raise ValueError("its checksum differs")
        return flax.serialization.from_state_dict(template, found["state"])

    def _writing(self, write, *args, **kwargs):
        try:
            write(*args, **kwargs)
        except Exception as error:  # tensorstore raises ValueError for a full disk
            full = os.strerror(errno.ENOSPC)
            reason = full if full in str(error) else _first_line(error)
            raise OSError(f"checkpoints: cannot write to {self.folder}: {reason}") from error


class StopSignal:
    """Whether the run was asked to stop, by SIGTERM: a context manager to ask at each step.

    In a run of several processes JAX's preemption service hears the signal, and all of them stop at
    the same step.
    """

    def __enter__(self) -> StopSignal:
        self._heard = False
        self._own = jax.process_count() == 1 and (
            threading.current_thread() is threading.main_thread()
        )
        if self._own:
            self._previous = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if self._own:
            signal.signal(signal.SIGTERM, self._previous)

    def __call__(self, step: int) -> bool:
        """Whether to save and stop after `step`."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            return multihost_utils.reached_preemption_sync_point(step)
        return self._heard

    def _hear(self, number, frame):
        self._heard = True


def claim_folder(folder: pathlib.Path, facts: Mapping[str, Any], may_change=()) -> bool:
    """Make `folder` this run's, or make sure that it is: a run never resumes onto other data.

    Args:
      folder: an existing folder, empty or an earlier run's.
      facts: nested dict of JSON values that define the run; written to `config.json`.
      may_change: dotted names of facts that a resumed run may change, such as how long it is.

    Returns:
      Whether the folder holds an earlier run, to be resumed.

    Raises:
      ValueError: the folder holds something else, or a run whose facts differ (the first is named).
    """
    facts = json.loads(json.dumps(facts))
    path = folder / _FACTS
    resumed = path.exists()
    entries = folder.iterdir() if folder.exists() else ()  # a bucket has no empty folders
    if resumed:
        _check_same(read_facts(folder), facts, may_change, path)
    elif foreign := [entry.name for entry in entries if not entry.name.startswith(".")]:
        raise ValueError(
            f"out: {folder} is not a run folder (has {foreign[0]}, but no {_FACTS}), wanted a "
            "new or empty folder, or a run to resume"
        )
    paths.write_whole(path, json.dumps(facts, indent=2) + "\n")
    return resumed


def read_facts(folder: paths.AnyPath) -> dict[str, Any]:
    """What `claim_folder` wrote.

    Raises:
      ValueError: `folder` is not a run folder.
    """
    path = paths.as_path(folder) / _FACTS
    try:
        return json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        raise ValueError(f"run: {folder} is not a run folder (no readable {_FACTS})") from None


def _check_same(stored, facts, may_change, path):
    stored, facts = (flax.traverse_util.flatten_dict(tree, sep=".") for tree in (stored, facts))
    for name in sorted(facts.keys() | stored.keys()):
        if name not in may_change and stored.get(name) != facts.get(name):
            raise ValueError(
                f"{name.rpartition('.')[2]}: {facts.get(name)!r}, but {path} has "
                f"{stored.get(name)!r}; wanted the run's own, or another --out"
            )


def _first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _plain(state):
    plain = jax.tree.map(np.asarray, flax.serialization.to_state_dict(state))
    return {"state": plain, "checksum": np.array(_checksum(plain), np.uint32)}


def _checksum(tree):
    """CRC-32 of the arrays' bytes, in the order of their names."""
    value = 0
    for leaf in jax.tree.leaves(tree):
        value = zlib.crc32(np.ascontiguousarray(leaf), value)
    return value
