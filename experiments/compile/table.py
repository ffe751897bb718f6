"""Print the table of README.md. Usage: python experiments/compile/table.py [FOLDER]"""

import json
import pathlib
import sys

from geomem.experiments.train.presets import PRESETS

_HEADER = (
    "program",
    "target",
    "batch a chip, compute",
    "arguments + temporaries, GB a chip",
    "TFLOP",
    "GB accessed (in memory)",
    "collectives",
    "floor, ms",
    "at most",
    "compiled, s",
)


def main(results: pathlib.Path) -> None:
    """Print a row for each compile.json, in the order of their folders' names."""
    print("| " + " | ".join(_HEADER) + " |")
    print("|---" * len(_HEADER) + "|")
    for path in sorted(results.glob("*/compile.json")):
        print("| " + " | ".join(_row(json.loads(path.read_text()))) + " |")


def _row(report):
    config = report["config"]
    learned = config["program"] in ("train", "sample")
    name = [config["program"], config["preset"] if learned else "x".join(map(str, _points(config)))]
    name += ["remat"] * config["remat"]
    name += [f"microbatch {config['microbatch']}"] * bool(config["microbatch"])
    if learned:
        preset = PRESETS[config["preset"]]
        batch = config["batch"] or (preset.batch if config["program"] == "train" else 256)
        size = f"{batch // report['chips']}, {config['compute'] or preset.compute}"
    else:
        size = f"{config['queries']} queries, float32"
    row = [" ".join(map(str, name)), config["target"], size]
    if not report["fits"]:
        return [*row, f"**{report['missing_bytes'] / 1e9:.1f} GB too much**", *["-"] * 6]
    row.append(f"{report['argument_bytes'] / 1e9:.3f} + {report['temporary_bytes'] / 1e9:.3f}")
    linked = ", ".join(
        f"{entry['count']} {name}, {entry['bytes'] / 1e6:.3g} MB"
        for name, entry in report["collectives"].items()
    )
    seconds = f"{report['compile_seconds']:.0f}"
    if "flop" not in report:
        return [*row, "-", "-", linked or "none", "-", "-", seconds]
    accessed = report["bytes_accessed"]
    accessed = "-" if accessed is None else f"{accessed / 1e9:.3g}"
    floor = max(report["floor_seconds"], key=report["floor_seconds"].get)
    return [
        *row,
        f"{report['flop'] / 1e12:.3g}",
        f"{accessed} ({report['memory_traffic_bytes'] / 1e9:.3g})",
        linked or "none",
        f"{report['floor_seconds'][floor] * 1e3:.3g}, {floor}",
        f"{report['items_per_second']:,.0f} images/s",
        seconds,
    ]


def _points(config):
    return config["points"] or 50_000, *(config["shape"] or (32, 32, 3))


if __name__ == "__main__":
    main(pathlib.Path(*sys.argv[1:2] or [pathlib.Path(__file__).parent / "results"]))
