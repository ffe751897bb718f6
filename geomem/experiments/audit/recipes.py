"""What to change: the steps that an audit recommends, and code for a gap in the training noise."""

from __future__ import annotations

import shlex
import string
from collections.abc import Mapping
from typing import Any

__all__ = ["settings", "steps", "wrap"]

_DUPLICATES = (
    "Removing duplicates lowered the number of training images that Carlini et al. (2023, arXiv "
    "2301.13188) could extract from models of CIFAR-10."
)
_EARLY_STOPPING = (
    "Keep checkpoints while you train, generate images with each, and compare them with the "
    "training images. Use the last checkpoint that does not copy. The commands below do this in "
    "geomem; repeat the last two commands for each checkpoint.",
    "Models learn to generate good images before they memorize, and with more training images "
    "they memorize later (Bonnaire et al. 2025, arXiv 2505.17638). geomem's runs on digits agree: "
    "memorization grew with training time, and was close to zero at the first checkpoint "
    "(experiments/gap_training).",
)
_GAP_RESULTS = (
    "In the paper, on 2,000 CIFAR-10 images of cars, a gap over the danger zone lowers "
    "memorization from 78.8% to 0.7% of the samples and improves FID from 3.72 to 2.35. geomem has "
    "not repeated this experiment. In geomem's runs, all on small images of digits, a gap helped "
    "(experiments/gap_training), but it did little with EDM's original training noise or noise "
    "embedding (experiments/gap_sweep, one run each). The geomem command below uses the settings "
    "with which it helped."
)
_GAP_PRICE = (
    "A gap can cost quality. The network is not trained inside the gap, so do not use it there: "
    "let the sampler cross the gap in one step. Leftover noise can hide copies, so check the "
    "quality of the generated images as well. Instead of removing the interval, you can also train "
    "on it less often (in geomem with the flag --keep)."
)

_EDM = string.Template("""\
# training/loss.py, EDMLoss.__call__, after
#   sigma = (rnd_normal * self.P_std + self.P_mean).exp()
low, high = $low, $high
while (inside := (sigma > low) & (sigma < high)).any():
    redrawn = (torch.randn_like(sigma) * self.P_std + self.P_mean).exp()
    sigma = torch.where(inside, redrawn, sigma)
""")
_EDM_SAMPLER = string.Template("""\
# generate.py, edm_sampler, after t_steps is computed
low, high = $low, $high
outside = t_steps[(t_steps < low) | (t_steps > high)]
t_steps = torch.cat([outside, t_steps.new_tensor([low, high])])
t_steps = t_steps.sort(descending=True).values
""")
_DDPM = string.Template("""\
# instead of timesteps = torch.randint(0, num_train_timesteps, ...)
# The gap, of 1,000 timesteps: linear $linear; squaredcos_cap_v2 $cosine
low, high = $low, $high
abar = noise_scheduler.alphas_cumprod
sigmas = ((1 - abar) / abar) ** 0.5
trained = torch.nonzero((sigmas < low) | (sigmas > high)).flatten()
timesteps = trained[torch.randint(0, len(trained), (bsz,))]
timesteps = timesteps.to(clean_images.device)
""")
_DDPM_SAMPLER = string.Template("""\
# instead of noise_scheduler.set_timesteps(50), with a DDPMScheduler
low, high = $low, $high
abar = noise_scheduler.alphas_cumprod.cpu()
sigmas = ((1 - abar) / abar) ** 0.5
noise_scheduler.set_timesteps(50)
steps = noise_scheduler.timesteps.cpu()
below = torch.nonzero(sigmas < low).flatten()[-1:]
above = torch.nonzero(sigmas > high).flatten()[:1]
outside = steps[(sigmas[steps] < low) | (sigmas[steps] > high)]
steps = torch.cat([outside, below, above]).unique().flip(0)
noise_scheduler.set_timesteps(timesteps=steps.tolist())
""")
_FLOW = string.Template("""\
# x_t = (1 - t) * image + t * noise; if your data is at t = 1, use 1 - t
low, high = $low, $high
draw = torch.rand  # Stable Diffusion 3: lambda n: torch.sigmoid(torch.randn(n))
t = draw(batch)
while (inside := (t > low) & (t < high)).any():
    t = torch.where(inside, draw(batch), t)
""")
_FLOW_SAMPLER = string.Template("""\
# after the sampler's times are chosen, from 1 (noise) to 0 (data)
low, high = $low, $high
outside = times[(times < low) | (times > high)]
times = torch.cat([outside, times.new_tensor([low, high])])
times = times.sort(descending=True).values
""")


