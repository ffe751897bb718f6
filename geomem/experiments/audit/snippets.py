"""Code that leaves a range of noise levels out of training and sampling, in four code bases."""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

__all__ = ["snippets"]

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
# skipped, of 1,000 timesteps: linear $linear,
# squaredcos_cap_v2 $cosine
low, high = $low, $high
abar = noise_scheduler.alphas_cumprod
sigmas = ((1 - abar) / abar) ** 0.5
trained = torch.nonzero((sigmas < low) | (sigmas > high)).flatten()
timesteps = trained[torch.randint(0, len(trained), (bsz,))]
timesteps = timesteps.to(clean_images.device)
""")
# EulerDiscreteScheduler with DDIM's configuration is DDIM without added noise. Unlike
# DDIMScheduler, it takes any timesteps.
_DDPM_SAMPLER = string.Template("""\
# DDIM, in place of scheduler.set_timesteps(50) and the sampling loop.
from diffusers import EulerDiscreteScheduler

low, high = $low, $high
scheduler = EulerDiscreteScheduler.from_config(noise_scheduler.config)
scheduler.set_timesteps(50)
steps = scheduler.timesteps.round().long().cpu()
abar = noise_scheduler.alphas_cumprod.cpu()
sigmas = ((1 - abar) / abar) ** 0.5
below = torch.nonzero(sigmas < low).flatten()[-1:]
above = torch.nonzero(sigmas > high).flatten()[:1]
outside = steps[(sigmas[steps] < low) | (sigmas[steps] > high)]
steps = torch.cat([outside, below, above]).unique().flip(0)
scheduler.set_timesteps(timesteps=steps.tolist())

x = torch.randn(shape) * scheduler.init_noise_sigma
for t in scheduler.timesteps:
    out = unet(scheduler.scale_model_input(x, t), t).sample
    x = scheduler.step(out, t, x).prev_sample
""")
_FLOW_DIFFUSERS = string.Template("""\
# in place of indices = (u * num_train_timesteps).long(), as in the
# Stable Diffusion 3 scripts; u is drawn as they do
low, high = $low, $high
levels = noise_scheduler.sigmas  # time of each index; 0 is data
count = noise_scheduler.config.num_train_timesteps
draw = lambda n: compute_density_for_timestep_sampling(
    "logit_normal", n, logit_mean=0.0, logit_std=1.0
)
indices = (draw(bsz) * count).long()
while (inside := (levels[indices] > low) & (levels[indices] < high)).any():
    indices[inside] = (draw(int(inside.sum())) * count).long()
timesteps = noise_scheduler.timesteps[indices]
""")
_FLOW_DIFFUSERS_SAMPLER = string.Template("""\
# FlowMatchEulerDiscreteScheduler, after scheduler.set_timesteps(28)
low, high = $low, $high
times = scheduler.sigmas[:-1]
outside = times[(times < low) | (times > high)]
times = torch.cat([outside, times.new_tensor([low, high])])
times = times.sort(descending=True).values
scheduler.sigmas = torch.cat([times, times.new_zeros(1)])
scheduler.timesteps = times * scheduler.config.num_train_timesteps
""")
_FLOW = string.Template("""\
# x_t = (1 - t) * image + t * noise; if your data is at t = 1, use 1 - t
low, high = $low, $high
draw = torch.rand  # or lambda n: torch.sigmoid(torch.randn(n))
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


def snippets(gap: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (title, code) for training and for sampling in each code base.

    Args:
      gap: `gap` of audit.json, with sigma, ddpm_timesteps (linear and cosine) and flow_time.
    """
    edges = dict(zip(("low", "high"), gap["sigma"], strict=True))
    times = dict(zip(("low", "high"), gap["flow_time"], strict=True))
    steps = {
        name: "none" if interval is None else f"t = {interval[0]}..{interval[1]}"
        for name, interval in gap["ddpm_timesteps"].items()
    }
    edm = "sigma in [{low:g}, {high:g}]".format(**edges)
    flow = "t in [{low:g}, {high:g}], data at t = 0".format(**times)
    ddpm = f"linear betas {steps['linear']}, cosine betas {steps['cosine']}"
    return [
        (f"EDM, training: {edm}", _EDM.substitute(edges)),
        ("EDM, sampling", _EDM_SAMPLER.substitute(edges)),
        (f"DDPM and DDIM in diffusers, training: {ddpm}", _DDPM.substitute(edges, **steps)),
        ("DDPM and DDIM in diffusers, sampling", _DDPM_SAMPLER.substitute(edges)),
        (f"Flow matching in diffusers, training: {flow}", _FLOW_DIFFUSERS.substitute(times)),
        ("Flow matching in diffusers, sampling", _FLOW_DIFFUSERS_SAMPLER.substitute(times)),
        (f"Flow matching, training: {flow}", _FLOW.substitute(times)),
        ("Flow matching, sampling", _FLOW_SAMPLER.substitute(times)),
    ]
