"""The presets of the train command: EDM's setting, and networks that train on small machines."""

import dataclasses

from geomem.experiments.train.configuration import Config

_TINY = Config(
    dataset="digits",
    num_train=128,
    channels=32,
    multipliers=(1,),
    blocks=1,
    attention=(),
    dropout=0,
    patch=2,
    batch=64,
    augment=0,
)
PRESETS = {
    "edm_cifar10": Config(),
    "edm_small": Config(out="runs/edm_small", num_train=1000, batch=64, augment=0, kimg=12_000),
    "digits": dataclasses.replace(
        _TINY,
        out="runs/digits",
        lr=4e-3,
        lr_ramp_kimg=10,
        ema_halflife_kimg=10,
        kimg=400,
        checkpoint_every=2500,
    ),
    "digits_fourier": dataclasses.replace(
        _TINY,
        out="runs/digits_fourier",
        subset_seed=0,
        multipliers=(1, 2),
        embedding="fourier",
        adaptive_scale=True,
        sigma_data=0,
        noise_mean=-0.787,  # EDM's -1.2, shifted for pixels of standard deviation 0.756, not 0.5
        lr=2e-3,
        lr_ramp_kimg=12.8,
        ema_halflife_kimg=8.85,
        kimg=168.96,
        log_every=220,
        checkpoint_every=660,
        keep_checkpoints=4,
        samples=0,
    ),
}
PRESETS["cifar16"] = dataclasses.replace(
    PRESETS["digits_fourier"],
    out="runs/cifar16",
    dataset="cifar10_sample",
    resize=16,
    num_train=100,
    noise_mean=-1.2,  # EDM's
    kimg=211.2,
)
PRESETS["digits_gap"] = PRESETS["digits_fourier"]

ABOUT = {
    "edm_cifar10": "EDM's CIFAR-10 setting: 55.7M parameters, 200M images.",
    "edm_small": "The same network on 1,000 images: batch 64, no augmentation.",
    "digits": "128 of scikit-learn's 8x8 digits; overfits in minutes on a CPU.",
    "digits_fourier": "128 other digits; Fourier embedding of the noise level, as in gap-training.",
    "cifar16": "100 of CIFAR-10's images at 16x16; copies most after 150,000 images.",
    "digits_gap": "The former name of digits_fourier. It has no gap unless one is given.",
}

# Trained at all measured noise levels, digits until the error at the largest ones converges.
DIGITS_ALL_NOISE = dataclasses.replace(
    PRESETS["digits"],
    noise_mean=0.0,
    noise_std=2.0,
    batch=128,
    ema_halflife_kimg=200,
    ema_ramp=0.25,
    kimg=1600,
)
CIFAR16_ALL_NOISE = dataclasses.replace(PRESETS["cifar16"], noise_mean=0.0, noise_std=2.0, kimg=300)
