"""Every format and every bad file, against Pillow, imagecodecs and ImageHash."""

import io
from pathlib import Path

import imagecodecs
import imagehash
import numpy as np
import pytest
import scipy.fft
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from contrique import images
from contrique.data.manifest import read_manifest
from contrique.images import BadImage, decode


@pytest.fixture
def pixels() -> images.Picture:
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def encode(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("PNG", {"compress_level": 0}),
        ("BMP", {}),
        ("PPM", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_lossless_formats_give_the_same_pixels(pixels, kind, options):
    picture = decode(encode(Image.fromarray(pixels), kind, **options))
    np.testing.assert_array_equal(picture.pixels, pixels)
    assert picture.pixels.dtype == np.uint8
    assert picture.channels == 3


@pytest.mark.parametrize("channels", [3, 4])
def test_qoi_gives_the_same_pixels(pixels, channels):
    stored = pixels if channels == 3 else np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    picture = decode(imagecodecs.qoi_encode(stored))
    np.testing.assert_array_equal(picture.pixels, pixels)
    assert picture.channels == channels


def test_alpha_is_composed_over_white_in_every_format(pixels):
    alpha = np.random.default_rng(1).integers(0, 256, pixels.shape[:2], dtype=np.uint8)
    rgba = np.dstack([pixels, alpha])
    share = alpha[..., None] / 255
    expected = pixels * share + 255 * (1 - share)
    picture = Image.fromarray(rgba)
    stored = [encode(picture, "PNG"), encode(picture, "TIFF"), encode(picture, "WEBP", lossless=True, exact=True)]
    for data in [*stored, imagecodecs.qoi_encode(rgba)]:
        actual = decode(data)
        assert actual.channels == 4
        np.testing.assert_allclose(actual.pixels, expected, atol=1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_picture_upright(pixels, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turns = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a),
    }
    picture = decode(encode(Image.fromarray(pixels), "PNG", exif=exif))
    np.testing.assert_array_equal(picture.pixels, turns[orientation](pixels))


def test_jpeg_is_decoded_as_pillow_does(photographs):
    picture = Image.open(photographs / "images" / "coffee.png")
    data = encode(picture, "JPEG", quality=70)
    np.testing.assert_array_equal(decode(data).pixels, np.array(Image.open(io.BytesIO(data))))


def test_grey_is_three_equal_channels(pixels):
    picture = decode(encode(Image.fromarray(pixels[..., 0]), "PNG"))
    assert picture.channels == 1
    np.testing.assert_array_equal(picture.pixels, np.dstack([pixels[..., 0]] * 3))


def test_one_bit_pictures_are_black_and_white(pixels):
    bits = pixels[..., 0] > 127
    np.testing.assert_array_equal(decode(encode(Image.fromarray(bits), "PNG")).pixels[..., 1], bits * np.uint8(255))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(kind):
    values = np.random.default_rng(2).integers(0, 65536, (40, 60)).astype(np.uint16)
    picture = decode(encode(Image.fromarray(values), kind))
    np.testing.assert_array_equal(picture.pixels[..., 0], np.floor(values / 65535 * 255 + 0.5))
    np.testing.assert_array_equal(picture.pixels[..., 0], picture.pixels[..., 2])


@pytest.mark.parametrize("write", [imagecodecs.png_encode, imagecodecs.tiff_encode], ids=["png", "tiff"])
def test_16_bit_colour_is_scaled(write):
    values = np.random.default_rng(3).integers(0, 65536, (40, 60, 3)).astype(np.uint16)
    if write is imagecodecs.tiff_encode:
        values = np.ascontiguousarray(values)
    picture = decode(write(values))
    np.testing.assert_allclose(picture.pixels, values / 257, atol=1)


def test_float_tiff_in_0_to_1_is_scaled():
    values = np.linspace(0, 1, 2400, dtype=np.float32).reshape(40, 60)
    picture = decode(encode(Image.fromarray(values), "TIFF"))
    np.testing.assert_allclose(picture.pixels[..., 0], values * 255, atol=0.51)


def test_cmyk_is_converted(pixels):
    picture = Image.new("CMYK", (60, 40), (0, 255, 255, 0))
    for kind in ("JPEG", "TIFF"):
        actual = decode(encode(picture, kind))
        assert actual.channels == 4
        np.testing.assert_allclose(actual.pixels[20, 30], [255, 0, 0], atol=3)


def test_palettes_with_and_without_transparency(pixels):
    palette = Image.fromarray(pixels // 64 * 64).quantize(64)
    np.testing.assert_array_equal(decode(encode(palette, "PNG")).pixels, np.array(palette.convert("RGB")))
    indices = np.array(palette)
    clear = decode(encode(palette, "PNG", transparency=int(indices[0, 0]))).pixels
    assert (clear[indices == indices[0, 0]] == 255).all()
    opaque = indices != indices[0, 0]
    np.testing.assert_array_equal(clear[opaque], np.array(palette.convert("RGB"))[opaque])


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "GIF"])
def test_of_an_animation_the_first_frame_is_taken(pixels, kind):
    frames = [Image.fromarray(pixels // 128 * 128), Image.new("RGB", (60, 40), (9, 9, 9))]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_allclose(decode(data).pixels, pixels // 128 * 128, atol=0)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM", "QOI"])
def test_half_a_file_is_a_bad_image_that_is_named(photographs, kind):
    picture = Image.open(photographs / "images" / "coffee.png").convert("RGB")
    data = imagecodecs.qoi_encode(np.array(picture)) if kind == "QOI" else encode(picture, kind)
    for part in (data[: len(data) // 2], data[:40], data[:5]):
        with pytest.raises(BadImage, match=r"^a\.img: (damaged or truncated|not an image)") as error:
            decode(part, "a.img")
        assert "\n" not in str(error.value)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_bytes_never_end_in_anything_but_a_picture_or_a_bad_image(data):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM", "QOI"]))
    content = bytearray(imagecodecs.qoi_encode(pixels) if kind == "QOI" else encode(picture, kind))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        result = decode(bytes(content))
    except BadImage:
        return
    assert result.pixels.dtype == np.uint8
    assert result.pixels.ndim == 3
    assert result.pixels.shape[2] == 3


def test_an_empty_file_and_text_are_told_apart(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "page.png").write_text("<html>")
    with pytest.raises(BadImage, match=r"empty\.png: the file is empty"):
        images.read(tmp_path / "empty.png")
    with pytest.raises(BadImage, match=r"page\.png: not an image"):
        images.read(tmp_path / "page.png")
    with pytest.raises(BadImage, match=r"absent\.png: cannot be read \(No such file"):
        images.read(tmp_path / "absent.png")
    with pytest.raises(BadImage, match="cannot be read"):
        images.read(tmp_path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_before_it_is_decoded():
    ppm = b"P6 20000 10001 255 " + bytes(100)
    qoi = b"qoif" + (20_000).to_bytes(4, "big") + (10_001).to_bytes(4, "big") + bytes([3, 0]) + bytes(100)
    for data in (ppm, qoi):
        with pytest.raises(BadImage, match="20000x10001 is over 200 megapixels"):
            decode(data)
    with pytest.raises(BadImage, match="over 400 megapixels; downscale"):
        decode(b"P6 30000 30000 255 ")


def test_pictures_between_pillows_limit_and_ours_are_not_warned_of(recwarn):
    with pytest.raises(BadImage, match="truncated"):
        decode(b"P5 14000 14000 255 ")
    assert not recwarn.list


def test_png_comes_back_and_is_reproducible(pixels, tmp_path):
    data = images.encode_png(pixels)
    assert data == images.encode_png(pixels.copy())
    (tmp_path / "a.png").write_bytes(data)
    np.testing.assert_array_equal(images.read(tmp_path / "a.png"), pixels)
    np.testing.assert_array_equal(images.read(str(tmp_path / "a.png")), pixels)


SHAPES = [(2, 3), (14, 14), (16, 16), (18, 20), (41, 60), (40, 61), (80, 40), (82, 40), (384, 512), (998, 1502)]


@pytest.mark.parametrize("contrast", ["noise", "stripes"])
@pytest.mark.parametrize("shape", SHAPES)
def test_half_scale_is_pillows_bicubic(shape, contrast):
    """To the bit, on either side of the sizes from which on another library computes it; stripes overshoot."""
    generator = np.random.default_rng(4)
    pixels = generator.integers(0, 256, (*shape, 3), dtype=np.uint8)
    if contrast == "stripes":
        pixels = np.where(generator.random((*shape, 3)) < 0.5, 0, 255).astype(np.uint8)
    half = images.half_scale(pixels)
    assert half.shape == (shape[0] // 2, shape[1] // 2, 3)
    expected = Image.fromarray(pixels).resize((shape[1] // 2, shape[0] // 2), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(half, np.array(expected))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((100, 50), (40, 20)), ((50, 100), (20, 40)), ((40, 40), (40, 40)), ((30, 20), (30, 20)), ((4000, 2), (40, 1))],
)
def test_fit_within_keeps_the_proportions_and_never_enlarges(shape, expected):
    pixels = np.zeros((*shape, 3), np.uint8)
    assert images.fit_within(pixels, 40).shape == (*expected, 3)


def test_float_and_back_is_lossless_and_out_of_range_is_clipped(pixels):
    floats = images.as_float(pixels)
    assert floats.dtype == np.float32
    assert (floats.min() >= 0) & (floats.max() <= 1)
    np.testing.assert_array_equal(images.as_uint8(floats), pixels)
    np.testing.assert_array_equal(images.as_uint8(np.array([-1.0, 0.5, 2.0])), [0, 128, 255])


def test_content_hash_is_sha256():
    assert images.content_hash(b"abc").startswith("ba7816bf8f01cfea")


def all_photographs(folder: Path) -> list[images.Picture]:
    return [images.read(folder / name) for name in read_manifest(folder)["image"]]


def test_perceptual_hash_is_the_signs_of_the_low_frequencies_against_their_median():
    rng = np.random.default_rng(5)
    for _ in range(20):
        grey = rng.integers(0, 256, (32, 32), dtype=np.uint8)
        low = scipy.fft.dctn(grey.astype(float), norm="ortho")[:8, :8]
        bits = "".join("1" if value > np.median(low) else "0" for value in low.ravel())
        assert int(images.perceptual_hash(np.dstack([grey] * 3)), 16) == int(bits, 2)


def test_perceptual_hash_agrees_with_imagehash_but_for_resampling_and_scale(photographs):
    pictures = all_photographs(photographs)
    bits = [
        images.hamming(images.perceptual_hash(pixels), str(imagehash.phash(Image.fromarray(pixels))))
        for pixels in pictures
    ]
    assert np.mean(bits) < 4
    assert max(bits) <= 12


def test_copies_of_a_photograph_differ_in_fewer_bits_than_two_photographs(photographs):
    pictures = all_photographs(photographs)
    hashes = [images.perceptual_hash(pixels) for pixels in pictures]
    apart = min(images.hamming(a, b) for i, a in enumerate(hashes) for b in hashes[:i])
    near = 0
    for pixels, original in zip(pictures, hashes, strict=True):
        picture = Image.fromarray(pixels)
        smaller = np.array(picture.resize((picture.width * 2 // 3, picture.height * 2 // 3)))
        jpeg = decode(encode(picture, "JPEG", quality=50)).pixels
        near = max(near, *(images.hamming(images.perceptual_hash(copy), original) for copy in (smaller, jpeg)))
    assert near <= 6
    assert apart > 14


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_hamming_counts_bits(a, b):
    assert images.hamming(f"{a:016x}", f"{b:016x}") == bin(a ^ b).count("1")
