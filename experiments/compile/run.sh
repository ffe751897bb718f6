#!/bin/sh
# Compile training, sampling and geometry for chips that you do not have, then print the README's table.
# Usage: sh experiments/compile/run.sh tpu|h100 [OUT]. Needs: pip install -e '.[compile-tpu]' or
# '.[compile-cuda]'. Nothing is run. For a TPU, training the large network takes 5 to 21 minutes to
# compile on two cores, the other programs one to three; for an H100 a minute and a half at most.
set -eu
kind=${1:-tpu} out=${2:-runs/compile}

check() {
  name=$1
  shift
  python -m geomem.experiments.compile "$@" --out "$out/$name"
}

if [ "$kind" = h100 ]; then
  check posterior_h100-1 h100:1 --program posterior
  check train_h100-8 h100:8 --compute bfloat16
  check train_h100-1_512 h100:1 --compute bfloat16
  check train_float32_h100-8 h100:8
  check small_h100-1 h100:1 --preset edm_small --compute bfloat16
else
  for program in posterior nearest curves; do
    check "${program}_v5e-8" v5e:2x4 --program "$program"
  done
  check imagenet64_v5e-64 v5e:8x8 --program posterior --points 1281167 --shape 64 64 3
  check digits_v5e-4 v5e:2x2 --preset digits
  check sample_v5e-8 v5e:2x4 --program sample --compute bfloat16
  check train_v5e-8 v5e:2x4 --compute bfloat16
  ( # all gradients in one all-reduce
    flags="--xla_jf_crs_combiner_threshold_in_bytes=1073741824"
    export LIBTPU_INIT_ARGS="${LIBTPU_INIT_ARGS:-} $flags --xla_jf_crs_combiner_threshold_count=4096"
    check train_v5e-8_one_all_reduce v5e:2x4 --compute bfloat16
  )
  check train_v5e-8_remat v5e:2x4 --compute bfloat16 --remat True
  check train_v6e-8 v6e:2x4 --compute bfloat16
  check train_v5e-64 v5e:8x8 --compute bfloat16
  check train_float32_v5e-8 v5e:2x4
  check small_v5e-4 v5e:2x2 --preset edm_small --batch 512 --compute bfloat16
  for batch in 1024 2048 4096; do # how large a batch fits
    check "train_v5e-8_$batch" v5e:2x4 --compute bfloat16 --batch "$batch"
  done
fi
python "$(dirname "$0")/table.py" "$out"
