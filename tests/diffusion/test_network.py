"""The network and the weight import against outputs of the reference implementation."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util
from network_oracles import DATA, load_oracle

from geomem.diffusion import edm_weights, layers, preconditioning, unet

TINY = DATA / "songunet_tiny.npz"


@pytest.fixture(scope="module", params=["tiny", "gray8"])
def case(request):
    denoiser, params = edm_weights.load(DATA / f"songunet_{request.param}.npz")
    return jax.jit(denoiser), params, load_oracle(request.param), denoiser


def _error(ours, theirs):
    """Return the largest error, relative to the output's scale."""
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def test_denoised_images_match_the_reference(case):
    denoise, params, oracle, _ = case
    for i, sigma in enumerate(oracle["sigma"]):  # each noise level on its own scale
        output = denoise(params, oracle["x"], oracle["sigma"])
        assert _error(output[i], oracle["denoised"][i]) <= 1e-5, sigma


def test_augmentation_labels_match_the_reference(case):
    denoise, params, oracle, denoiser = case
    if not denoiser.network.augment_dim:
        assert "denoised_augmented" not in oracle
        return
    output = denoise(params, oracle["x"], oracle["sigma"], oracle["augment_labels"])
    assert _error(output, oracle["denoised_augmented"]) <= 1e-5
    assert _error(output, oracle["denoised"]) > 1e-3  # the labels are used


def test_reads_the_architecture_from_the_tensors():
    network = edm_weights.load(TINY)[0].network
    assert network == unet.UNet(16, (1, 2), 1, (16,), augment_dim=9)
    network = edm_weights.load(DATA / "songunet_gray8.npz")[0].network
    assert network == unet.UNet(16, (1, 2), 1, (4,))


