#!/usr/bin/env bash
# The time and memory of streamed points against their number; needs 0.7 GB in a temporary folder.
set -euo pipefail
cd "$(dirname "$0")/../.."
python -m geomem.experiments.scale --out experiments/scale/results
