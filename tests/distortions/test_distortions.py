import io
import itertools
import math

import cv2
import numpy as np
import pytest
import reference_distortions as reference
import simplejpeg
from PIL import Image
from scipy import stats
from skimage import data
from sklearn.cluster import KMeans

from contrique import distortions, images
from contrique.distortions import kernels
from contrique.distortions.palette import minimum_variance_palette

EVERY = list(itertools.product(distortions.NAMES, range(1, 6)))

# the largest error of any pixel on photographs; Lab: 16-bit tables and OpenCV's white point, times a gain of up to 12
TOLERANCE = {
    "color_diffusion": 2e-3,
    "saturation_lab": 3e-3,
    "sharpen": 3e-4,
    "brighten": 1e-4,
    "color_shift": 1e-4,
    "jitter": 1e-4,
}
CODECS = {"color_quantization", "jpeg2000", "jpeg", "impulse_noise", "denoise"}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def photograph(height: int = 97, width: int = 131, picture=data.astronaut) -> np.ndarray:
    pixels = cv2.resize(picture(), (width, height), interpolation=cv2.INTER_AREA)
    return images.as_float(pixels)


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    return [photograph(), photograph(120, 64, data.coffee)]


def distort(image, name, level, seed=0):
    return distortions.distort(image, name, level, rng(seed))


# against the definitions


@pytest.mark.parametrize(("name", "level"), [key for key in EVERY if key[0] not in CODECS])
def test_agrees_with_the_definition(photos, name, level):
    for image in photos:
        draws = kernels.Draws(rng(level))
        expected = getattr(reference, name)(image.astype(float), distortions.parameter(name, level), draws)
        actual = distort(image, name, level, seed=level)
        assert np.abs(actual - np.clip(expected, 0, 1)).max() < TOLERANCE.get(name, 1e-6)


def test_names_and_levels_are_those_of_kadis():
    assert len(distortions.NAMES) == 25
    assert distortions.NAMES[::6] == ("gaussian_blur", "saturation_hsv", "impulse_noise", "jitter", "contrast")
    assert all(len(set(levels)) == 5 for levels in distortions.LEVELS.values())
    assert set(kernels.KERNELS) == set(distortions.NAMES)


def test_disk_is_matlabs():
    # fspecial('disk', 1) as MATLAB prints it
    expected = [[0.0251, 0.1453, 0.0251], [0.1453, 0.3183, 0.1453], [0.0251, 0.1453, 0.0251]]
    np.testing.assert_allclose(kernels.disk(1), expected, atol=5e-5)
    for radius in distortions.LEVELS["lens_blur"]:
        np.testing.assert_allclose(kernels.disk(radius), reference.disk_kernel(int(radius)), atol=1e-7)


def test_motion_kernel_follows_its_angle():
    np.testing.assert_allclose(kernels.motion(9, 0)[4], np.full(9, 1 / 9), atol=1e-7)
    np.testing.assert_allclose(kernels.motion(4, 0)[2], np.array([0.5, 1, 1, 1, 0.5]) / 4, atol=1e-7)
    np.testing.assert_allclose(kernels.motion(6, 90), kernels.motion(6, 0).T, atol=1e-7)
    up_right = kernels.motion(10, 45)
    assert up_right[:5, 6:].sum() > 0.3  # counter-clockwise: from the lower left to the upper right
    assert up_right[:4, :4].sum() < 1e-6
    np.testing.assert_allclose(kernels.motion(10, 180), kernels.motion(10, 0), atol=1e-7)


def test_motion_angles_cover_all_181_degrees():
    draws = kernels.Draws(rng())
    angles = [int(draws.uniform((1,))[0] * 181) for _ in range(5000)]
    assert set(angles) == set(range(181))


def test_contrast_and_midtone_curves_pass_their_control_points():
    grey = np.linspace(0, 1, 1001, dtype=np.float32)[:, None, None] * np.ones((1, 32, 3), np.float32)
    at = {x: round(1000 * x) for x in (0, 0.3, 0.5, 0.7, 1)}
    for level in range(1, 6):
        a = distortions.parameter("contrast", level)
        curve = distort(grey, "contrast", level)[:, 0, 0]
        expected = [0, 0.25 - a / 4, 0.5, 0.75 + a / 4, 1]
        np.testing.assert_allclose([curve[at[x]] for x in at], expected, atol=2e-4)
        for name, sign in (("brighten", 1), ("darken", -1)):
            a = distortions.parameter(name, level)
            curve = kernels._midtone_curve(grey, sign * a / 2)[:, 0, 0]
            np.testing.assert_allclose([curve[0], curve[500], curve[1000]], [0, np.clip(0.5 + sign * a / 2, 0, 1), 1])


