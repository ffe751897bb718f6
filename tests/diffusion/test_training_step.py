"""The training step against closed forms and float64 loops, on 1, 2 and 8 devices."""

import dataclasses
import re

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from geomem.diffusion import (
    checkpoints,
    data_parallel,
    preconditioning,
    schedules,
    training_step,
    unet,
)

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (20, 8, 8, 1), dtype=np.uint8)
IMAGES = jax.tree.map(jnp.asarray, training_step.load_images(PIXELS))


class Scaled:
    """The denoiser D(x) = w x, which has closed forms."""

    sigma_data = 0.5

    def init(self, key, image_shape):
        return {"w": jnp.float32(0.7)}

    def __call__(self, params, x, sigma, augment_labels=None, dropout_keys=None):
        return params["w"] * x


def _recipe(**changes):
    fields = {"batch": 16, "lr": 1e-2, "lr_ramp": 0, "augment": 0, "window": 3}
    return training_step.Recipe(schedules.lognormal(-1.2, 0.3), **(fields | changes))


def _draws(recipe, seed):
    """20,000 training examples: clean images, noise, sigma and labels."""

    @jax.jit
    @jax.vmap
    def draw(key):
        return training_step._draw(key, IMAGES, recipe, recipe.schedule.levels())[:4]

    return draw(jax.random.split(jax.random.key(seed), 20_000))


def _leaf_error(a, b):
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(b))
    return max(
        np.abs(np.asarray(x) - np.asarray(y)).max() / scale
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_loss_matches_its_closed_form_expectation():
    # D = w x: E |D - x|^2 = (1 - w)^2 |x|^2 + w^2 sigma^2 d, weighted (sigma^2 + s^2)/(sigma s)^2.
    keys = jax.random.split(jax.random.key(0), 20_000)
    value = jax.jit(lambda keys: training_step.loss(Scaled(), {"w": 0.7}, keys, IMAGES, _recipe()))(
        keys
    )
    squares = ((PIXELS / 127.5 - 1).reshape(20, -1) ** 2).sum(1).mean()
    inverse_square, square = np.exp(2.4 + 0.6**2 / 2), np.exp(-2.4 + 0.6**2 / 2)  # E sigma^-2, ^2
    weight, weighted_square = 4 + inverse_square, 1 + 4 * square
    expected = 0.3**2 * squares * weight + 0.7**2 * 64 * weighted_square
    assert value == pytest.approx(expected, rel=0.01)


def test_steps_follow_adam_and_the_averaging_rule():
    recipe = _recipe(lr_ramp=60, ema_halflife=40, ema_ramp=0.5)
    update = training_step.make_update(Scaled(), recipe, jax.devices()[:2])
    state = data_parallel.replicate(
        training_step.init(Scaled(), recipe, (8, 8, 1)), jax.devices()[:2]
    )
    images = data_parallel.replicate(IMAGES, jax.devices()[:2])
    grad = jax.jit(
        jax.value_and_grad(
            lambda w, keys: training_step.loss(Scaled(), {"w": w}, keys, IMAGES, recipe)
        )
    )
    w = ema = 0.7
    m = v = window = 0.0
    for step in range(7):
        keys = jax.random.fold_in(jax.random.key(0), step + 1)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(keys, jnp.arange(16))
        value, g = map(float, grad(jnp.float32(w), keys))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        scaled = (m / (1 - 0.9 ** (step + 1))) / (np.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-8)
        w -= 1e-2 * min(step * 16 / 60, 1) * scaled
        halflife = min(40, 0.5 * step * 16)
        decay = 0.5 ** (16 / halflife) if halflife else 0
        ema = decay * ema + (1 - decay) * w
        window = value + (window if step % 3 else 0)

        state = update(state, images, 1)
        host = data_parallel.unreplicate(state)
        assert host.step == step + 1
        assert host.params["w"] == pytest.approx(w, rel=1e-5)
        assert host.ema["w"] == pytest.approx(ema, rel=1e-5)
        assert host.metrics["loss"] == pytest.approx(window, rel=1e-4)


def test_one_dispatch_equals_single_steps():
    update = training_step.make_update(Scaled(), _recipe())
    images = data_parallel.replicate(IMAGES)
    start = training_step.init(Scaled(), _recipe(), (8, 8, 1))
    single = data_parallel.replicate(start)
    for _ in range(4):
        single = update(single, images, 1)
    scanned = update(data_parallel.replicate(start), images, 4)
    chex.assert_trees_all_close(
        data_parallel.unreplicate(scanned), data_parallel.unreplicate(single)
    )


# Every random option is turned on.
NETWORK = unet.UNet(8, (1,), 0, (), dropout=0.3, augment_dim=9, patch=2)
NETWORK_RECIPE = _recipe(augment=0.5, lr=1e-3)


@pytest.fixture(scope="module")
def network_runs():
    """Return the initial state, and a function that makes one step with fresh copies."""
    start = training_step.init(preconditioning.EDMDenoiser(NETWORK), NETWORK_RECIPE, (8, 8, 1))

    def step(state, devices, network=NETWORK, recipe=NETWORK_RECIPE, parallel="pmap"):
        denoiser, devices = preconditioning.EDMDenoiser(network), jax.devices()[:devices]
        update = training_step.make_update(denoiser, recipe, devices, parallel)
        arguments = (data_parallel.replicate(tree, devices) for tree in (state, IMAGES))
        return data_parallel.unreplicate(update(*arguments, 1))

    return start, step


def test_step_is_independent_of_device_count(network_runs):
    start, step = network_runs
    expected = step(start, 1)
    assert _leaf_error(expected.params, start.params) > 5e-4  # the step changes the parameters
    state = step(start, 8)
    assert _leaf_error(state.params, expected.params) <= 1e-6
    assert _leaf_error(state.ema, expected.ema) <= 1e-6


def test_microbatches_remat_and_shard_map_make_the_same_step(network_runs):
    start, step = network_runs
    expected = step(start, 2)
    thrifty = dataclasses.replace(NETWORK_RECIPE, microbatch=2)
    state = step(start, 2, NETWORK.clone(remat=True), thrifty, "shard_map")
    # Adam's first moment is a tenth of the gradient.
    assert _leaf_error(state.opt_state[0].mu, expected.opt_state[0].mu) <= 1e-6
    assert state.metrics["loss"] == pytest.approx(expected.metrics["loss"], rel=1e-6)


@pytest.mark.filterwarnings("ignore:Some donated buffers")
def test_convolutions_on_cpus_use_all_cores():
    if jax.__version_info__ < (0, 10):
        pytest.skip("XLA has no such option")

    def convolve(kernel, images, *_):
        axes = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=axes)

    arguments = np.ones((1, 3, 3, 64, 64), np.float32), np.ones((1, 8, 8, 8, 64), np.float32)
    on_one_core = {}
    for name, parallel in data_parallel.PROGRAMS.items():
        lowered = parallel(convolve, jax.devices()[:1]).lower(*arguments, 0.0, 0.0, 1)
        # The library that computes a convolution on one core.
        on_one_core[name] = "__ynn_fusion" in lowered.compile().as_text()
    assert on_one_core == {"pmap": True, "shard_map": False}


