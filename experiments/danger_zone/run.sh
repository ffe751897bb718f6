#!/usr/bin/env bash
# Reproduce everything in results/. All but the first need CIFAR-10 prepared by TFDS (TFDS_DATA_DIR).
set -euo pipefail
cd "$(dirname "$0")/../.."
run() { python -m geomem.experiments.danger_zone --overwrite --out "experiments/danger_zone/results/$1" "${@:2}"; }

run cifar10_sample
run cifar10_1k_random --dataset cifar10 --num-train 1000 --num-heldout 1000 --subset-seed 0
run cifar10_1k_paper --dataset cifar10 --protocol paper --subset-seed 0
run cifar10_2k_cars --dataset cifar10 --classes automobile --num-train 2000 --num-heldout 1000
run cifar10_50k --dataset cifar10 --num-heldout 2000 --num-base 2000