def test_brighten_of_grey_mixes_the_two_curves():
    mid = np.full((32, 32, 3), 0.5, np.float32)
    lightness = 53.389  # L of sRGB 0.5
    curve = lightness / 100 * (1 + 2 * 0.4 * (1 - lightness / 100))
    linear = ((curve * 100 + 16) / 116) ** 3
    lab = 1.055 * linear ** (1 / 2.4) - 0.055
    assert distort(mid, "brighten", 3)[0, 0] == pytest.approx([(2 * 0.7 + lab) / 3] * 3, abs=1e-4)


# codecs, palette, noise: measured


def test_jpeg_is_libjpeg_at_that_quality_with_half_chroma():
    pixels = data.astronaut()
    for level in range(1, 6):
        quality = int(distortions.parameter("jpeg", level))
        jpeg = kernels.encode_jpeg(pixels, quality)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
        assert simplejpeg.decode_jpeg_header(jpeg)[3] == "420"
        assert len(jpeg) == pytest.approx(buffer.tell(), rel=0.01)
        expected = cv2.PSNR(np.asarray(Image.open(buffer)), pixels)
        actual = distort(images.as_float(pixels), "jpeg", level)
        assert cv2.PSNR(images.as_uint8(actual), pixels) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("level", range(1, 6))
def test_jpeg2000_reaches_its_ratio(level):
    pixels = data.astronaut()
    ratio = distortions.parameter("jpeg2000", level)
    assert pixels.nbytes / len(kernels.encode_jpeg2000(pixels, ratio)) == pytest.approx(ratio, rel=0.03)


@pytest.mark.parametrize("level", range(1, 6))
def test_jpeg2000_is_openjpeg_at_that_ratio(level):
    """The step coarser than OpenJPEG's own costs next to nothing at the same size."""
    ratio = distortions.parameter("jpeg2000", level)
    losses = []
    for picture in (data.astronaut, data.coffee, data.chelsea):
        pixels = picture()
        buffer = io.BytesIO()
        options = {"quality_mode": "rates", "quality_layers": [ratio], "irreversible": True, "mct": 1, "no_jp2": True}
        Image.fromarray(pixels).save(buffer, "JPEG2000", **options)
        codestream = kernels.encode_jpeg2000(pixels, ratio)
        assert len(codestream) == pytest.approx(pixels.nbytes / ratio, rel=0.03)
        pictures = (np.asarray(Image.open(io.BytesIO(data))) for data in (codestream, buffer.getvalue()))
        losses.append(np.subtract(*(cv2.PSNR(each, pixels) for each in pictures)))
    assert np.mean(losses) > -0.1
    assert min(losses) > -0.3


@pytest.mark.parametrize("planes", [1, 3, 5])
def test_jpeg2000_of_coarser_steps_is_the_scaled_picture(planes):
    """Without rate control both decoders give the scaled picture's own error, times 2**planes."""
    pixels = data.astronaut()[:128, :128]
    scaled = np.rint((pixels.astype(float) - 128) / 2**planes) + 128
    buffer = io.BytesIO()
    Image.fromarray(scaled.astype(np.uint8)).save(buffer, "JPEG2000", irreversible=True, mct=1, no_jp2=True)
    codestream = kernels._coarser_step(buffer.getvalue(), planes)
    error = np.asarray(Image.open(buffer)) - scaled
    by_pillow = np.asarray(Image.open(io.BytesIO(codestream)))
    by_opencv = cv2.imdecode(np.frombuffer(codestream, np.uint8), cv2.IMREAD_COLOR_RGB)
    for actual in (by_pillow, by_opencv):
        residual = actual - ((scaled - 128) * 2**planes + 128)
        assert residual.std() < 2**planes * error.std()


def test_jpeg2000_keeps_flat_pictures():
    for grey in (0, 77, 255):
        flat = np.full((200, 300, 3), grey, np.uint8)
        for level in range(1, 6):
            actual = images.as_uint8(distort(images.as_float(flat), "jpeg2000", level))
            assert np.abs(actual.astype(int) - grey).max() <= 1


