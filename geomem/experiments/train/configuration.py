"""What a training run is: its flags, the presets, and the network and recipe that they describe."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from geomem import data
from geomem.diffusion import augment, preconditioning, schedules, training_step, unet
from geomem.experiments.common import flags

__all__ = [
    "ABOUT",
    "MAY_CHANGE",
    "PRESETS",
    "Config",
    "base_schedule",
    "build",
    "facts",
    "from_facts",
    "load_data",
    "resolve",
]


@dataclasses.dataclass(frozen=True)
class Config:
    """Train an EDM denoiser; the same command on the same folder resumes.

    Attributes:
      out: the run folder.
      resume: whether to go on with a run that the folder holds.
      dataset: as for geomem.data.load, a name or a path.
      heldout: held-out fraction or path of the data set.
      heldout_seed: which images a held-out fraction takes.
      resize: side length for a folder of images.
      num_train: number of training images; default all.
      classes: class names to keep; default all.
      subset_seed: shuffle before the first num_train are taken; default the canonical order.
      schedule: training noise; default gap where one is given, else lognormal.
      gap: edges of the gap in the noise level sigma.
      gap_from: a zone.json whose low and high are the gap.
      keep: thin the gap to this fraction instead of removing it.
      noise_mean: mean of ln sigma.
      noise_std: standard deviation of ln sigma.
      channels: base channels of the network.
      multipliers: channels of each resolution level over the base.
      blocks: residual blocks per level.
      attention: resolutions with self-attention.
      dropout: dropout probability.
      embedding: embedding of the noise level.
      adaptive_scale: whether the noise level also scales each block's channels.
      patch: side of the patches folded into channels; 2 suits small machines.
      sigma_data: standard deviation that the preconditioning assumes; 0 measures the data's.
      compute: exact float32, float32 with fast products, or bfloat16; parameters are float32.
      batch: images per step, over all devices.
      lr: Adam's learning rate.
      lr_ramp_kimg: thousands of images over which the rate rises.
      ema_halflife_kimg: half-life of the averaged parameters, in thousands of images.
      ema_ramp: the half-life is at most this fraction of the images seen.
      augment: probability of each augmentation; 0 turns them and the x-flip off.
      seed: of the initial parameters and of all steps.
      kimg: length of the run, in thousands of images; may be raised later.
      log_every: steps per line of metrics.jsonl, which holds their mean.
      checkpoint_every: steps per checkpoint, a multiple of log_every.
      keep_checkpoints: how many of the newest to keep.
      samples: images in the grid written at each checkpoint.
      steps_per_dispatch: steps per launch from Python; default 1 on a CPU, 10 elsewhere.
      distributed: join a multi-host run by jax.distributed.initialize(); GEOMEM_DISTRIBUTED=1 in
        the environment does so for every experiment.
    """

    out: str = "runs/edm_cifar10"
    resume: bool = True

    dataset: str = "cifar10"
    heldout: float | str | None = None
    heldout_seed: int = 0
    resize: int | None = None
    num_train: int | None = None
    classes: tuple[str, ...] = ()
    subset_seed: int | None = None

    schedule: Literal["lognormal", "gap", "dummy"] | None = None
    gap: tuple[float, float] | None = None
    gap_from: str | None = None
    keep: float = 0.0
    noise_mean: float = -1.2
    noise_std: float = 1.2

    channels: int = 128
    multipliers: tuple[int, ...] = (2, 2, 2)
    blocks: int = 4
    attention: tuple[int, ...] = (16,)
    dropout: float = 0.13
    embedding: Literal["positional", "fourier"] = "positional"
    adaptive_scale: bool = False
    patch: int = 1
    sigma_data: float = 0.5
    compute: Literal["float32", "tf32", "bfloat16"] = "float32"

    batch: int = 512
    lr: float = 1e-3
    lr_ramp_kimg: float = 10_000
    ema_halflife_kimg: float = 500
    ema_ramp: float = 0.05
    augment: float = 0.12
    seed: int = 0

    kimg: float = 200_000
    log_every: int = 100
    checkpoint_every: int = 5000
    keep_checkpoints: int = 3
    samples: int = 64
    steps_per_dispatch: int | None = None
    distributed: bool = False

    @property
    def steps(self) -> int:
        """The run's length in steps."""
        return math.ceil(self.kimg * 1000 / self.batch)


PRESETS = {
    "edm_cifar10": Config(),
    "edm_small": Config(out="runs/edm_small", num_train=1000, batch=64, augment=0, kimg=12_000),
    "digits": Config(
        out="runs/digits",
        dataset="digits",
        num_train=128,
        channels=32,
        multipliers=(1,),
        blocks=1,
        attention=(),
        dropout=0,
        patch=2,
        batch=64,
        lr=4e-3,
        lr_ramp_kimg=10,
        ema_halflife_kimg=10,
        augment=0,
        kimg=400,
        checkpoint_every=2500,
    ),
    "digits_gap": Config(
        out="runs/digits_gap",
        dataset="digits",
        num_train=128,
        subset_seed=0,
        channels=32,
        multipliers=(1, 2),
        blocks=1,
        attention=(),
        dropout=0,
        embedding="fourier",
        adaptive_scale=True,
        patch=2,
        sigma_data=0,
        noise_mean=-0.787,  # EDM's -1.2, for pixels of standard deviation 0.756 instead of 0.5
        batch=64,
        lr=2e-3,
        lr_ramp_kimg=12.8,
        ema_halflife_kimg=8.85,
        augment=0,
        kimg=168.96,
        log_every=220,
        checkpoint_every=660,
        keep_checkpoints=4,
        samples=0,
    ),
}