def test_safetensors_and_npz_give_the_same_network(tmp_path):
    with np.load(TINY) as archive:
        tensors = {
            name.removeprefix("param/"): archive[name]
            for name in archive.files
            if name.startswith("param/")
        }
    safetensors.numpy.save_file(tensors, tmp_path / "tiny.safetensors")
    denoiser, params = edm_weights.load(tmp_path / "tiny.safetensors")
    expected_denoiser, expected = edm_weights.load(TINY)
    assert denoiser == expected_denoiser
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_cifar10_network_has_the_published_parameter_count():
    network = unet.UNet(attention=(16,), augment_dim=9)
    shapes = jax.eval_shape(
        lambda key: preconditioning.EDMDenoiser(network).init(key, (32, 32, 3)), jax.random.key(0)
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 55_733_891


def test_initial_weights_match_edm():
    network = unet.UNet(32, (1,), 1, (8,), embedding="fourier")
    params = jax.jit(lambda key: preconditioning.EDMDenoiser(network).init(key, (8, 8, 1)))(
        jax.random.key(0)
    )
    flat = traverse_util.flatten_dict(params, sep="/")
    for name, gain in [("conv0", 1), ("conv1", 1e-5), ("qkv", 0.2**0.5), ("proj", 1e-5)]:
        kernel = np.asarray(flat[f"enc_8x8_block0/{name}/kernel"])
        fan_in, fan_out = np.prod(kernel.shape[:-1]), np.prod(kernel.shape[:2]) * kernel.shape[-1]
        bound = gain * np.sqrt(6 / (fan_in + fan_out))
        assert 0.95 * bound < np.abs(kernel).max() <= bound * (1 + 1e-6), name
    assert np.std(flat["map_noise/freqs"]) == pytest.approx(16, rel=0.5)
    assert all(not np.any(value) for name, value in flat.items() if name.endswith("bias"))


@pytest.mark.parametrize("embedding", ["positional", "fourier"])
def test_noise_embedding_matches_the_definition(embedding):
    noise = np.array([-1.5, 0.3, 1.1])
    if embedding == "positional":
        frequencies = np.array([1e-4 ** (i / 7) for i in range(8)])
        ours = unet._positional_embedding(jnp.asarray(noise), 16)
    else:
        module = unet.FourierEmbedding(16)
        variables = module.init(jax.random.key(0), noise)
        frequencies = 2 * np.pi * np.asarray(variables["params"]["freqs"], np.float64)
        ours = module.apply(variables, noise)
    angles = noise[:, None] * frequencies
    np.testing.assert_allclose(ours, np.hstack([np.sin(angles), np.cos(angles)]), atol=3e-5)


def test_patch_stem_is_a_bijection_of_pixels():
    x = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype(np.float32)
    folded = np.asarray(unet._fold(x, 2))
    assert folded.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(folded[1, 1, 2], x[1, 2:4, 4:6].ravel())
    np.testing.assert_array_equal(unet._unfold(folded, 2), x)


@pytest.mark.parametrize("sides", [(1, 1), (2, 1), (2, 2), (3, 2)])
@pytest.mark.parametrize("side", [1, 3])
def test_small_convolutions_match_the_definition(sides, side):
    x = np.random.default_rng(0).normal(size=(2, *sides, 3))
    kernel = np.random.default_rng(1).normal(size=(side, side, 3, 4))
    padded = np.pad(x, ((0, 0), (side // 2,) * 2, (side // 2,) * 2, (0, 0)))
    expected = np.zeros((2, *sides, 4))
    for i, j in np.ndindex(*sides):
        window = padded[:, i : i + side, j : j + side]
        expected[:, i, j] = np.einsum("bhwc,hwcd->bd", window, kernel)
    conv = nn.Conv(4, (side, side), use_bias=False, conv_general_dilated=layers.convolve)
    output = conv.apply({"params": {"kernel": jnp.float32(kernel)}}, jnp.float32(x))
    np.testing.assert_allclose(output, expected, atol=1e-5)


def test_adaptive_scale_multiplies_the_normalized_channels():
    x, embedding = jnp.ones((1, 2, 2, 8)), jnp.ones((1, 4))
    block = unet.Block(8, 0.0, "float32", adaptive_scale=True)
    params = block.init(jax.random.key(0), x, embedding, None)["params"]
    assert params["affine"]["kernel"].shape == (4, 16)  # scale and shift
    # With a scale of -1 only the shift remains, whatever the image.
    bias = jnp.concatenate([jnp.full(8, -1.0), jnp.full(8, 0.5)])
    params["affine"] = {"kernel": jnp.zeros((4, 16)), "bias": bias}
    params["conv1"]["kernel"] = params["conv1"]["kernel"] * 1e5
    first, second = (
        block.apply({"params": params}, image, embedding, None) - image * np.sqrt(0.5)
        for image in (x, x.at[0, 0, 0, 0].set(9.0))
    )
    np.testing.assert_allclose(first, second, atol=1e-5)


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_options_work_on_rectangular_images(compute):
    options = {"embedding": "fourier", "adaptive_scale": True, "patch": 2, "compute": compute}
    network = unet.UNet(8, (1, 2), 1, (4,), dropout=0.5, **options)
    denoiser = preconditioning.EDMDenoiser(network, 0.3)
    shapes = jax.eval_shape(lambda key: denoiser.init(key, (8, 12, 2)), jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: np.float32(rng.normal(0.1, 0.1, leaf.shape)), shapes)
    x, sigma = jax.random.normal(jax.random.key(1), (2, 8, 12, 2)), jnp.array([0.1, 3.0])
    denoise = jax.jit(denoiser)
    clean = denoise(params, x, sigma)
    keys = jax.random.split(jax.random.key(2), 2)
    dropped = denoise(params, x, sigma, None, keys)
    assert clean.dtype == dropped.dtype == jnp.float32
    assert np.abs(clean - dropped).max() > 1e-3
    swapped = denoise(params, x[::-1], sigma[::-1], None, keys[::-1])
    np.testing.assert_allclose(
        swapped[::-1], dropped, atol=1e-5
    )  # the mask follows its image's key


def test_bfloat16_is_close_to_float32(case):
    _, params, oracle, denoiser = case
    fast = preconditioning.EDMDenoiser(denoiser.network.clone(compute="bfloat16"))
    output = jax.jit(fast)(params, oracle["x"], oracle["sigma"])
    assert 1e-6 < _error(output, oracle["denoised"]) < 0.02


def test_preconditioning_limits():
    # As sigma -> 0, the input is returned; as sigma -> infinity, it is ignored.
    denoiser, params = edm_weights.load(DATA / "songunet_gray8.npz")
    denoise = jax.jit(denoiser)
    x = jax.random.normal(jax.random.key(0), (1, 8, 8, 1))
    np.testing.assert_allclose(denoise(params, x, 1e-6), x, atol=1e-4)
    far = denoise(params, 1e4 * x, 1e4) - denoise(params, 1e4 * x, 1e4 + 1)
    assert np.abs(far).max() < 1e-2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("model.enc.16x16_down.conv0.bias"),
            "enc_16x16_down/conv0/bias is missing",
        ),
        (lambda t: t.update({"model.map_label.weight": np.ones((2, 3))}), "map_label.* unexpected"),
        (
            lambda t: t.update({"model.map_layer1.bias": np.ones(7)}),
            r"map_layer1.bias must have shape \(64,\) \(Flax layout\), got \(7,\)",
        ),
        (
            lambda t: t.update(
                {"model.enc.16x16_down.conv0.resample_filter": np.ones((1, 1, 4, 4)) / 16}
            ),
            "resample_filter is not a 2x2 mean",
        ),
        (lambda t: t.clear(), "model.enc.HEIGHTxWIDTH_conv.weight is missing"),
    ],
)
def test_rejects_mismatched_tensors(change, message, tmp_path):
    with np.load(TINY) as archive:
        tensors = {
            name.removeprefix("param/"): archive[name]
            for name in archive.files
            if name.startswith("param/")
        }
    change(tensors)
    np.savez(tmp_path / "other.npz", **tensors)
    with pytest.raises(ValueError, match=message) as error:
        edm_weights.load(tmp_path / "other.npz")
    assert "\n" not in str(error.value)


def test_accepts_the_default_attention_at_other_resolutions():
    network = unet.UNet(8, (1, 1), 1)
    init = preconditioning.EDMDenoiser(network).init
    assert jax.eval_shape(lambda key: init(key, (8, 8, 3)), jax.random.key(0))
    with pytest.raises(ValueError, match=r"^attention must hold .* \[8, 4\], got \(7,\)"):
        preconditioning.EDMDenoiser(network.copy(attention=(7,))).init(jax.random.key(0), (8, 8, 3))


def test_rejects_bad_files_and_sides(tmp_path):
    with pytest.raises(
        ValueError, match=r"^weights must be an \.npz or \.safetensors file, got .*\.pkl"
    ):
        edm_weights.load("edm-cifar10-32x32-uncond-vp.pkl")
    for suffix in (".npz", ".safetensors"):
        path = tmp_path / f"absent{suffix}"
        with pytest.raises(
            ValueError,
            match=r"^weights must be a readable file, got .*absent.* \(no such file\)",
        ):
            edm_weights.load(path)
        path.write_bytes(b"PK\x03\x04broken")
        with pytest.raises(ValueError, match=r"^weights must be a readable file, got .*absent"):
            edm_weights.load(path)
    with pytest.raises(
        ValueError, match=r"^images must have sides .* multiples of 4 .*, got 30x30"
    ):
        preconditioning.EDMDenoiser(unet.UNet(8, (1, 1, 1), 1)).init(jax.random.key(0), (30, 30, 3))
