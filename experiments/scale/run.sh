#!/usr/bin/env bash
# Measure time and memory against the number of streamed images. Needs 0.7 GB in a temporary folder.
set -euo pipefail
cd "$(dirname "$0")/../.."
python -m geomem.experiments.scale --overwrite --out experiments/scale/results