def test_lowers_for_gpus_and_tpus_without_one():
    network = unet.UNet(8, (1,), 0, (), dropout=0.3, augment_dim=9, patch=2, compute="bfloat16")
    denoiser, recipe = preconditioning.EDMDenoiser(network), _recipe(augment=0.5)
    devices = jax.devices()[:2]
    program, constants = training_step.program(denoiser, recipe, devices, "shard_map")
    start = training_step.init(denoiser, recipe, (8, 8, 1))
    arguments = (data_parallel.replicate(tree, devices) for tree in (start, IMAGES))
    exported = jax.export.export(program, platforms=("cuda", "tpu"))(*arguments, *constants, 1)
    text = exported.mlir_module()
    assert "stablehlo.all_reduce" in text
    assert "f64" not in text
    assert "callback" not in text
    convolutions = re.findall(r"stablehlo.convolution.*", text)
    assert convolutions
    assert not any("xf32>" in line for line in convolutions)


def test_checkpoints_move_between_device_counts(network_runs, tmp_path):
    start, step = network_runs
    state = start
    for count, devices in enumerate((1, 8, 2), 1):
        with checkpoints.Checkpoints(tmp_path) as saved:
            saved.save(count, step(state, devices))
        with checkpoints.Checkpoints(tmp_path) as saved:
            assert saved.steps()[-1] == count
            restored, state = saved.restore(jax.eval_shape(lambda: start))
            assert restored == state.step == count
    expected = start
    for _ in range(3):
        expected = step(expected, 1)
    # Adam amplifies rounding errors over 3 steps.
    assert _leaf_error(state.params, expected.params) <= 1e-5


