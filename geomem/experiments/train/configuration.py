"""The configuration of a training run, and the network and training step that it describes."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from geomem import data, paths
from geomem.diffusion import augment, preconditioning, schedules, training_step, unet
from geomem.experiments.common import dataclass_flags, image_flags
from geomem.experiments.common.dataclass_flags import flag


@dataclasses.dataclass(frozen=True)
class Config(image_flags.ImageFlags):
    """Train an EDM denoiser, with or without a gap in its noise levels.

    The same command on the same folder resumes the run.
    """

    out: str = "runs/edm_cifar10"
    """The run folder."""
    kimg: float = flag(200_000, most=1e9)
    """Length of the run in thousands of images; may be raised later."""
    seed: int = 0
    """Seed of the initial parameters and of all steps."""

    dataset: str = flag("cifar10", "data", positional=True)

    gap: tuple[float, float] | None = flag(None, "noise")
    """Edges of the gap: noise levels in this interval are left out of training."""
    gap_from: str | None = flag(None, "noise")
    """A zone.json file with the edges of the gap, instead of --gap."""
    keep: float = flag(0.0, "noise", least=0)
    """Thin the gap to this fraction of its density instead of removing it."""
    schedule: Literal["lognormal", "gap", "dummy"] | None = flag(None, "noise")
    """Training noise. dummy trains at the noise levels in the gap too, but on Gaussian images in
    place of training images; default: gap if one is given, else lognormal."""
    noise_mean: float = flag(-1.2, "noise", least=-15, most=15)
    """Mean of ln sigma."""
    noise_std: float = flag(1.2, "noise", least=1e-3, most=10)
    """Standard deviation of ln sigma."""

    channels: int = flag(128, "network", most=2**14)
    """Base number of channels."""
    multipliers: tuple[int, ...] = flag((2, 2, 2), "network", most=64)
    """Channels of each resolution level as multiples of the base."""
    blocks: int = flag(4, "network", most=64)
    """Residual blocks per level."""
    attention: tuple[int, ...] = flag((16,), "network")
    """Resolutions with self-attention."""
    dropout: float = flag(0.13, "network", least=0)
    """Dropout probability."""
    embedding: Literal["positional", "fourier"] = flag("positional", "network")
    """Embedding of the noise level."""
    adaptive_scale: bool = flag(False, "network")
    """Scale each block's channels by the noise level in addition to shifting them."""
    patch: int = flag(1, "network", most=256)
    """Side of the patches that are folded into channels; 2 suits small machines."""
    sigma_data: float = flag(0.5, "network", least=0, most=1e3)
    """Standard deviation of the pixels, for the preconditioning; 0 measures the training images."""
    compute: Literal["float32", "tf32", "bfloat16"] = flag("float32", "network")
    """Exact float32, float32 with fast products, or bfloat16. Parameters are float32."""

    batch: int = flag(512, "training", most=2**20)
    """Images per step, in total over all devices."""
    microbatch: int | None = flag(None, "training", most=2**20)
    """Images per device whose gradient is computed at once, to save memory; default: all."""
    remat: bool = flag(False, "training")
    """Compute activations again in the backward pass, to save memory; takes a third longer."""
    lr: float = flag(1e-3, "training", most=1e3)
    """Adam's learning rate."""
    lr_ramp_kimg: float = flag(10_000, "training", least=0)
    """Thousands of images over which the learning rate rises from 0."""
    ema_halflife_kimg: float = flag(500, "training")
    """Half-life of the parameters' moving average, in thousands of images."""
    ema_ramp: float = flag(0.05, "training", least=1e-6)
    """Upper limit of the half-life, as a fraction of the images seen so far."""
    augment: float = flag(0.12, "training", least=0)
    """Probability of each augmentation; 0 turns them off, including the x-flip."""

    samples: int = flag(64, "output", least=0, most=2**16)
    """Number of images in the grid that is sampled at each checkpoint."""
    checkpoint_every: int = flag(5000, "output")
    """Steps between checkpoints, a multiple of --log-every."""
    keep_checkpoints: int = flag(3, "output")
    """Number of newest checkpoints to keep."""
    watch: bool = flag(False, "output")
    """Look for copies at each checkpoint: memorized fraction, distance and error on training
    against held-out images, and quality; written to metrics.jsonl and TensorBoard."""
    watch_samples: int = flag(256, "output", least=2, most=2**16)
    """Number of images that --watch samples."""
    stop_when_copying: bool = flag(False, "output")
    """End the run at the first checkpoint at which --watch sees copies."""
    log_every: int = flag(100, "output")
    """Steps per line of metrics.jsonl; a line holds means over its steps."""

    resume: bool = flag(True, "advanced")
    """Resume the run in the folder."""
    steps_per_dispatch: int | None = flag(None, "advanced")
    """Steps per launch from Python; default: 1 on a CPU, 10 elsewhere."""
    parallel: Literal["pmap", "shard_map"] | None = flag(None, "advanced")
    """What maps the step over devices: jax.pmap, or (in one process) jax.shard_map under jit;
    default: the latter on CPUs."""
    distributed: bool = flag(False, "advanced")
    """Join a multi-host run with jax.distributed.initialize(); GEOMEM_DISTRIBUTED=1 in the
    environment does this for every command."""

    @property
    def steps(self) -> int:
        """Length of the run in steps."""
        return math.ceil(self.kimg * 1000 / self.batch)