def test_jpeg2000_beats_jpeg_at_the_same_size():
    image = images.as_float(data.astronaut())
    jpeg = simplejpeg.encode_jpeg(data.astronaut(), 24, "RGB", "420")
    ratio = image.size / len(jpeg)
    actual = kernels.jpeg2000(image, ratio, kernels.Draws(rng()))
    assert cv2.PSNR(actual, image, 1) > cv2.PSNR(distort(image, "jpeg", 3), image, 1)


def noise_of(name, level, grey=0.5):
    flat = np.full((256, 256, 3), grey, np.float32)
    return distort(flat, name, level).astype(float) - grey


@pytest.mark.parametrize("level", range(1, 6))
def test_white_noise_is_normal_with_its_variance(level):
    noise = noise_of("white_noise", level)
    variance = distortions.parameter("white_noise", level)
    assert noise.var() == pytest.approx(variance, rel=0.02)
    assert abs(noise.mean()) < 5 * math.sqrt(variance / noise.size)
    assert stats.kstest(noise.ravel()[::7] / math.sqrt(variance), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(noise[:, :, 0].ravel(), noise[:, :, 1].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(noise[1:].ravel(), noise[:-1].ravel())[0, 1]) < 0.02


@pytest.mark.parametrize("level", range(1, 6))
def test_color_noise_is_normal_in_ycbcr(level):
    noise = noise_of("color_noise", level) @ kernels.YCBCR.T
    variance = distortions.parameter("color_noise", level)
    np.testing.assert_allclose(noise.reshape(-1, 3).var(axis=0), variance, rtol=0.04)
    assert np.abs(np.corrcoef(noise.reshape(-1, 3).T) - np.eye(3)).max() < 0.02


@pytest.mark.parametrize("level", range(1, 6))
def test_multiplicative_noise_is_uniform_and_scales_with_the_pixel(level):
    variance = distortions.parameter("multiplicative_noise", level)
    for grey in (0.5, 0.25):
        gain = noise_of("multiplicative_noise", level, grey) / grey
        assert gain.var() == pytest.approx(variance, rel=0.02)
        limit = math.sqrt(3 * variance)
        assert stats.kstest(gain.ravel()[::7], "uniform", (-limit, 2 * limit)).pvalue > 1e-3


@pytest.mark.parametrize("level", range(1, 6))
def test_impulse_noise_hits_its_share_half_salt_half_pepper(level):
    density = distortions.parameter("impulse_noise", level)
    image = np.full((300, 400, 3), 0.4, np.float32)
    noisy = distort(image, "impulse_noise", level)
    salt, pepper = (noisy == 1).sum(), (noisy == 0).sum()
    hits, spread = density * image.size, math.sqrt(density * image.size)
    assert abs(salt + pepper - hits) < 5 * spread
    assert abs(salt - pepper) < 5 * spread
    assert (noisy == image).sum() == image.size - salt - pepper


@pytest.mark.parametrize("level", range(1, 6))
def test_denoise_removes_most_of_its_noise(level):
    image = images.as_float(data.astronaut())[::2, ::2]
    variance = distortions.parameter("denoise", level)
    noisy = np.clip(kernels.white_noise(image, variance, kernels.Draws(rng())), 0, 1)
    actual = distort(image, "denoise", level)
    assert cv2.PSNR(actual, image, 1) > cv2.PSNR(noisy, image, 1) + 4
    assert cv2.PSNR(actual, image, 1) < 32


@pytest.mark.parametrize("level", range(1, 6))
def test_palette_has_its_size_and_nearly_the_least_variance(level):
    image = photograph(96, 128)
    colours = int(distortions.parameter("color_quantization", level))
    pixels = images.as_uint8(image)
    palette = minimum_variance_palette(pixels, colours)
    assert palette.shape == (colours, 3)
    flat = pixels.reshape(-1, 3).astype(float)
    error = ((flat[:, None] - palette.astype(float)) ** 2).sum(axis=2).min(axis=1).sum()
    assert error < 1.5 * KMeans(colours, n_init=1, random_state=0).fit(flat).inertia_
    actual = np.unique(images.as_uint8(distort(image, "color_quantization", level)).reshape(-1, 3), axis=0)
    assert len(actual) <= colours
    assert {tuple(colour) for colour in actual} <= {tuple(colour) for colour in palette}


def test_palette_is_dithered():
    ramp = np.linspace(0, 1, 256, dtype=np.float32)[None, :, None] * np.ones((64, 1, 3), np.float32)
    actual = distort(ramp, "color_quantization", 5)
    assert np.abs(cv2.GaussianBlur(actual, (0, 0), 6) - ramp)[16:-16, 24:-24].max() < 0.03


def test_palette_of_few_colours_is_exact():
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:20] = (255, 0, 0)
    pixels[:, 30:] = (0, 7, 255)
    assert (images.as_uint8(distort(images.as_float(pixels), "color_quantization", 5)) == pixels).all()


