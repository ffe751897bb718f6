#!/bin/sh
# Compile training, sampling and geometry for TPU slices. Usage: sh experiments/compile/run.sh [OUT]
# Needs: pip install -e '.[compile-tpu]'. Nothing is run. Minutes per program.
set -eu
out=${1:-runs/compile}

check() {
  name=$1
  shift
  python -m geomem.experiments.compile "$@" --out "$out/$name"
}

check train_v5e-8 v5e:2x4 --compute bfloat16
check train_v6e-8 v6e:2x4 --compute bfloat16
check train_v5e-64 v5e:8x8 --compute bfloat16
check sample_v5e-8 v5e:2x4 --program sample --compute bfloat16
check digits_v5e-4 v5e:2x2 --preset digits
for program in posterior nearest curves; do
  check "${program}_v5e-8" v5e:2x4 --program "$program"
done
check imagenet64_v5e-64 v5e:8x8 --program posterior --points 1281167 --shape 64 64 3
