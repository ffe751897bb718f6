"""A run's metrics over time: `metrics.jsonl` and TensorBoard events."""

import itertools
import json
import pathlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from geomem import paths


class MetricsLog:
    """Write one line per window of steps.

    A killed run may have lines for steps after its last checkpoint. The resumed run removes and
    rewrites them, so the file equals that of an uninterrupted run.

    Args:
      folder: the run folder, local or in a bucket.
      step: the step that the run starts or resumes from.
    """

    def __init__(self, folder: pathlib.Path, step: int):
        self._path = folder / "metrics.jsonl"
        self._text = _until(self._path, step)
        paths.write_whole(self._path, self._text)
        self._place = {"logdir": str(folder / "tensorboard"), "purge_step": step + 1}
        # TensorBoard in a thread: its import takes up to two seconds, in which training goes on.
        self._worker, self._events, self._added = ThreadPoolExecutor(1), None, None

    def write(self, step: int, metrics: Mapping[str, float], speed: Mapping[str, float]) -> None:
        """Record `metrics`; `speed` goes only to TensorBoard, because it differs between runs."""
        self._text += json.dumps({"step": step, **metrics}) + "\n"
        paths.write_whole(self._path, self._text)  # a bucket cannot append
        if self._added is not None:
            self._added.result()  # raises what went wrong
        self._added = self._worker.submit(self._add_events, step, {**metrics, **speed})

    def _add_events(self, step, scalars):
        from tensorboardX import SummaryWriter

        self._events = self._events or SummaryWriter(**self._place)
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)

    def values(self, name: str) -> dict[int, float]:
        """Return the values of a metric by step."""
        lines = map(json.loads, self._text.splitlines())
        return {line["step"]: line[name] for line in lines if name in line}

    def close(self) -> None:
        """Close the TensorBoard events."""
        if self._added is not None:
            self._added.result()
        self._worker.shutdown()
        if self._events is not None:
            self._events.close()


def _until(path, step):
    """The lines of a file up to `step`, without an incomplete last line."""

    def is_kept(line):
        try:
            return line.endswith("\n") and json.loads(line)["step"] <= step
        except (ValueError, KeyError, TypeError, RecursionError):
            return False

    if isinstance(path, pathlib.Path) and path.exists() and not path.is_file():
        raise ValueError(f"out must hold a file metrics.jsonl, got {path}, which is not a file.")
    text = path.read_bytes().decode(errors="replace") if path.exists() else ""
    return "".join(itertools.takewhile(is_kept, text.splitlines(keepends=True)))
