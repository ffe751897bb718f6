#!/bin/sh
# Compile training, sampling and geometry for TPU slices, then print the README's table.
# Usage: sh experiments/compile/run.sh [OUT]. Needs: pip install -e '.[compile-tpu]'. Nothing is
# run. The large network takes 4 minutes per program on two idle cores, the others one.
set -eu
out=${1:-runs/compile}

check() {
  name=$1
  shift
  python -m geomem.experiments.compile "$@" --out "$out/$name"
}

for program in posterior nearest curves; do
  check "${program}_v5e-8" v5e:2x4 --program "$program"
done
check imagenet64_v5e-64 v5e:8x8 --program posterior --points 1281167 --shape 64 64 3
check digits_v5e-4 v5e:2x2 --preset digits
check sample_v5e-8 v5e:2x4 --program sample --compute bfloat16
check train_v5e-8 v5e:2x4 --compute bfloat16
check train_v6e-8 v6e:2x4 --compute bfloat16
check train_v5e-64 v5e:8x8 --compute bfloat16
check train_float32_v5e-8 v5e:2x4
check small_v5e-4 v5e:2x2 --preset edm_small --batch 512 --compute bfloat16
for batch in 1024 2048 4096; do # the largest that fits
  check "train_v5e-8_$batch" v5e:2x4 --compute bfloat16 --batch "$batch"
done
python "$(dirname "$0")/table.py" "$out"