def steps(report: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Return (lead, paragraphs) of each step, the most reliable first.

    Args:
      report: the content of audit.json.
    """
    if report["duplicates"]["groups_in_training"]:
        search = (
            "Look at the groups under Duplicates, keep one image of each, and audit the images "
            "again: the commands below train on the images as they are now."
        )
    else:
        search = (
            "This audit found no duplicates among the training images. Look for rotated, recolored "
            "and strongly cropped copies by other means."
        )
    advice, wide = report["recommendation"], report["wider_zone"]
    if advice is None:
        lead = "Leave the training noise as it is."
        gap = ["No gap to recommend: there is no danger zone at this threshold."]
    else:
        low, high = advice["gap"]
        lead = "Consider a gap in the training noise."
        gap = [
            f"Do not train at noise levels between {low:g} and {high:g}. Compare the result with "
            "early stopping before you rely on it.",
            _GAP_RESULTS,
            _GAP_PRICE,
        ]
        if report["zone"]["threshold"] > wide["threshold"]:
            gap.append(
                f"A wider gap is the zone at a threshold of {wide['threshold']:g}, here "
                f"{wide['low']:.3g} to {wide['high']:.3g}. On digits it left fewer copies than the "
                "zone at 0.8 (experiments/gap_training)."
            )
    return [
        ("Remove duplicates.", [search, _DUPLICATES]),
        ("Stop training early.", list(_EARLY_STOPPING)),
        (lead, gap),
    ]


def settings(advice: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (title, code) of each recipe.

    Args:
      advice: `recommendation` of audit.json, with the intervals edm_sigma, ddpm_timesteps (linear
        and cosine) and flow_time, and the command.
    """
    edges = dict(zip(("low", "high"), advice["edm_sigma"], strict=True))
    times = dict(zip(("low", "high"), advice["flow_time"], strict=True))
    steps = {
        name: "none" if interval is None else f"t = {interval[0]}..{interval[1]}"
        for name, interval in advice["ddpm_timesteps"].items()
    }
    edm = "sigma in [{low:g}, {high:g}]".format(**edges)
    flow = "t in [{low:g}, {high:g}], data at t = 0".format(**times)
    ddpm = f"linear betas {steps['linear']}, cosine betas {steps['cosine']}"
    return [
        ("geomem, training with the gap", wrap(advice["command"])),
        (f"EDM, training: {edm}", _EDM.substitute(edges)),
        ("EDM, sampling", _EDM_SAMPLER.substitute(edges)),
        (f"DDPM in diffusers, training: {ddpm}", _DDPM.substitute(edges, **steps)),
        ("DDPM in diffusers, sampling", _DDPM_SAMPLER.substitute(edges)),
        (f"Flow matching, training: {flow}", _FLOW.substitute(times)),
        ("Flow matching, sampling", _FLOW_SAMPLER.substitute(times)),
    ]


def wrap(command: str, width: int = 80) -> str:
    r"""Return a shell command in lines of at most `width`, broken only before flags.

    >>> print(wrap("geomem train digits_fourier --num-train 128 --out 'my runs'", 46))
    geomem train digits_fourier --num-train 128 \
      --out 'my runs'
    """
    parts = []
    for word in shlex.split(command):
        if word.startswith("--") or not parts:
            parts.append([])
        parts[-1].append(word)
    lines = [""]
    for part in map(shlex.join, parts):
        if lines[-1] and len(lines[-1]) + 1 + len(part) + 2 > width:
            lines.append(" ")
        lines[-1] = f"{lines[-1]} {part}" if lines[-1] else part
    return " \\\n".join(lines)