# Facts that a resumed run may change. The hash of the images must stay the same.
MAY_CHANGE = {
    f"config.{name}"
    for name in (
        *("out", "resume", "dataset", "heldout", "heldout_seed", "num_heldout", "kimg", "samples"),
        *("checkpoint_every", "keep_checkpoints", "steps_per_dispatch", "distributed"),
        *("watch", "watch_samples", "stop_when_copying"),
        *("microbatch", "remat", "parallel"),
    )
}
_POSITIVE = (
    *("batch", "kimg", "lr", "noise_std", "channels", "blocks", "patch"),
    *("log_every", "checkpoint_every", "keep_checkpoints"),
)
_OF_NETWORK = (  # fields that UNet has too
    *("channels", "multipliers", "blocks", "attention", "dropout"),
    *("embedding", "adaptive_scale", "patch", "compute", "remat"),
)


def resolve(config: Config) -> Config:
    """Return the configuration with its schedule named and its gap as two numbers."""
    for name in _POSITIVE:
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be positive, got {getattr(config, name)}.")
    for name in ("dropout", "augment"):
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name} must be in [0, 1), got {getattr(config, name)}.")
    if config.steps >= 2**31:
        raise ValueError(f"kimg must give fewer than 2^31 steps, got {config.kimg:g}.")
    if config.checkpoint_every % config.log_every:
        raise ValueError(
            f"checkpoint_every must be a multiple of log_every ({config.log_every}), got "
            f"{config.checkpoint_every}."
        )
    if config.stop_when_copying and not config.watch:
        raise ValueError("stop_when_copying must be False without watch, got True.")
    if config.gap and config.gap_from:
        raise ValueError("gap and gap_from must not both be given.")
    edges = read_zone(config.gap_from) if config.gap_from else config.gap
    schedule = config.schedule or ("gap" if edges else "lognormal")
    if schedule == "lognormal" and edges:
        raise ValueError("schedule must be gap or dummy when a gap is given, got lognormal.")
    if schedule != "lognormal" and not edges:
        raise ValueError(f"gap must be given for the schedule {schedule}, got None.")
    if config.keep and schedule != "gap":
        raise ValueError(f"keep must be 0 without a gap to thin, got {config.keep}.")
    return dataclasses.replace(config, schedule=schedule, gap=edges, gap_from=None)


def read_zone(path: paths.AnyPath, argument: str = "gap_from") -> tuple[float, float]:
    """Return the edges (low, high) of the danger zone in a zone.json; errors name `argument`."""
    try:
        zone = paths.read_json(path)
        low, high = zone["low"], zone["high"]
    except (ValueError, KeyError, TypeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        message = f"{argument} must be a JSON file with low and high, got {path} ({reason})."
        raise ValueError(message) from None
    if low is None or high is None:
        raise ValueError(f"{argument} must hold a danger zone, got {path}: low and high are null.")
    schedules.check_interval(argument, low, high)
    return low, high


def facts(config: Config, split: data.Split) -> dict[str, Any]:
    """Return the facts that define a run, as JSON values: its resolved configuration and images."""
    return {
        "config": dataclasses.asdict(config),
        "data": {
            "sha256": split.sha256(),
            "image_shape": list(split.pixels.shape[1:]),
            "sigma_data": config.sigma_data or float(np.std(split.images)),
        },
    }


def from_facts(facts: Mapping[str, Any]) -> Config:
    """Return the resolved configuration in `facts`.

    Raises:
      ValueError, KeyError, TypeError: they are not those of a run.
    """
    return dataclass_flags.from_json(Config, facts["config"])


def base_schedule(config: Config) -> schedules.Schedule:
    """Return the training noise without the gap."""
    return schedules.lognormal(config.noise_mean, config.noise_std)


def build(facts: Mapping[str, Any]) -> tuple[preconditioning.EDMDenoiser, training_step.Recipe]:
    """Return the denoiser (without parameters) and the training step of a run."""
    config = from_facts(facts)
    network = unet.UNet(
        **{name: getattr(config, name) for name in _OF_NETWORK},
        augment_dim=augment.LABELS if config.augment else 0,
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
        microbatch=config.microbatch,
    )
    return preconditioning.EDMDenoiser(network, facts["data"]["sigma_data"]), recipe