def test_quantization_keeps_pictures_of_few_values():
    image = rng().choice(np.array([0.1, 0.4, 0.9], np.float32), (40, 40, 3))
    assert (distort(image, "quantization", 5) == image).all()


def test_quantization_leaves_thresholds_plus_one_values(photos):
    for level in range(1, 6):
        values = np.unique(distort(photos[0], "quantization", level))
        assert len(values) == distortions.parameter("quantization", level) + 1
        assert values[0] == 0
        assert values[-1] == 1


# what holds for all of them


@pytest.mark.parametrize(("name", "level"), EVERY)
def test_any_size_and_content(name, level):
    noise = rng().random((32, 47, 1), dtype=np.float32)
    extremes = [np.zeros((32, 32, 3)), np.ones((33, 32, 3)), np.full((61, 35, 3), 0.4), np.repeat(noise, 3, axis=2)]
    for image in (*extremes, rng().random((57, 32, 3)), photograph(64, 64)):
        image = image.astype(np.float32)
        before = image.copy()
        actual = distort(image, name, level)
        assert actual.shape == image.shape
        assert actual.dtype == np.float32
        assert actual.min() >= 0
        assert actual.max() <= 1
        assert (image == before).all()
        assert not np.shares_memory(actual, image)


@pytest.mark.parametrize("name", distortions.NAMES)
def test_same_generator_same_picture(name):
    image = photograph(64, 80)
    assert (distort(image, name, 4, seed=3) == distort(image, name, 4, seed=3)).all()


def test_random_distortions_differ_with_the_generator():
    image = photograph(64, 80)
    constant = {name for name in distortions.NAMES if (distort(image, name, 4, 1) == distort(image, name, 4, 2)).all()}
    assert set(distortions.NAMES) - constant == {
        "motion_blur", "color_shift", "white_noise", "color_noise", "impulse_noise", "multiplicative_noise",
        "denoise", "jitter", "non_eccentricity", "color_block",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["gaussian_blur", "lens_blur", "saturation_hsv", "darken", "contrast", "sharpen"])
def test_commutes_with_mirroring(name):
    image = photograph()
    mirrored = distort(image[:, ::-1].copy(), name, 4)[:, ::-1]
    np.testing.assert_allclose(mirrored, distort(image, name, 4), atol=TOLERANCE.get(name, 1e-5))


def test_reads_views_and_other_memory_orders():
    image = photograph()
    transposed = np.asfortranarray(image)
    assert (distort(transposed, "jpeg", 3) == distort(image, "jpeg", 3)).all()
    assert (distort(image[::2, ::2], "sharpen", 3) == distort(image[::2, ::2].copy(), "sharpen", 3)).all()


@pytest.mark.parametrize(("name", "level"), sorted(distortions.IDENTITY))
def test_merged_classes_are_nearly_the_identity(name, level):
    image = photograph()
    assert np.abs(distort(image, name, level) - image).max() < 1e-3


def test_other_classes_are_not_the_identity():
    image = photograph(256, 256)
    for name, level in EVERY:
        if (name, level) not in distortions.IDENTITY:
            assert np.abs(distort(image, name, level) - image).max() > 0.02, (name, level)


@pytest.mark.slow
def test_severity_rises_with_the_level(photographs):
    """On average over photographs, by RMSE and MDSI, for all but the two signed distortions."""
    import piq
    import torch

    from contrique.data.manifest import read_manifest, read_picture, rows_of

    rows = rows_of(read_manifest(photographs))[:4]
    pictures = [images.as_float(images.fit_within(read_picture(photographs, row), 384)) for row in rows]
    torch.set_num_threads(1)

    def severity(name: str, level: int) -> tuple[float, float]:
        pairs = [(distort(picture, name, level, k), picture) for k, picture in enumerate(pictures)]
        tensors = [[torch.from_numpy(p).permute(2, 0, 1)[None] for p in pair] for pair in pairs]
        return np.mean([(float((x - y).square().mean().sqrt()), float(piq.mdsi(x, y))) for x, y in tensors], axis=0)

    for name in distortions.NAMES:
        if name not in ("mean_shift", "contrast"):
            rising = np.diff([severity(name, level) for level in range(1, 6)], axis=0)
            # color_shift saturates: its last MDSI steps rise over 30 photographs (docs/distortions.md), not over 4
            slack = 0.01 if name == "color_shift" else 0
            assert (rising > [0, -slack]).all(), (name, rising)


