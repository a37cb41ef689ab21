"""Files that lost data, and files whose numbers Pillow alone misreads: refused, or read by their own tags."""

import io
import resource
import struct
import subprocess
import sys
import zlib

import bad_inputs
import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from contrique import completeness, images
from contrique.images import BadImage, decode

PIXELS = np.ascontiguousarray(np.tile(bad_inputs.photo(), (3, 3, 1)))
GREY = np.asarray(Image.fromarray(PIXELS).convert("L"))


def encode(pixels, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind, **options)
    return buffer.getvalue()


def tiff(values, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def overwrite(data, start, size, filler=b"\0"):
    """Zeros in place of some bytes; `start` is a share of the file."""
    at = int(len(data) * start)
    return data[:at] + filler * size + data[at + size :]


def cut(data, start, size):
    at = int(len(data) * start)
    return data[:at] + data[at + size :]


JPEG = encode(PIXELS, "JPEG", quality=90)
RESTARTS = encode(PIXELS, "JPEG", quality=90, restart_marker_rows=1)
PROGRESSIVE = encode(PIXELS, "JPEG", progressive=True)
QOI = images.encode_qoi(PIXELS)
LOSSY, LOSSLESS = encode(PIXELS, "WEBP", quality=80), encode(PIXELS, "WEBP", lossless=True)


def without_last_scans(data, count):
    at = len(data)
    for _ in range(count):
        at = data.rindex(b"\xff\xda", 0, at)
    table = data.rfind(b"\xff\xc4", 0, at)
    return data[: table if table > data.rindex(b"\xff\xda", 0, at) else at] + b"\xff\xd9"


def without_restarts(data, first, count):
    """A JPEG that lost `count` whole intervals."""
    marks = [i for i in range(len(data) - 1) if data[i] == 0xFF and 0xD0 <= data[i + 1] <= 0xD7]
    return data[: marks[first]] + data[marks[first + count] :]


def cmyk_jpeg():
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).convert("CMYK").save(buffer, "JPEG")
    return buffer.getvalue()


def webp_tail(data, share):
    at = int(len(data) * share)
    return data[:at] + bytes(len(data) - at)