def test_compiles_only_on_the_first_step():
    traced = []

    class Counted(Scaled):
        def __call__(self, *arguments):
            traced.append(arguments)
            return super().__call__(*arguments)

    update = training_step.make_update(Counted(), _recipe(), jax.devices()[:1])
    state = data_parallel.replicate(
        training_step.init(Counted(), _recipe(), (8, 8, 1)), jax.devices()[:1]
    )
    images = data_parallel.replicate(IMAGES, jax.devices()[:1])
    state = update(state, images, 1)
    first = len(traced)
    for _ in range(4):
        state = update(state, images, 1)
    assert first == len(traced) > 0


def test_an_update_on_cpus_keeps_freed_memory_and_reserves_gaps_once(monkeypatch):
    calls = []
    for name in "keep_freed", "reserve_gaps":
        monkeypatch.setattr(training_step.memory, name, lambda name=name: calls.append(name))
    devices = jax.devices("cpu")[:1]
    update = training_step.make_update(Scaled(), _recipe(), devices)
    state = training_step.init(Scaled(), _recipe(), (8, 8, 1))
    state, images = (data_parallel.replicate(tree, devices) for tree in (state, IMAGES))
    for _ in range(2):
        state = update(state, images, 1)
    assert calls == ["keep_freed", "reserve_gaps"]


def test_ignores_nonfinite_gradients():
    class Broken(Scaled):
        def __call__(self, params, x, sigma, augment_labels=None, dropout_keys=None):
            return x + jnp.sqrt(params["w"] - params["w"])  # value 0, gradient NaN

    update = training_step.make_update(Broken(), _recipe(), jax.devices()[:1])
    state = data_parallel.replicate(
        training_step.init(Broken(), _recipe(), (8, 8, 1)), jax.devices()[:1]
    )
    images = data_parallel.replicate(IMAGES, jax.devices()[:1])
    host = data_parallel.unreplicate(update(state, images, 1))
    assert host.params["w"] == pytest.approx(0.7)
    assert np.isfinite(host.metrics["loss"])


def test_examples_are_uniform_draws_with_unit_noise():
    clean, noise, sigma, labels = _draws(_recipe(), seed=1)
    flat, truth = np.asarray(clean).reshape(20_000, -1), (PIXELS / 127.5 - 1).reshape(20, -1)
    nearest = np.abs(flat[:, None, :8] - truth[None, :, :8]).sum(-1).argmin(1)
    np.testing.assert_allclose(flat, truth[nearest], atol=1e-6)
    counts = np.bincount(nearest, minlength=20)
    assert ((counts - 1000) ** 2 / 1000).sum() < 45  # chi-square, 19 degrees of freedom: 0.1%
    assert np.std(noise) == pytest.approx(1, abs=0.01)
    assert np.abs(np.corrcoef(np.log(sigma), noise.mean((1, 2, 3)))[0, 1]) < 0.03
    assert labels is None


def test_dummy_images_replace_only_the_interval():
    recipe = training_step.Recipe(schedules.dummy(schedules.lognormal(), 0.2, 0.6), augment=0)
    clean, _, sigma, _ = _draws(recipe, seed=2)
    truth = PIXELS / 127.5 - 1
    corner = np.abs(np.asarray(clean)[:, None, :2, :2] - truth[None, :, :2, :2]).max((2, 3, 4))
    real = corner.min(1) < 1e-6
    inside = (np.asarray(sigma) >= 0.2) & (np.asarray(sigma) <= 0.6)
    np.testing.assert_array_equal(real, ~inside)
    dummies = np.asarray(clean)[inside]
    np.testing.assert_allclose(dummies.mean(0), truth.mean(0), atol=0.05)
    np.testing.assert_allclose(dummies.std(0), truth.std(0), atol=0.05)


def test_rejects_indivisible_batch():
    with pytest.raises(ValueError, match=r"^batch must be a multiple of the 8 devices, got 12"):
        training_step.make_update(Scaled(), _recipe(batch=12))


def test_rejects_indivisible_microbatch():
    with pytest.raises(ValueError, match=r"^microbatch must divide the 2 images of a"):
        training_step.make_update(Scaled(), _recipe(microbatch=3))


def test_the_default_is_shard_map_on_the_cpus_of_one_process(monkeypatch):
    chosen = []
    monkeypatch.setattr(training_step, "_compiled", lambda *arguments: chosen.append(arguments[-1]))
    training_step.program(Scaled(), _recipe())
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    training_step.program(Scaled(), _recipe())
    assert chosen == ["shard_map", "pmap"]
    with pytest.raises(ValueError, match="parallel must be pmap in a run of several processes"):
        training_step.program(Scaled(), _recipe(), parallel="shard_map")
