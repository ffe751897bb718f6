#!/usr/bin/env bash
# Usage: run.sh [digits | cifar16 | cifar10]; see ../study.sh.
exec "$(dirname "$0")/../study.sh" memorization_onset "$@"