DAMAGED_FILES = {
    "a JPEG's second half lost": JPEG[: len(JPEG) // 2] + b"\xff\xd9",
    "a JPEG's second half zero": overwrite(JPEG, 0.5, len(JPEG) // 2 - 4)[:-2] + b"\xff\xd9",
    "zeros in the middle of a JPEG": overwrite(JPEG, 0.3, 2000),
    "a hundred zeros in the middle of a JPEG": overwrite(JPEG, 0.7, 100),
    "zeros in a JPEG with tables of its own": overwrite(encode(PIXELS, "JPEG", optimize=True), 0.7, 500),
    "a hole in a JPEG": cut(JPEG, 0.5, 3000),
    "a hole in a grey JPEG": cut(encode(GREY, "JPEG"), 0.5, 1500),
    "a hole in a CMYK JPEG": cut(cmyk_jpeg(), 0.5, 3000),
    "one restart interval lost": without_restarts(RESTARTS, 2, 1),
    "eight restart intervals lost, so that the counter fits": without_restarts(RESTARTS, 2, 8),
    "the last scan of a progressive JPEG lost": without_last_scans(PROGRESSIVE, 1),
    "all but the first scan lost": without_last_scans(PROGRESSIVE, PROGRESSIVE.count(b"\xff\xda") - 1),
    "a hole in a progressive JPEG": cut(PROGRESSIVE, 0.4, 1000),
    "a QOI of its end alone": QOI[:14] + QOI[-8:],
    "half a QOI": QOI[: len(QOI) // 2] + QOI[-8:],
    "a hole in a QOI": cut(QOI, 0.5, 100),
    "zeros in a QOI": overwrite(QOI, 0.5, 100),
    "a QOI with more data than pixels": QOI[:-8] + b"\xfe\x09\x09\x09" + QOI[-8:],
    "the tail of a lossy WebP zero": webp_tail(LOSSY, 0.7),
    "the last twentieth of a lossy WebP zero": webp_tail(LOSSY, 0.95),
    "the tail of a lossless WebP zero": webp_tail(LOSSLESS, 0.7),
    "zeros in the middle of a lossless WebP": overwrite(LOSSLESS, 0.5, 1000),
    "zeros in a deflated TIFF": overwrite(tiff(PIXELS, photometric="rgb", compression="deflate"), 0.5, 300),
    "zeros in a TIFF of JPEG": overwrite(tiff(PIXELS, photometric="rgb", compression="jpeg"), 0.5, 500),
    "zeros in a PNG": overwrite(encode(PIXELS, "PNG"), 0.5, 300),
    "zeros in a GIF": overwrite(encode(PIXELS, "GIF"), 0.5, 300),
}


@pytest.mark.parametrize("kind", DAMAGED_FILES)
def test_a_file_that_lost_data_is_refused(kind):
    with pytest.raises(BadImage, match=r"^a\.img: damaged or truncated \(.+\); fetch the file again$"):
        decode(DAMAGED_FILES[kind], "a.img")


def test_a_qoi_of_22_bytes_with_50_megapixels_is_refused():
    data = b"qoif" + struct.pack(">II", 10_000, 5_000) + b"\3\0" + QOI[-8:]
    with pytest.raises(BadImage, match="less data than pixels"):
        decode(data)


@pytest.mark.parametrize("colour", [(1, 254, 1), (254, 1, 3), (240, 2, 128)])
def test_a_qoi_may_end_in_the_colour_that_marks_its_end(colour):
    pixels = np.full((9, 7, 3), colour, np.uint8)
    np.testing.assert_array_equal(decode(images.encode_qoi(pixels)).pixels, pixels)
    rgba = np.dstack([pixels, np.full((9, 7), 255, np.uint8)])
    np.testing.assert_array_equal(decode(imagecodecs.qoi_encode(rgba)).pixels, pixels)


@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("quality", [1, 60, 100])
@pytest.mark.parametrize("flat", [0, 0.1, 0.7, 1])
def test_a_webp_that_ends_in_one_colour_is_whole(lossless, quality, flat):
    pixels = PIXELS.copy()
    pixels[int(len(pixels) * (1 - flat)) :] = 255
    for method in (0, 4):
        data = encode(pixels, "WEBP", lossless=lossless, quality=quality, method=method)
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        np.testing.assert_array_equal(decode(data).pixels, expected)


@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"progressive": True}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (9, 99, 200)])
def test_a_jpeg_of_one_colour_is_whole(options, colour):
    pixels = PIXELS.copy()
    pixels[50:] = colour
    for picture in (pixels, np.full_like(pixels, colour)):
        data = encode(picture, "JPEG", **options)
        np.testing.assert_array_equal(decode(data).pixels, np.asarray(Image.open(io.BytesIO(data))))


