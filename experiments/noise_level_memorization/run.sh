#!/usr/bin/env bash
# Usage: run.sh [digits | cifar16 | cifar10]. Trains the two networks of the preset in runs/ unless they exist.
set -euo pipefail
cd "$(dirname "$0")/../.."
preset="${1:-digits}"
python -m geomem.experiments.noise_level_memorization --preset "$preset" --overwrite --out "experiments/noise_level_memorization/results/$preset"
