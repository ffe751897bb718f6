#!/usr/bin/env bash
# The result in results/, from bundled images; and the same on other data, left out of the repository.
set -euo pipefail
cd "$(dirname "$0")/../.."
python -m geomem.experiments.audit cifar10_sample --out experiments/audit/results/cifar10_sample
python -m geomem.experiments.audit digits --out runs/audit/digits
