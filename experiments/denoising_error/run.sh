#!/usr/bin/env bash
# Usage: run.sh [digits | cifar16 | cifar10]. Trains the two networks of the preset in runs/ unless they exist.
set -euo pipefail
cd "$(dirname "$0")/../.."
preset="${1:-digits}"
python -m geomem.experiments.denoising_error --preset "$preset" --overwrite --out "experiments/denoising_error/results/$preset"
