#!/usr/bin/env bash
# Reproduce results/: train the digits preset, sample it and evaluate the samples; then take all training images of the
# bundled CIFAR-10 images for samples, and plant changed copies of them.
set -euo pipefail
cd "$(dirname "$0")/../.."

python -m geomem.experiments.train digits --out runs/digits
python -m geomem.experiments.sample --run runs/digits --count 256 --overwrite --out runs/digits_samples.npz
python -m geomem.experiments.evaluate --samples runs/digits_samples.npz --run runs/digits \
  --overwrite --out experiments/evaluate/results/digits
python -m geomem.experiments.evaluate --samples cifar10_sample --dataset cifar10_sample --features none \
  --overwrite --out experiments/evaluate/results/cifar10_sample

# These need CIFAR-10 from TFDS and, for the photographs, scikit-image.
for name in planted photographs cifar10_duplicates; do
  mkdir -p "experiments/evaluate/results/$name"
  python "experiments/evaluate/$name.py" "runs/$name"
done
cp runs/planted/results.json experiments/evaluate/results/planted/
cp runs/photographs/results.json experiments/evaluate/results/photographs/
cp runs/cifar10_duplicates/{out/duplicates.csv,pairs.jpg} experiments/evaluate/results/cifar10_duplicates/
