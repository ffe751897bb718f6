#!/bin/sh
# The recipe's commands, on the machine at hand. Usage: sh experiments/train/run.sh [OUT]
set -eu
out=${1:-runs}

# A baseline and its gap-trained twin on 128 digits: minutes on a CPU.
python -m geomem.experiments.train digits --out "$out/digits"
python -m geomem.experiments.train digits --out "$out/digits_gap" --gap 0.3 1.5
for run in digits digits_gap; do
  python -m geomem.experiments.sample --run "$out/$run" --count 256 --out "$out/$run/samples.npz"
done
python -m geomem.experiments.benchmark_training --out "$out/benchmark_training"
