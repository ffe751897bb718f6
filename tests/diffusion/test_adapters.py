"""Networks of other libraries as denoisers, against those libraries' own predictions."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from geomem.diffusion import adapters, conventions, grids, sampler
from geomem.metrics import memorization

ABAR = np.cumprod(1 - conventions.linear_betas())
INPUTS = {
    "ddpm": adapters.ddpm_input(ABAR),
    "flow": adapters.flow_input(1000),
    "edm": adapters.edm_input(),
}


@pytest.mark.parametrize("given", INPUTS)
@pytest.mark.parametrize("prediction", adapters.PREDICTIONS)
def test_every_prediction_gives_the_clean_image(given, prediction, rng):
    x0, eps = rng.normal(size=(2, 3, 5)).astype(np.float32)
    sigma = np.float32([0.02, 1.0, 30.0])
    a = np.asarray(INPUTS[given].scale(sigma))[:, None]
    p, q = adapters.PREDICTIONS[prediction](a, a * sigma[:, None])
    denoiser = adapters.adapt(lambda x, t: p * eps + q * x0, prediction, INPUTS[given])
    # A prediction of the noise loses digits of x_0 in proportion to sigma.
    np.testing.assert_allclose(
        denoiser(x0 + sigma[:, None] * eps, sigma), x0, atol=2e-6 * sigma.max()
    )


def test_ddpm_times_are_the_timesteps_of_their_noise_levels():
    levels = conventions.ddpm_sigmas(conventions.linear_betas())
    given = adapters.ddpm_input(ABAR)
    np.testing.assert_allclose(given.time(levels), np.arange(1000), atol=2e-3)
    np.testing.assert_allclose(given.scale(levels), np.sqrt(ABAR), rtol=1e-6)
    np.testing.assert_array_equal(given.time(np.array([1e-6, 1e6])), [0, 999])
    # A zero terminal signal-to-noise ratio has no finite noise level.
    assert adapters.ddpm_input(np.array([0.9, 0.5, 0.0])).time(np.array([1e6])) == 1


@pytest.mark.parametrize("abar", [[0.5], [0.5, 0.6], [[0.9, 0.5]], [1.0, 0.5], [0.5, -0.1]])
def test_rejects_a_bad_schedule(abar):
    with pytest.raises(ValueError, match="alphas_cumprod must be a 1D array that descends"):
        adapters.ddpm_input(np.array(abar))


def test_rejects_an_unknown_prediction():
    with pytest.raises(ValueError, match=r"prediction must be one of sample, .*, got 'noise'"):
        adapters.adapt(lambda x, t: x, "noise", adapters.edm_input())


@pytest.mark.parametrize("name", ["geomem:nothing", "nothing.at.all:x", "math:pi", ":x"])
def test_rejects_a_denoiser_that_cannot_be_imported(name):
    with pytest.raises(ValueError, match=r"^denoiser must be "):
        adapters.load(name)


def test_imports_a_denoiser_by_name():
    assert adapters.load("jax.numpy:add") is jnp.add


# What follows runs the real libraries.
SIZE = 16


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """Return folders of saved diffusers pipelines with random weights, by name."""
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(
        sample_size=SIZE,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=8,
        layers_per_block=1,
    )
    schedulers = {
        "epsilon": diffusers.DDPMScheduler(),
        "v_prediction": diffusers.DDIMScheduler(
            prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2", clip_sample=False
        ),
        "sample": diffusers.DDIMScheduler(
            prediction_type="sample", beta_schedule="scaled_linear", clip_sample=False
        ),
        "flow": diffusers.FlowMatchEulerDiscreteScheduler(),
    }
    folder = tmp_path_factory.mktemp("pipelines")
    for name, scheduler in schedulers.items():
        network.save_pretrained(folder / name / "unet")
        scheduler.save_pretrained(folder / name / "scheduler")
    return folder, network.eval(), schedulers


@pytest.mark.parametrize("name", ["epsilon", "v_prediction", "sample"])
def test_clean_images_match_those_of_diffusers(pipelines, name, rng):
    import diffusers
    import torch

    folder, network, schedulers = pipelines
    scheduler = diffusers.DDIMScheduler.from_config(schedulers[name].config, clip_sample=False)
    denoiser = jax.jit(adapters.from_diffusers(folder / name))
    noisy = rng.normal(size=(2, SIZE, SIZE, 3)).astype(np.float32)
    for timestep in (0, 1, 50, 300, 700, 990):
        abar = float(scheduler.alphas_cumprod[timestep])
        with torch.inference_mode():
            x = torch.tensor(noisy).movedim(-1, 1).contiguous()
            out = network(x, timestep).sample
            scheduler.set_timesteps(1000)
            expected = scheduler.step(out, timestep, x).pred_original_sample.movedim(1, -1).numpy()
        sigma = np.sqrt((1 - abar) / abar)
        x0 = denoiser(noisy / np.sqrt(abar), np.full(2, sigma, np.float32))
        assert np.abs(x0 - expected).max() <= 1e-4 * max(1, np.abs(expected).max())


def test_clean_images_match_those_of_flow_matching(pipelines, rng):
    import torch

    folder, network, _ = pipelines
    denoiser = adapters.from_diffusers(folder / "flow")
    noisy = rng.normal(size=(2, SIZE, SIZE, 3)).astype(np.float32)
    for t in (0.01, 0.3, 0.9):
        with torch.inference_mode():
            x = torch.tensor(noisy).movedim(-1, 1).contiguous()
            expected = (x - t * network(x, 1000 * t).sample).movedim(1, -1).numpy()
        x0 = denoiser(noisy / (1 - t), t / (1 - t))
        assert np.abs(x0 - expected).max() <= 1e-4


def test_ddim_is_the_euler_sampler(pipelines):
    import diffusers
    import torch

    folder, network, schedulers = pipelines
    scheduler = diffusers.DDIMScheduler.from_config(
        schedulers["epsilon"].config, clip_sample=False, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(10)
    abar = scheduler.alphas_cumprod.numpy()[scheduler.timesteps.numpy()]
    last = float(scheduler.alphas_cumprod[0])  # DDIM ends at timestep 0, not at clean images
    sigmas = np.sqrt((1 - np.append(abar, last)) / np.append(abar, last))
    start = np.random.default_rng(0).normal(size=(2, SIZE, SIZE, 3)).astype(np.float32)
    x = torch.tensor(start).movedim(-1, 1).contiguous()
    with torch.inference_mode():
        for timestep in scheduler.timesteps:
            x = scheduler.step(network(x, timestep).sample, timestep, x).prev_sample
    expected = x.movedim(1, -1).numpy()
    denoiser = adapters.from_diffusers(folder / "epsilon")
    x = sampler.solve(denoiser, start / np.sqrt(abar[0]), sigmas, method="euler")
    assert np.abs(x * np.sqrt(last) - expected).max() <= 1e-3 * np.abs(expected).max()


def test_heun_is_that_of_diffusers(pipelines):
    import diffusers
    import torch

    folder, network, schedulers = pipelines
    # Another scheduler has other default betas, and `from_config` drops the defaults of the first.
    scheduler = diffusers.HeunDiscreteScheduler.from_config(
        schedulers["epsilon"].config, clip_sample=False, beta_start=1e-4, beta_end=0.02
    )
    scheduler.set_timesteps(timesteps=[999, 800, 600, 450, 300, 200, 100, 40, 10])
    sigmas = list(dict.fromkeys(scheduler.sigmas.tolist()))  # it lists inner levels twice
    start = np.random.default_rng(0).normal(size=(2, SIZE, SIZE, 3)).astype(np.float32) * sigmas[0]
    x = torch.tensor(start).movedim(-1, 1).contiguous().float()
    with torch.inference_mode():
        for timestep in scheduler.timesteps:
            out = network(scheduler.scale_model_input(x, timestep), timestep).sample
            x = scheduler.step(out, timestep, x).prev_sample
    expected = x.movedim(1, -1).numpy()
    ours = sampler.solve(adapters.from_diffusers(folder / "epsilon"), start, sigmas)
    assert np.abs(ours - expected).max() <= 1e-3 * np.abs(expected).max()


def test_an_exact_empirical_network_in_pytorch_only_copies(rng):
    torch = pytest.importorskip("torch")
    images = rng.uniform(-1, 1, (20, 4, 4, 1)).astype(np.float32)
    points = torch.tensor(images.reshape(20, -1), dtype=torch.float64)
    levels = torch.tensor(conventions.ddpm_sigmas(conventions.linear_betas()))

    def epsilon(x, t):
        """The noise that the posterior mean of `images` implies; fractional t as in the adapter."""
        at = torch.tensor(np.interp(t.numpy(), np.arange(1000), np.log(levels.numpy())))
        sigma = at.exp()[:, None]
        y = x.flatten(1).double() * (1 + sigma**2).sqrt()
        weights = torch.softmax(-(torch.cdist(y, points) ** 2) / (2 * sigma**2), 1)
        return ((y - weights @ points) / sigma).reshape(x.shape)

    network = adapters.from_torch(epsilon)
    denoiser = adapters.adapt(network, "epsilon", adapters.ddpm_input(ABAR))
    y = images + 0.3 * rng.normal(size=images.shape).astype(np.float32)
    expected = oracles.denoise(y.reshape(20, -1), images.reshape(20, -1), 0.3).reshape(y.shape)
    np.testing.assert_allclose(denoiser(y, 0.3), expected, atol=1e-4)
    samples = sampler.generate(denoiser, range(16), (4, 4, 1), grids.edm_grid(18, 0.01, 80))
    assert memorization.measure(samples, images).memorized.all()


@pytest.mark.parametrize("missing", ["unet", "scheduler/scheduler_config.json"])
def test_rejects_a_folder_that_is_no_pipeline(pipelines, missing, tmp_path):
    import shutil

    broken = shutil.copytree(pipelines[0] / "epsilon", tmp_path / "pipeline")
    path = broken / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ValueError, match=r"a saved diffusers pipeline, got") as error:
        adapters.from_diffusers(broken)
    assert "\n" not in str(error.value)


def test_rejects_a_pipeline_without_all_its_weights(pipelines, tmp_path):
    """Diffusers draws missing weights at random and goes on."""
    import shutil

    from safetensors.numpy import load_file, save_file

    broken = shutil.copytree(pipelines[0] / "epsilon", tmp_path / "pipeline")
    (path,) = (broken / "unet").glob("*.safetensors")
    tensors = load_file(path)
    del tensors["conv_in.weight"]
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"lacks 1 of the weights, such as conv_in\.weight"):
        adapters.from_diffusers(broken)
