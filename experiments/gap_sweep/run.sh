#!/usr/bin/env bash
# Usage: run.sh [digits | cifar10]. Runs stay in runs/gap_sweep; tables and figures are copied.
set -euo pipefail
cd "$(dirname "$0")/../.."
preset="${1:-digits}"
out="runs/gap_sweep/$preset"
results="experiments/gap_sweep/results/$preset"
python -m geomem.experiments.gap_sweep --preset "$preset" --out "$out"
mkdir -p "$results"
cp "$out"/*.{csv,json,png} "$results"
