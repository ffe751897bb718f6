#!/bin/sh
# Run the CPU commands of the recipe. Usage: sh experiments/train/run.sh [OUT]
set -eu
out=${1:-runs}

# Overfit 128 digits. Then train on 128 others, with and without a gap on their danger zone. Minutes on a CPU.
python -m geomem.experiments.train digits --out "$out/digits"
python -m geomem.experiments.danger_zone --dataset digits --num-train 128 --subset-seed 0 --threshold 0.5 \
  --out "$out/zone"
python -m geomem.experiments.train digits_fourier --out "$out/base"
python -m geomem.experiments.train digits_fourier --gap-from "$out/zone/zone.json" --out "$out/gap"
for run in digits base gap; do
  python -m geomem.experiments.sample --run "$out/$run" --count 512 --out "$out/$run/samples.npz"
  python -m geomem.experiments.evaluate --samples "$out/$run/samples.npz" --run "$out/$run"
done
python -m geomem.experiments.benchmark_training --out "$out/benchmark_training"
