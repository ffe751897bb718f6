#!/usr/bin/env bash
# Usage: run.sh [digits | cifar16 | cifar10]. Runs stay in runs/repair; tables and figures are copied.
set -euo pipefail
cd "$(dirname "$0")/../.."
preset="${1:-digits}"
out="runs/repair/$preset"
results="experiments/repair/results/$preset"
python -m geomem.experiments.repair --preset "$preset" --out "$out"
mkdir -p "$results"
cp "$out"/*.{csv,json,png} "$results"
