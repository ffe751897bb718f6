"""A run's metrics over time: `metrics.jsonl` and TensorBoard events, cut back when it resumes."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping

from geomem import paths

__all__ = ["Journal"]


class Journal:
    """Writes one line per window of steps.

    A run that was killed has lines from after its last checkpoint: they are cut, and written again
    by the resumed run, so that the file is that of a run that nothing interrupted.

    Args:
      folder: the run folder, local or in a bucket.
      step: the step that the run starts from.
    """

    def __init__(self, folder: pathlib.Path, step: int):
        from tensorboardX import SummaryWriter

        self._path = folder / "metrics.jsonl"
        self._text = _until(self._path, step)
        paths.write_whole(self._path, self._text)
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, metrics: Mapping[str, float], speed: Mapping[str, float]) -> None:
        """Record `metrics`; `speed` goes to TensorBoard only, since no two runs share it."""
        self._text += json.dumps({"step": step, **metrics}) + "\n"
        paths.write_whole(self._path, self._text)  # in a bucket nothing can be appended
        for name, value in {**metrics, **speed}.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the events."""
        self._events.close()


def _until(path, step):
    """The lines up to `step`, without a last one that was only half written."""
    if not path.exists():
        return ""
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            whole = line.endswith("\n") and json.loads(line)["step"] <= step
        except (json.JSONDecodeError, KeyError, TypeError):
            whole = False
        if not whole:
            break
        kept.append(line)
    return "".join(kept)