# classes, seeds, errors


def test_class_ids():
    assert distortions.class_id("", 0) == 0
    ids = [distortions.class_id(name, level, merge_identity=False) for name, level in EVERY]
    assert ids == list(range(1, 126))
    identities = {key for key in EVERY if distortions.class_id(*key) == 0}
    assert identities == distortions.IDENTITY == {
        ("gaussian_blur", 1), ("motion_blur", 1), ("saturation_lab", 1), ("mean_shift", 3)
    }  # fmt: skip


def test_generator_depends_on_each_of_its_parts():
    base = ("ab" * 32, "jpeg", 3, 7)
    others = [("cd" * 32, *base[1:]), (base[0], "jitter", 3, 7), (*base[:2], 4, 7), (*base[:3], 8)]
    first = distortions.generator(*base).random(4)
    assert (first == distortions.generator(*base).random(4)).all()
    assert all((first != distortions.generator(*other).random(4)).all() for other in others)


def test_global_generators_are_left_alone():
    np.random.seed(1)  # noqa: NPY002
    cv2.setRNGSeed(1)
    expected = np.random.random(3), cv2.randu(np.zeros(3, np.float32), 0, 1).copy()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    cv2.setRNGSeed(1)
    image = photograph(40, 40)
    for name in distortions.NAMES:
        distort(image, name, 3)
    assert (np.random.random(3) == expected[0]).all()  # noqa: NPY002
    assert (cv2.randu(np.zeros(3, np.float32), 0, 1) == expected[1]).all()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((40, 40, 3), np.uint8), "float32 array, got uint8"),
        (np.zeros((40, 40, 3)), "got float64"),
        ([[0.5]], "got list"),
        (np.zeros((40, 40), np.float32), "shape"),
        (np.zeros((40, 40, 4), np.float32), "shape"),
        (np.zeros((31, 40, 3), np.float32), "at least 32"),
        (np.full((40, 40, 3), 1.01, np.float32), "divide 8-bit by 255"),
        (np.full((40, 40, 3), -0.01, np.float32), r"\[0, 1\]"),
        (np.full((40, 40, 3), np.nan, np.float32), "NaN"),
        (np.full((40, 40, 3), np.inf, np.float32), r"\[0, 1\]"),
    ],
)
def test_wrong_images_are_refused(image, message):
    with pytest.raises(distortions.DistortionError, match=message):
        distortions.distort(image, "jpeg", 3, rng())


def test_one_nan_is_enough():
    image = photograph(40, 40)
    image[20, 20, 1] = np.nan
    with pytest.raises(distortions.DistortionError, match="NaN"):
        distort(image, "jpeg", 3)


@pytest.mark.parametrize("level", [0, 6, 2.5, "3", True, None])
def test_wrong_levels_are_refused(level):
    with pytest.raises(distortions.DistortionError, match="level must be"):
        distort(photograph(40, 40), "jpeg", level)


def test_unknown_names_and_generators_are_refused():
    with pytest.raises(distortions.DistortionError, match="unknown distortion 'blur'; choose one of gaussian_blur"):
        distort(photograph(40, 40), "blur", 1)
    with pytest.raises(distortions.DistortionError, match="rng must be"):
        distortions.distort(photograph(40, 40), "jpeg", 1, 0)
    with pytest.raises(distortions.DistortionError, match="level must be"):
        distortions.class_id("jpeg", 0)


def test_contact_sheet_shows_every_class():
    photo = data.coffee()[100:300, 100:300]
    sheet = distortions.contact_sheet(photo, 0)
    assert sheet.dtype == np.uint8
    assert sheet.shape[0] > 25 * 100
    small = distortions.contact_sheet(photo[:40, :40], 0)
    assert small.shape == sheet.shape
    assert (small == distortions.contact_sheet(photo[:40, :40], 0)).all()
    assert (small != distortions.contact_sheet(photo[:40, :40], 1)).any()