def test_a_jpeg_with_a_newer_version_in_its_header_is_whole():
    data = JPEG.replace(b"JFIF\0\1\1", b"JFIF\0\2\1")
    assert data != JPEG
    np.testing.assert_array_equal(decode(data).pixels, decode(JPEG).pixels)


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"subsampling": 0}, {"subsampling": 1}]
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("size", [(288, 240), (95, 79), (1, 1), (17, 300)])
def test_whole_jpegs_are_decoded_as_pillow_does(options, mode, size):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).resize(size).convert(mode).save(buffer, "JPEG", **options)
    picture = Image.open(buffer)
    np.testing.assert_array_equal(decode(buffer.getvalue()).pixels, np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpegs_are_turned_upright(orientation, mode):
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(buffer, "JPEG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(buffer)).convert("RGB")
    np.testing.assert_array_equal(decode(buffer.getvalue()).pixels, np.asarray(expected))


def many_scans(count):
    """A progressive JPEG whose last scan, which refines nothing, comes again and again."""
    at = PROGRESSIVE.rindex(b"\xff\xda")
    return PROGRESSIVE[:at] + PROGRESSIVE[at:-2] * count + b"\xff\xd9"


def test_a_jpeg_of_hundreds_of_scans_is_refused_before_they_are_decoded():
    with pytest.raises(BadImage, match=f"over {completeness.MAX_SCANS} scans"):
        decode(many_scans(400))


GREYS = {
    "8 bits": tiff(GREY),
    "8 bits, white is zero": tiff(255 - GREY, photometric="miniswhite"),
    "16 bits": tiff(GREY.astype("u2") * 257),
    "16 bits, white is zero": tiff(65535 - GREY.astype("u2") * 257, photometric="miniswhite"),
    "16 bits, big-endian": tiff(GREY.astype("u2") * 257, byteorder=">"),
    "12 bits": tiff((GREY.astype("u4") * 4095 // 255).astype("u2"), bitspersample=12, photometric="minisblack"),
    "floats": tiff(GREY.astype("f4") / 255),
    "floats, white is zero": tiff(1 - GREY.astype("f4") / 255, photometric="miniswhite"),
    "a palette": tiff(GREY, photometric="palette", colormap=np.tile(np.arange(256) * 257, (3, 1)).astype("u2")),
    "16-bit colour": tiff(np.dstack([GREY] * 3).astype("u2") * 257, photometric="rgb"),
    "planes of 8 bits": tiff(np.stack([GREY] * 3), photometric="rgb", planarconfig="separate"),
    "grey and an unused channel": tiff(
        np.dstack([GREY, GREY]), photometric="minisblack", planarconfig="contig", extrasamples=["unspecified"]
    ),
    "colour and an unused channel": tiff(np.dstack([GREY] * 4), photometric="rgb", extrasamples=["unspecified"]),
}


@pytest.mark.parametrize("kind", GREYS)
def test_the_same_grey_picture_in_every_kind_of_tiff(kind):
    difference = decode(GREYS[kind]).pixels.astype(int) - GREY[..., None]
    assert np.abs(difference).max() <= (1 if kind == "12 bits" else 0)


@pytest.mark.parametrize("kind", ["assocalpha", "unassalpha"])
@pytest.mark.parametrize("bits", [8, 16])
def test_the_alpha_of_a_tiff_is_what_its_tag_says(kind, bits):
    alpha = GREY[..., None].astype(float)
    stored = np.minimum(PIXELS, GREY[..., None])
    values = np.dstack([stored, GREY])
    data = tiff(values if bits == 8 else values.astype("u2") * 257, photometric="rgb", extrasamples=[kind])
    share = alpha / 255
    expected = stored + 255 * (1 - share) if kind == "assocalpha" else stored * share + 255 * (1 - share)
    np.testing.assert_allclose(decode(data).pixels, expected, atol=2)


def test_grey_with_premultiplied_alpha_is_composed_over_white():
    values = np.dstack([np.minimum(GREY, 100), np.full_like(GREY, 100)])
    data = tiff(values, photometric="minisblack", planarconfig="contig", extrasamples=["assocalpha"])
    np.testing.assert_allclose(decode(data).pixels[..., 0], values[..., 0] + 155.0, atol=3)


UNSUPPORTED = {
    "signed": (tiff((GREY.astype(int) - 128).astype("i1")), "signed integers"),
    "signed, 16 bits": (tiff((GREY.astype(int) * 100).astype("i2")), "signed integers"),
    "32 bits": (tiff(GREY.astype("u4") * 16843009), "32-bit integers"),
    "14 bits": (tiff(GREY.astype("u2"), bitspersample=14, photometric="minisblack"), "a TIFF with 14 bits"),
    "64-bit floats": (tiff(GREY.astype("f8")), "a TIFF with 64 bits, sample format 3"),
    "colour floats": (tiff(PIXELS.astype("f4"), photometric="rgb"), "a TIFF with 32/32/32 bits"),
    "planes of 16 bits": (
        tiff(np.stack([GREY] * 3).astype("u2"), photometric="rgb", planarconfig="separate"),
        "16 bits in separate planes",
    ),
    "WebP": (tiff(PIXELS, photometric="rgb", compression="webp"), "WebP inside"),
    "JPEG XL": (tiff(PIXELS, photometric="rgb", compression="jpegxl"), "compression 50002"),
    "a preview": (tiff(PIXELS, photometric="rgb", subfiletype=1), "a preview before the picture"),
    "a palette of 8 bits": (
        tiff(GREY, photometric="palette", colormap=np.tile(np.arange(256), (3, 1)).astype("u2")),
        "a colour map of 8 bits",
    ),
    "sensor data": (tiff(GREY, photometric="cfa"), "photometric interpretation 32803"),
}


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_a_tiff_that_is_not_read_is_unsupported_and_not_damaged(kind):
    data, says = UNSUPPORTED[kind]
    with pytest.raises(
        BadImage, match=r"^a\.tif: a TIFF with .* is not supported; convert it to an 8-bit PNG$"
    ) as error:
        decode(data, "a.tif")
    assert says in str(error.value)


def test_floats_outside_0_to_1_are_not_clipped():
    for values in (GREY.astype("f4"), GREY.astype("f4") / 255 - 0.5):
        with pytest.raises(BadImage, match="floats outside 0 to 1; scale them"):
            decode(tiff(values))
    pixels = np.clip(GREY.astype("f4") / 255 * 1.0005, 0, 1.0005)
    np.testing.assert_allclose(decode(tiff(pixels)).pixels[..., 0], GREY, atol=1)


def test_a_tiff_without_its_directory_is_damaged():
    data = encode(PIXELS, "TIFF", compression="tiff_lzw")
    with pytest.raises(BadImage, match="damaged or truncated \\(no TIFF tags\\)"):
        decode(data[: len(data) // 2])


def with_tile(data, width, height):
    """A TIFF that declares another size of its tiles."""
    copy = bytearray(data)
    page = tifffile.TiffFile(io.BytesIO(data)).pages[0]
    for name, size in (("TileWidth", width), ("TileLength", height)):
        at = page.tags[name].valueoffset
        copy[at - 6 : at - 4], copy[at : at + 4] = struct.pack("<H", 4), struct.pack("<I", size)
    return bytes(copy)


@pytest.mark.parametrize("compression", [None, "lzw", "deflate"])
@pytest.mark.parametrize("size", [(26_000, 26_000), (2**31 - 16, 16), (16, 2**31 - 16)])
def test_tiles_count_for_the_limit_of_pixels(compression, size):
    data = with_tile(tiff(PIXELS, tile=(16, 16), photometric="rgb", compression=compression), *size)
    with pytest.raises(BadImage, match=f"tiles of {size[0]}x{size[1]}, over 200 megapixels"):
        decode(data)


def png(depth, kind, row, count, *chunks):
    header = struct.pack(">IIBBBBB", count, 8, depth, kind, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress((b"\0" + row) * 8)), (b"IEND", b"")]
    frames = (struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(frames)


def key(*values):
    return b"tRNS", struct.pack(f">{len(values)}H", *values)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (png(2, 0, b"\x1b", 4, key(1)), [0, 255, 170, 255]),
        (png(2, 0, b"\x1b", 4, key(0)), [255, 85, 170, 255]),
        (png(4, 0, b"\x01\x25", 4, key(2)), [0, 17, 255, 85]),
        (png(16, 0, np.array([0, 257, 514, 771], ">u2").tobytes(), 4, key(514)), [0, 1, 255, 3]),
        (png(8, 0, b"\0\1\2\3", 4, key(2)), [0, 1, 255, 3]),
    ],
)
def test_the_transparent_level_of_a_grey_png_is_white_at_every_depth(data, expected):
    np.testing.assert_array_equal(decode(data).pixels[3, :, 1], expected)


def test_a_transparent_colour_of_16_bits_is_unsupported():
    row = np.repeat(np.array([0, 257], ">u2"), 3).tobytes()
    with pytest.raises(BadImage, match="a transparent colour of 16 bits is not supported"):
        decode(png(16, 2, row, 2, key(257, 257, 257)))


def bmp(alpha):
    """32 bits with a mask for alpha."""
    header = struct.pack("<IiiHHIIiiII", 108, 8, 8, 1, 32, 3, 0, 0, 0, 0, 0)
    header += struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48)
    body = bytes([10, 20, 30, alpha]) * 64
    return b"BM" + struct.pack("<IHHI", 122 + len(body), 0, 0, 122) + header + body


@pytest.mark.parametrize(
    "data",
    [
        bmp(0),
        encode(np.dstack([PIXELS, np.zeros_like(GREY)]), "PNG"),
        encode(np.dstack([PIXELS, np.zeros_like(GREY)]), "WEBP", lossless=True, exact=True),
        tiff(np.dstack([PIXELS, np.zeros_like(GREY)]), photometric="rgb", extrasamples=["unassalpha"]),
        imagecodecs.qoi_encode(np.dstack([PIXELS, np.zeros_like(GREY)])),
        png(1, 0, b"\0", 8, key(0)),
    ],
    ids=["bmp", "png", "webp", "tiff", "qoi", "key"],
)
def test_a_picture_that_is_transparent_throughout_is_refused(data):
    with pytest.raises(BadImage, match="transparent throughout; remove its alpha channel"):
        decode(data)


def test_white_pictures_and_faint_ones_are_scored():
    for data in (
        bmp(1),
        encode(np.full((9, 9, 4), 255, np.uint8), "PNG"),
        encode(np.full((9, 9, 3), 255, np.uint8), "PNG"),
    ):
        assert decode(data).pixels.min() >= 250


@pytest.mark.parametrize("data", [b"P3 " + b"#a\n" * 10**6 + b"1 1 255 1 2 3", b"P6 8 " + b"# " * 10**6 + b"\n8 255 "])
def test_a_header_of_comments_is_refused(data):
    with pytest.raises(BadImage, match="no header in its first 65536 bytes"):
        decode(data)
    with pytest.raises(BadImage, match="no header"):
        images.declared_size(data)


def test_comments_in_a_pnm_are_passed_over():
    expected = np.array([[[1, 2, 3], [4, 5, 6]]])
    plain = b"P3 # a comment\n2#b\n 1\r255 # c\n1 2 3" + b"# much\n" * 10**6 + b" 4 5 6"
    raw = b"P6 # a comment\n2 1 # b\n255\n" + bytes([1, 2, 3, 4, 5, 6])
    for data in (plain, raw):
        np.testing.assert_array_equal(decode(data).pixels, expected)
    np.testing.assert_array_equal(decode(b"P6 1 1 255 #ab").pixels, [[list(b"#ab")]])


def test_libtiff_prints_nothing(tmp_path):
    """Another process, whose standard error is a file."""
    path = tmp_path / "a.tif"
    path.write_bytes(overwrite(encode(PIXELS, "TIFF", compression="tiff_lzw"), 0.3, 3000))
    command = (
        "import sys; from contrique import images\ntry: images.read(sys.argv[1])\nexcept images.BadImage: sys.exit(3)"
    )
    process = subprocess.run([sys.executable, "-c", command, path], capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout, process.stderr) == (3, "", "")


@pytest.mark.parametrize(("depth", "kind"), [(16, 0), (8, 4)], ids=["16-bit grey", "grey with alpha"])
def test_200_megapixels_of_two_bytes_take_little_more_than_they_are(tmp_path, depth, kind):
    """Under a limit of memory: the picture of 400 MB, what it becomes of 600 MB, and the libraries."""
    path = tmp_path / "large.png"
    row, step = b"\0" + b"\7\x80" * 20_000, zlib.compressobj(1)
    body = b"".join(step.compress(row) for _ in range(10_000)) + step.flush()
    header = struct.pack(">IIBBBBB", 20_000, 10_000, depth, kind, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", body), (b"IEND", b"")]
    chunks = (struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in parts)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    command = "import sys; from contrique import images; print(images.read(sys.argv[1]).shape)"
    limit = 2_200_000_000
    process = subprocess.run(
        [sys.executable, "-c", command, path],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert (process.stdout, process.returncode) == ("(10000, 20000, 3)\n", 0), process.stderr
