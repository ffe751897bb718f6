#!/usr/bin/env bash
# The results in results/, from bundled images; of digits all but the page, which stays in runs/.
set -euo pipefail
cd "$(dirname "$0")/../.."
results=experiments/audit/results
for data in cifar10_sample digits; do
  python -m geomem.experiments.audit "$data" --out "runs/audit/$data"
  mkdir -p "$results/$data"
done
cp runs/audit/cifar10_sample/* "$results/cifar10_sample"
cp runs/audit/digits/{audit,run,zone}.json runs/audit/digits/{curves.csv,curves.png,growth.png} "$results/digits"
