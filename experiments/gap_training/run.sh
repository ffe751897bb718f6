#!/usr/bin/env bash
# Usage: run.sh [digits | cifar10]. Runs stay in runs/gap_training; tables and figures are copied.
set -euo pipefail
cd "$(dirname "$0")/../.."
preset="${1:-digits}"
out="runs/gap_training/$preset"
results="experiments/gap_training/results/$preset"
python -m geomem.experiments.gap_training --preset "$preset" --out "$out"
mkdir -p "$results"
cp "$out"/*.{csv,json,png} "$results"
