"""A gap, ready to paste into usual training code: EDM, diffusers, flow matching and geomem."""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

__all__ = ["settings"]

_EDM = string.Template("""\
# training/loss.py, EDMLoss.__call__, after
#   sigma = (rnd_normal * self.P_std + self.P_mean).exp()
low, high = $low, $high
while (inside := (sigma > low) & (sigma < high)).any():
    fresh = (torch.randn_like(sigma) * self.P_std + self.P_mean).exp()
    sigma = torch.where(inside, fresh, sigma)
""")
_EDM_SAMPLER = string.Template("""\
# generate.py, edm_sampler, after t_steps: one step over the gap, from edge to edge
low, high = $low, $high
outside = t_steps[(t_steps < low) | (t_steps > high)]
t_steps = torch.cat([outside, t_steps.new_tensor([low, high])]).sort(descending=True).values
""")
_DDPM = string.Template("""\
# instead of timesteps = torch.randint(0, noise_scheduler.config.num_train_timesteps, ...)
# Left out, first and last included, of 1,000: linear $linear, squaredcos_cap_v2 $cosine
low, high = $low, $high
abar = noise_scheduler.alphas_cumprod
sigmas = ((1 - abar) / abar) ** 0.5
allowed = torch.nonzero((sigmas < low) | (sigmas > high)).flatten()
timesteps = allowed[torch.randint(0, len(allowed), (bsz,))].to(clean_images.device)
""")
_FLOW = string.Template("""\
# x_t = (1 - t) * image + t * noise; where your data are at t = 1, put 1 - t for t
low, high = $low, $high
draw = torch.rand  # or, as Stable Diffusion 3, lambda n: torch.sigmoid(torch.randn(n))
t = draw(batch)
while (inside := (t > low) & (t < high)).any():
    t = torch.where(inside, draw(batch), t)
""")


def settings(advice: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(title, code) of each recipe.

    Args:
      advice: `recommendation` of audit.json: edm_sigma, ddpm_timesteps {linear, cosine}, flow_time
        (intervals), and command.
    """
    low, high = advice["edm_sigma"]
    steps = {
        name: "none" if interval is None else f"t = {interval[0]}..{interval[1]}"
        for name, interval in advice["ddpm_timesteps"].items()
    }
    start, end = advice["flow_time"]
    return [
        ("geomem", advice["command"]),
        (f"EDM: sigma in [{low:g}, {high:g}]", _EDM.substitute(low=low, high=high).rstrip()),
        ("EDM, sampling", _EDM_SAMPLER.substitute(low=low, high=high).rstrip()),
        (
            f"DDPM, diffusers: linear betas {steps['linear']}, cosine betas {steps['cosine']}",
            _DDPM.substitute(low=low, high=high, **steps).rstrip(),
        ),
        (
            f"Flow matching: t in [{start:g}, {end:g}], data at t = 0",
            _FLOW.substitute(low=start, high=end).rstrip(),
        ),
    ]
