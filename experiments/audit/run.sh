#!/usr/bin/env bash
# The results in results/, from bundled images; of digits all but the page, which is in runs/.
set -euo pipefail
cd "$(dirname "$0")/../.."
results=experiments/audit/results
python -m geomem.experiments.audit cifar10_sample --out $results/cifar10_sample
python -m geomem.experiments.audit digits --out runs/audit/digits
mkdir -p $results/digits
cp runs/audit/digits/{audit,run,zone}.json runs/audit/digits/{curves.csv,curves.png,growth.png} $results/digits
