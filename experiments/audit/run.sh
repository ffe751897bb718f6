#!/usr/bin/env bash
# Audit the bundled images and copy the results to results/ (for digits without the page).
set -euo pipefail
cd "$(dirname "$0")/../.."
results=experiments/audit/results
for data in cifar10_sample digits; do
  python -m geomem.experiments.audit "$data" --out "runs/audit/$data" --overwrite
  mkdir -p "$results/$data"
done
cp runs/audit/cifar10_sample/* "$results/cifar10_sample"
cp runs/audit/digits/{audit,run,zone}.json runs/audit/digits/{curves.csv,curves.png,growth.png,scale.png} "$results/digits"