ABOUT = {
    "edm_cifar10": "EDM's own CIFAR-10 setting: 55.7M parameters, 200M images.",
    "edm_small": "The same network on 1,000 images: batch 64, no augmentation.",
    "digits_gap": "Digits with a network that a gap keeps from memorizing (Fourier embedding).",
    "digits": "128 of scikit-learn's 8x8 digits, overfitted in minutes on a CPU.",
}

# What a resumed run may have otherwise; the images themselves are held to their hash.
MAY_CHANGE = (
    "config.out",
    "config.resume",
    "config.dataset",
    "config.heldout",
    "config.heldout_seed",
    "config.kimg",
    "config.checkpoint_every",
    "config.keep_checkpoints",
    "config.samples",
    "config.steps_per_dispatch",
    "config.distributed",
)

_POSITIVE = (
    *("batch", "kimg", "lr", "noise_std", "channels", "blocks", "patch"),
    *("log_every", "checkpoint_every", "keep_checkpoints"),
)


def resolve(config: Config) -> Config:
    """The configuration with its schedule named and the gap as two numbers.

    Raises:
      ValueError: flags out of their range or that contradict each other, an unusable zone.
    """
    for name in _POSITIVE:
        if not getattr(config, name) > 0:
            raise ValueError(f"{name}: {getattr(config, name)}, wanted a positive number")
    for name in ("dropout", "augment"):
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name}: {getattr(config, name)}, wanted a probability below 1")
    if config.gap and config.gap_from:
        raise ValueError("gap: given twice, wanted either --gap or --gap-from")
    edges = flags.read_zone(config.gap_from) if config.gap_from else config.gap
    schedule = config.schedule or ("gap" if edges else "lognormal")
    if schedule == "lognormal" and edges:
        raise ValueError("schedule: lognormal, wanted gap or dummy where a gap is given")
    if schedule != "lognormal" and not edges:
        raise ValueError(f"schedule: {schedule}, wanted --gap LOW HIGH or --gap-from FILE with it")
    if config.keep and schedule != "gap":
        raise ValueError(f"keep: {config.keep}, wanted a gap (and schedule gap) for it to thin")
    if config.checkpoint_every % config.log_every:
        raise ValueError(
            f"checkpoint_every: {config.checkpoint_every}, wanted a multiple of log_every "
            f"({config.log_every})"
        )
    return dataclasses.replace(config, schedule=schedule, gap=edges, gap_from=None)


def load_data(config: Config) -> data.Dataset:
    """The training images, all that there are in the held-out ones.

    Raises:
      ValueError: unusable data.
    """
    dataset = data.load(
        config.dataset, heldout=config.heldout, resize=config.resize, seed=config.heldout_seed
    )
    return dataset.subset(classes=config.classes, count=config.num_train, seed=config.subset_seed)


def facts(config: Config, split: data.Split) -> dict[str, Any]:
    """What defines a run, as JSON values: a resolved configuration and its training images."""
    return {
        "config": dataclasses.asdict(config),
        "data": {
            "sha256": split.sha256(),
            "image_shape": list(split.pixels.shape[1:]),
            "sigma_data": config.sigma_data or float(np.std(split.images)),
        },
    }


def from_facts(facts: Mapping[str, Any]) -> Config:
    """The resolved configuration that `facts` was made from."""
    fields = facts["config"].items()
    return Config(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields})


def base_schedule(config: Config) -> schedules.Schedule:
    """The training noise before any gap."""
    return schedules.lognormal(config.noise_mean, config.noise_std)


def build(facts: Mapping[str, Any]) -> tuple[preconditioning.EDMDenoiser, training_step.Recipe]:
    """The denoiser (without parameters) and the training step of a run.

    Raises:
      ValueError: an unusable schedule.
    """
    config = from_facts(facts)
    network = unet.UNet(
        channels=config.channels,
        multipliers=config.multipliers,
        blocks=config.blocks,
        attention=config.attention,
        dropout=config.dropout,
        embedding=config.embedding,
        augment_dim=augment.LABELS if config.augment else 0,
        adaptive_scale=config.adaptive_scale,
        patch=config.patch,
        compute=config.compute,
    )
    schedule = base_schedule(config)
    if config.schedule == "gap":
        schedule = schedules.gap(schedule, *config.gap, keep=config.keep)
    elif config.schedule == "dummy":
        schedule = schedules.dummy(schedule, *config.gap)
    recipe = training_step.Recipe(
        schedule=schedule,
        batch=config.batch,
        lr=config.lr,
        lr_ramp=config.lr_ramp_kimg * 1000,
        ema_halflife=config.ema_halflife_kimg * 1000,
        ema_ramp=config.ema_ramp,
        augment=config.augment,
        seed=config.seed,
        window=config.log_every,
    )
    return preconditioning.EDMDenoiser(network, facts["data"]["sigma_data"]), recipe
