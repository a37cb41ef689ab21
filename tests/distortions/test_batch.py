import itertools

import cv2
import numpy as np
import pytest
import torch
from skimage import data

from contrique import distortions, images
from contrique.distortions import batch, kernels

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

# the largest difference of any pixel from `distort`, given the same random numbers
TOLERANCE = dict.fromkeys(("color_diffusion", "saturation_lab", "sharpen", "brighten", "jitter", "color_shift"), 2e-4)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


class SameDraws:
    """What `kernels.Draws` gives for each picture, stacked into tensors."""

    def __init__(self, seeds, device):
        self.draws = [kernels.Draws(np.random.default_rng(seed)) for seed in seeds]
        self.device = device

    def _stack(self, kind, shape):
        size = shape[1:]
        planar = len(size) == 3 and size[0] == 3  # a picture: the CPU bank draws it as H, W, 3
        values = np.stack([getattr(draws, kind)((*size[1:], 3) if planar else size) for draws in self.draws])
        return torch.from_numpy(np.moveaxis(values, -1, 1).copy() if planar else values).to(self.device)

    def normal(self, shape):
        return self._stack("normal", shape)

    def uniform(self, shape):
        return self._stack("uniform", shape)


def photographs(height=75, width=106) -> list[np.ndarray]:
    return [
        images.as_float(cv2.resize(picture(), (width, height), interpolation=cv2.INTER_AREA))
        for picture in (data.astronaut, data.coffee, data.chelsea)
    ]


def tensor(pictures, device="cpu"):
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous().to(device)


def arrays(tensors):
    return tensors.permute(0, 2, 3, 1).cpu().numpy()


def generator(device="cpu", seed=0):
    return torch.Generator(device).manual_seed(seed)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", sorted(set(batch.BATCHED) - {"impulse_noise"}))
def test_agrees_with_distort(name, device):
    pictures = photographs()
    for level in range(1, 6):
        draws = SameDraws(range(3), device)
        actual = batch.BATCHED[name](tensor(pictures, device), distortions.parameter(name, level), draws).clamp(0, 1)
        expected = [distortions.distort(x, name, level, np.random.default_rng(k)) for k, x in enumerate(pictures)]
        assert np.abs(arrays(actual) - expected).max() < TOLERANCE.get(name, 1e-5), level


def test_banks_cover_the_same_25():
    assert set(batch.BATCHED) | batch.SERIAL == set(distortions.NAMES)
    assert not set(batch.BATCHED) & batch.SERIAL


@pytest.mark.parametrize("device", DEVICES)
def test_mixed_batch_is_each_picture_alone(device):
    pictures = photographs(48, 64)
    keys = list(itertools.product(distortions.NAMES, range(1, 6)))
    order = np.random.default_rng(0).permutation(len(keys))
    names, levels = zip(*(keys[i] for i in order), strict=True)
    inputs = tensor([pictures[i % 3] for i in range(len(keys))], device)
    before = inputs.clone()
    actual = distortions.distort_batch(inputs, names, levels, generator(device))
    assert torch.equal(inputs, before)
    assert actual.shape == inputs.shape
    assert actual.device == inputs.device
    assert actual.min() >= 0
    assert actual.max() <= 1
    stochastic = {"motion_blur", "color_shift", "white_noise", "color_noise", "impulse_noise", "multiplicative_noise",
             "denoise", "jitter", "non_eccentricity", "color_block"}  # fmt: skip
    for i, (name, level) in enumerate(zip(names, levels, strict=True)):
        if name not in stochastic:
            alone = distortions.distort(pictures[i % 3], name, level, np.random.default_rng(0))
            assert np.abs(arrays(actual[i : i + 1])[0] - alone).max() < TOLERANCE.get(name, 1e-5), (name, level)


@pytest.mark.parametrize("device", DEVICES)
def test_generator_decides_everything(device):
    inputs = tensor(photographs(40, 40) * 9, device)[:25]
    levels = [4] * 25
    first, second, other = (
        distortions.distort_batch(inputs, distortions.NAMES, levels, generator(device, seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_pictures_of_a_batch_get_their_own_draws():
    inputs = tensor([photographs(40, 40)[0]] * 2)
    for name in ("white_noise", "motion_blur", "jitter", "color_block", "non_eccentricity", "denoise"):
        outputs = distortions.distort_batch(inputs, [name] * 2, [5] * 2, generator())
        assert not torch.equal(outputs[0], outputs[1]), name


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("name", "variance"),
    [("white_noise", lambda p: p), ("multiplicative_noise", lambda p: p * 0.25), ("impulse_noise", lambda p: p / 4)],
)
def test_noise_has_its_variance(name, variance, device):
    flat = torch.full((2, 3, 200, 200), 0.5, device=device)
    for level in range(1, 6):
        noise = distortions.distort_batch(flat, [name] * 2, [level] * 2, generator(device)) - flat
        expected = variance(distortions.parameter(name, level))
        assert float(noise.var()) == pytest.approx(expected, rel=0.2 if name == "impulse_noise" else 0.02)


@pytest.mark.parametrize("side", [(32, 32), (33, 57), (64, 32)])
def test_any_size_and_content(side):
    noise = np.random.default_rng(0).random((*side, 3), dtype=np.float32)
    inputs = tensor([noise, *(np.full((*side, 3), grey, np.float32) for grey in (0, 0.4, 1))])
    for name, level in itertools.product(distortions.NAMES, (1, 5)):
        outputs = distortions.distort_batch(inputs, [name] * 4, [level] * 4, generator())
        assert torch.isfinite(outputs).all(), (name, level)


def test_empty_batch():
    assert distortions.distort_batch(torch.zeros(0, 3, 40, 40), [], [], generator()).shape == (0, 3, 40, 40)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(1, 3, 40, 40, dtype=torch.float64)}, "float32"),
        ({"images": torch.zeros(1, 40, 40, 3)}, "shape"),
        ({"images": torch.zeros(1, 3, 31, 40)}, "at least 32"),
        ({"images": torch.full((1, 3, 40, 40), 2.0)}, "divide 8-bit by 255"),
        ({"images": torch.full((1, 3, 40, 40), float("nan"))}, "NaN"),
        ({"names": ["jpeg", "jpeg"]}, "as many names and levels"),
        ({"names": ["blur"]}, "unknown distortion"),
        ({"levels": [0]}, "level must be"),
    ],
)
def test_wrong_batches_are_refused(change, message):
    arguments = {"images": torch.zeros(1, 3, 40, 40), "names": ["jpeg"], "levels": [1], "generator": generator()}
    with pytest.raises(distortions.DistortionError, match=message):
        distortions.distort_batch(**(arguments | change))
