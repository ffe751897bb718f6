#!/usr/bin/env bash
# Make the results in results/: evaluate samples of the digits run of experiments/train.
set -euo pipefail
cd "$(dirname "$0")/../.."

python -m geomem.experiments.train digits --out runs/digits
python -m geomem.experiments.sample --run runs/digits --count 256 --overwrite --out runs/digits_samples.npz
python -m geomem.experiments.evaluate --samples runs/digits_samples.npz --run runs/digits \
  --overwrite --out experiments/evaluate/results/digits
