#!/usr/bin/env bash
# Usage: study.sh NAME [PRESET]. Run a study that trains networks. Its runs stay in runs/NAME, so that
# an interrupted one resumes; tables and figures are copied to experiments/NAME/results.
set -euo pipefail
cd "$(dirname "$0")/.."
name="$1" preset="${2:-digits}"
out="runs/$name/$preset"
results="experiments/$name/results/$preset"
python -m "geomem.experiments.$name" --preset "$preset" --out "$out"
mkdir -p "$results"
cp "$out"/*.{csv,json,png} "$results"
