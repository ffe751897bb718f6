"""The code of an audit's page, run in the real packages: no level inside the gap is used."""

import types

import numpy as np
import pytest

from geomem.diffusion import conventions, grids, schedules
from geomem.experiments.audit import findings, snippets
from geomem.geometry import danger_zone

torch = pytest.importorskip("torch")
ZONE = danger_zone.Zone(1.7, 5.0, 3.0, 0.9, 0.5, (1.6, 1.8), (4.9, 5.1), 1.0, False, False)
GAP = findings.gap(ZONE)
LOW, HIGH = GAP["sigma"]
START, END = GAP["flow_time"]
CODE = {title.partition(":")[0]: code for title, code in snippets.snippets(GAP)}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def run(title, **names):
    """Run the code of a title, and return the variables after it."""
    names |= {"torch": torch}
    exec(CODE[title], names)
    return types.SimpleNamespace(**names)


def check_levels(levels, low, high, *, least=None, most=None):
    """No level lies inside the gap; the edges, or levels close to them, are used."""
    levels = np.asarray(levels, np.float64)
    slack = 1e-5
    assert not ((levels > low + slack) & (levels < high - slack)).any()
    assert (levels <= low + slack).any()
    assert (levels >= high - slack).any()
    if least is not None:
        assert levels.min() < least
        assert levels.max() > most


def test_titles_name_the_gap():
    titles = " ".join(title for title, _ in snippets.snippets(GAP))
    assert "sigma in [1.7, 5]" in titles
    assert "linear betas t = 364..565, cosine betas t = " in titles
    assert f"t in [{START:g}, {END:g}]" in titles
    none = snippets.snippets({**GAP, "ddpm_timesteps": {"linear": [383, 573], "cosine": None}})
    assert "cosine betas none" in " ".join(title for title, _ in none)


def test_edm():
    loss = types.SimpleNamespace(P_mean=-1.2, P_std=1.2)
    sigma = (torch.randn(4000, 1, 1, 1) * loss.P_std + loss.P_mean).exp()
    trained = run("EDM, training", self=loss, sigma=sigma).sigma
    assert trained.shape == sigma.shape
    check_levels(trained, LOW, HIGH, least=0.1, most=6)

    asked = run("EDM, sampling", t_steps=torch.tensor(grids.edm_grid(18))).t_steps
    over = grids.skip_gaps(grids.edm_grid(18), schedules.gap(schedules.lognormal(), LOW, HIGH))
    np.testing.assert_allclose(asked, over)


@pytest.mark.parametrize("betas", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("kind", ["DDPMScheduler", "DDIMScheduler"])
def test_ddpm_and_ddim_in_diffusers(betas, kind):
    diffusers = pytest.importorskip("diffusers")
    scheduler = getattr(diffusers, kind)(beta_schedule=betas)
    sigmas = (((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod) ** 0.5).numpy()
    images = torch.zeros(4000, 1, 1, 1)
    names = {"noise_scheduler": scheduler, "bsz": len(images), "clean_images": images}
    trained = run("DDPM and DDIM in diffusers, training", **names).timesteps
    noised = scheduler.add_noise(
        images, torch.randn_like(images), trained
    )  # takes them as they are
    assert noised.shape == images.shape
    check_levels(sigmas[trained], LOW, HIGH, least=0.1, most=100)

    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    network = diffusers.UNet2DModel(
        8, 1, 1, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1, **blocks
    )
    asked = []

    def unet(x, t):
        asked.append(int(t))
        with torch.no_grad():
            return network(x, t)

    title = "DDPM and DDIM in diffusers, sampling"
    x = run(title, noise_scheduler=scheduler, unet=unet, shape=(2, 1, 8, 8)).x
    assert torch.isfinite(x).all()
    assert len(asked) > 30
    inside = conventions.timesteps_between(
        LOW, HIGH, conventions.linear_betas() if betas == "linear" else conventions.cosine_betas()
    )
    assert not set(asked) & set(inside)
    assert {inside.start - 1, inside.stop} <= set(asked)  # the nearest trained timesteps


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_in_diffusers(shift):
    diffusers = pytest.importorskip("diffusers")
    from diffusers.training_utils import compute_density_for_timestep_sampling

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    names = run(
        "Flow matching in diffusers, training",
        noise_scheduler=scheduler,
        bsz=4000,
        compute_density_for_timestep_sampling=compute_density_for_timestep_sampling,
    )
    assert names.timesteps.shape == (4000,)
    check_levels(names.timesteps / 1000, START, END, least=0.3, most=0.9)

    scheduler.set_timesteps(28)
    run("Flow matching in diffusers, sampling", scheduler=scheduler)
    x, asked = torch.ones(2, 3), []
    for t in scheduler.timesteps:
        asked.append(float(t) / 1000)
        x = scheduler.step(x, t, x).prev_sample  # velocity x
    check_levels(asked, START, END)
    assert np.isclose(
        np.abs(np.subtract.outer(asked, [START, END])).min(axis=0), 0, atol=1e-4
    ).all()
    steps = np.diff([*asked, 0])
    np.testing.assert_allclose(x, np.prod(1 + steps), rtol=1e-4)  # its own step sizes agree


def test_flow_matching():
    trained = run("Flow matching, training", batch=4000).t
    check_levels(trained, START, END, least=0.1, most=0.9)
    asked = run("Flow matching, sampling", times=torch.linspace(1, 0, 11)).times
    outside = [t for t in np.linspace(1, 0, 11) if not START < t < END]
    np.testing.assert_allclose(asked, sorted([*outside, START, END], reverse=True), atol=1e-6)
