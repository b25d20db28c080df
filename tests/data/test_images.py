"""Encoded images in every mode, against pixel values computed without PIL's conversions or its resize."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from began.data import images, resampling
from began.data.images import crop_box, decode_image, grid, png_bytes, read_png, tiles, write_png

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")  # of PIL, about damage

RGB = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
GREY = RGB[..., 0]


def encode(array: np.ndarray | Image.Image, kind: str = "PNG", **options: object) -> bytes:
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photograph(width: int, height: int) -> np.ndarray:
    """Soft shapes and some noise, as a camera sees."""
    rng = np.random.default_rng(width)
    y, x = np.mgrid[:height, :width] / max(width, height)
    waves = [np.sin(2 * np.pi * (f * x + g * y + p)) for f, g, p in rng.uniform(-12, 12, (9, 3))]
    picture = 128 + 14 * np.stack([sum(waves[i::3]) for i in range(3)], axis=2) + rng.normal(0, 3, (height, width, 3))
    return np.clip(picture, 0, 255).astype(np.uint8)


def lanczos(picture: np.ndarray, box: tuple[float, float, float, float], size: int) -> np.ndarray:
    """The definition, in float64: each output pixel one sum over the box's neighbourhood."""

    def weights(num: int, start: float, end: float) -> np.ndarray:
        scale = (end - start) / size
        centres = start + (np.arange(size) + 0.5) * scale
        t = (np.arange(num) + 0.5 - centres[:, None]) / max(scale, 1)
        w = np.where(abs(t) < 3, np.sinc(t) * np.sinc(t / 3), 0)
        return w / w.sum(axis=1, keepdims=True)

    left, top, right, bottom = box
    lo_x, lo_y, hi_x, hi_y = int(left), int(top), int(np.ceil(right)), int(np.ceil(bottom))
    part = picture[lo_y:hi_y, lo_x:hi_x].astype(float)
    rows = np.einsum("oi,ijc->ojc", weights(len(part), top - lo_y, bottom - lo_y), part)
    out = np.einsum("oj,ijc->ioc", weights(part.shape[1], left - lo_x, right - lo_x), rows)
    return np.clip(out, 0, 255)


def test_an_image_of_the_final_size_is_kept_bit_by_bit() -> None:
    for kind in ("PNG", "BMP", "PPM", "TIFF", "TGA"):
        assert np.array_equal(decode_image(encode(RGB, kind), 32, "centre"), RGB), kind
    assert np.array_equal(decode_image(encode(RGB, "WEBP", lossless=True), 32, "centre"), RGB)


def test_result_is_contiguous_uint8_in_colour() -> None:
    for data in (encode(RGB), encode(GREY), encode(photograph(90, 50), "JPEG")):
        row = decode_image(data, 64, "centre")
        assert row.shape == (64, 64, 3) and row.dtype == np.uint8 and row.flags.c_contiguous


def test_grey_images_get_three_equal_channels() -> None:
    assert np.array_equal(decode_image(encode(GREY), 32, "centre"), np.stack([GREY] * 3, axis=2))


def test_black_and_white_images_are_0_and_255() -> None:
    bits = GREY > 127
    row = decode_image(encode(Image.fromarray(bits)), 32, "centre")
    assert np.array_equal(row[..., 1], np.where(bits, 255, 0))


def test_palette_images_take_the_palettes_colours() -> None:
    palette = np.random.default_rng(1).integers(0, 256, (256, 3), dtype=np.uint8)
    image = Image.frombytes("P", (32, 32), GREY.tobytes())
    image.putpalette(palette.tobytes())
    assert np.array_equal(decode_image(encode(image), 32, "centre"), palette[GREY])
    transparent = decode_image(encode(image, transparency=7), 32, "centre")
    assert np.array_equal(transparent, np.where((GREY == 7)[..., None], 255, palette[GREY]))
    half = bytes([128] * 256)
    expected = palette[GREY] * (128 / 255) + 255 * (127 / 255)
    assert abs(decode_image(encode(image, transparency=half), 32, "centre") - expected).max() <= 1


@pytest.mark.parametrize("grey", [False, True], ids=["RGBA", "LA"])
def test_transparency_lies_on_white(grey: bool) -> None:
    alpha = np.random.default_rng(2).integers(0, 256, (32, 32), dtype=np.uint8)
    colour = np.stack([GREY] * 3, axis=2) if grey else RGB
    data = encode(np.dstack([GREY, alpha] if grey else [RGB, alpha]))
    share = alpha[..., None] / 255
    assert abs(decode_image(data, 32, "centre") - (colour * share + 255 * (1 - share))).max() <= 1


def test_one_transparent_colour_of_an_rgb_png_lies_on_white() -> None:
    colour = tuple(int(c) for c in RGB[3, 5])
    row = decode_image(encode(RGB, transparency=colour), 32, "centre")
    expected = np.where((colour == RGB).all(axis=2)[..., None], 255, RGB)
    assert np.array_equal(row, expected) and (row[3, 5] == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_grey_of_16_bits_is_scaled_not_clipped(kind: str) -> None:
    values = np.random.default_rng(3).integers(0, 65536, (32, 32), dtype=np.uint16)
    values[0, :3] = 0, 65535, 256
    row = decode_image(encode(values, kind), 32, "centre")
    assert np.array_equal(row[..., 2], np.rint(values / 257))
    assert row[0, :3, 0].tolist() == [0, 255, 1]


def packed(values: np.ndarray, bits: int, order: str = ">") -> list[bytes]:
    """Each row of (32, …) as bytes, whole ones; below 8 bits and at 12 the first value is in the upper bits."""
    lines = values.reshape(32, -1)
    if bits in (8, 16, 32):
        return [line.astype(f"{order}u{bits // 8}").tobytes() for line in lines]
    texts = ("".join(f"{value:0{bits}b}" for value in line) for line in lines)
    return [int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8), "big") for text in texts]


def tiff(
    values: np.ndarray, bits: int, photometric: int | None, order: str = "<", more: dict[int, list[int]] | None = None
) -> bytes:
    """An uncompressed TIFF 6.0 of (32, 32) or (32, 32, C) values, by hand; `more` are further tags, or other values."""
    pixels = b"".join(packed(values, bits, order))
    samples = values.size // 1024
    tags = {256: [32], 257: [32], 258: [bits] * samples, 259: [1], 273: [8], 277: [samples], 278: [32]}
    tags |= {279: [len(pixels)]} | ({} if photometric is None else {262: [photometric]}) | (more or {})
    start = 8 + len(pixels)
    start_more = start + 2 + 12 * len(tags) + 4
    directory, further = struct.pack(f"{order}H", len(tags)), b""
    for tag, numbers in sorted(tags.items()):
        body = struct.pack(f"{order}{len(numbers)}H", *numbers)
        if len(body) > 4:
            further, body = further + body, struct.pack(f"{order}I", start_more + len(further))
        directory += struct.pack(f"{order}HHI", tag, 3, len(numbers)) + body.ljust(4, b"\0")
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", start)
    return head + pixels + directory + bytes(4) + further


def numbers(bits: int, channels: int = 1) -> np.ndarray:
    """Every value that `bits` hold, or many of them, with the least and the greatest: (32, 32) or (32, 32, C)."""
    values = np.random.default_rng(bits).integers(0, 2**bits, (32, 32, channels))
    values[0, 0], values[0, 1] = 0, 2**bits - 1
    return values[..., 0] if channels == 1 else values


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("photometric", "bits"), [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (1, 1), (1, 2), (1, 4), (1, 8), (1, 12), (1, 16)]
)
def test_grey_tiff_means_what_its_photometric_and_depth_say(photometric: int, bits: int, order: str) -> None:
    values, most = numbers(bits), 2**bits - 1
    light = most - values if photometric == 0 else values
    try:
        row = decode_image(tiff(values, bits, photometric, order), 32, "centre")
    except ValueError as error:  # PIL knows it in one order only
        assert order == ">" and "is a TIFF of a kind that PIL does not read" in str(error)
    else:
        assert np.array_equal(row[..., 1], np.rint(light * 255 / most))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("order", ["<", ">"])
def test_colours_of_a_tiff_mean_what_its_photometric_says(bits: int, order: str) -> None:
    values, most = numbers(bits, 3), 2**bits - 1
    assert abs(decode_image(tiff(values, bits, 2, order), 32, "centre") - values / most * 255).max() <= 1
    inks = np.dstack([values, np.zeros((32, 32), int)])
    row = decode_image(tiff(inks, bits, 5, order), 32, "centre")
    assert abs(row - (1 - values / most) * 255).max() <= 1


def test_a_palette_of_a_tiff_is_used_at_every_depth() -> None:
    for bits in (1, 2, 4, 8):
        values, palette = numbers(bits), np.random.default_rng(1).integers(0, 256, (3, 2**bits))
        row = decode_image(tiff(values, bits, 3, more={320: (palette * 257).ravel().tolist()}), 32, "centre")
        assert np.array_equal(row, palette.T[values])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (tiff(numbers(8), 8, None), "does not say what its pixels mean"),
        (tiff(numbers(8), 8, 1, more={339: [2]}), "has signed pixels"),
        (tiff(numbers(16), 16, 1, more={339: [2]}), "has signed pixels"),
        (tiff(numbers(16), 32, 1), "has pixels of 32 bits"),
        (tiff(numbers(16), 32, 1, more={339: [3]}), "has floating-point pixels"),
        (tiff(numbers(16), 16, 1, more={339: [3]}), "has floating-point pixels"),
        (tiff(numbers(16, 3), 16, 2, more={284: [2]}), "has 3 planes of 16 bits one after another"),
        (tiff(numbers(8, 2), 8, 1, more={284: [2], 338: [2]}), "has 2 planes of 8 bits one after another"),
        (tiff(numbers(8, 3), 8, 6), "has uncompressed YCbCr pixels"),
        (tiff(numbers(8, 3), 8, 8), r"has CIE L\*a\*b\* pixels"),
        (
            tiff(numbers(16, 2), 16, 1, more={338: [2]}),
            r"that PIL does not read: 16, 16 bits, PhotometricInterpretation 1",
        ),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_a_tiff_whose_pixels_are_not_read_right_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        decode_image(data, 32, "centre")


def png(values: np.ndarray, bits: int, colour: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of (32, 32) or (32, 32, C) values by hand; `chunks` stand before the pixels."""
    lines = b"".join(b"\0" + line for line in packed(values, bits))
    header = (b"IHDR", struct.pack(">2I5B", 32, 32, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in (header, *chunks, (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    )


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_png_of_every_depth_is_scaled_and_its_transparent_value_white(bits: int) -> None:
    values, most = numbers(bits), 2**bits - 1
    expected = np.rint(values * 255 / most)
    assert np.array_equal(decode_image(png(values, bits, 0), 32, "centre")[..., 0], expected)
    for value in {0, 1, most // 2, most}:
        row = decode_image(png(values, bits, 0, (b"tRNS", struct.pack(">H", value))), 32, "centre")
        assert np.array_equal(row[..., 0], np.where(values == value, 255, expected)), value


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_palette_of_a_png_is_used_at_every_depth(bits: int) -> None:
    values, palette = numbers(bits), np.random.default_rng(1).integers(0, 256, (2**bits, 3), dtype=np.uint8)
    chunk = (b"PLTE", palette.tobytes())
    assert np.array_equal(decode_image(png(values, bits, 3, chunk), 32, "centre"), palette[values])
    row = decode_image(png(values, bits, 3, chunk, (b"tRNS", b"\xff\0")), 32, "centre")
    assert np.array_equal(row, np.where((values == 1)[..., None], 255, palette[values]))


def test_colour_of_16_bits_keeps_its_upper_8() -> None:
    values = numbers(16, 4)
    assert abs(decode_image(png(values[..., :3], 16, 2), 32, "centre") - values[..., :3] / 257).max() <= 1
    for colour, channels in ((6, [0, 1, 2, 3]), (4, [0, 3])):
        share = values[..., 3:] / 65535
        row = decode_image(png(values[..., channels], 16, colour), 32, "centre")
        expected = values[..., channels[:-1]] / 257 * share + 255 * (1 - share)
        assert abs(row - expected).max() <= 2
    with pytest.raises(ValueError, match="one transparent colour among those of 16 bits"):
        decode_image(png(values[..., :3], 16, 2, (b"tRNS", bytes(6))), 32, "centre")


@pytest.mark.parametrize("most", [1, 100, 255, 256, 65535])
@pytest.mark.parametrize("kind", [2, 3, 5, 6])
def test_netpbm_is_scaled_from_its_own_maximum(kind: int, most: int) -> None:
    channels = 3 if kind in (3, 6) else 1
    values = np.random.default_rng(most).integers(0, most + 1, (32, 32, channels))
    binary = values.astype(">u2" if most > 255 else ">u1").tobytes()
    body = binary if kind > 4 else " ".join(map(str, values.ravel())).encode()
    row = decode_image(b"P%d\n# made by hand\n32 32\n%d\n" % (kind, most) + body, 32, "centre")
    assert abs(row - values * 255 / most).max() <= 1


def test_jpeg_2000_of_16_bits_is_read_in_grey() -> None:
    values = numbers(16).astype(np.uint16)
    data = encode(values, "JPEG2000")
    assert np.array_equal(decode_image(data, 32, "centre")[..., 0], np.rint(values / 257))


@pytest.mark.parametrize(("depth", "reason"), [(11, "has 12 bits"), (3, "has 4 bits"), (0x87, "has signed pixels")])
def test_jpeg_2000_of_a_depth_that_pil_rounds_wrong_is_refused(depth: int, reason: str) -> None:
    """White of 12 bits comes out black; PIL writes none, so the depth in the header is changed."""
    data = bytearray(encode(RGB, "JPEG2000", no_jp2=True))
    assert np.array_equal(decode_image(bytes(data), 32, "centre"), RGB)
    assert data[42:51:3] == b"\7\7\7"
    data[42:51:3] = bytes([depth] * 3)
    with pytest.raises(ValueError, match=reason):
        decode_image(bytes(data), 32, "centre")


def test_cmyk_is_no_negative() -> None:
    cmyk = np.zeros((32, 32, 4), dtype=np.uint8)
    cmyk[:, :16, 0] = 200  # cyan on the left
    cmyk[:16, :, 3] = 100  # darker above
    ink = 1 - cmyk / 255.0
    expected = 255 * ink[..., :3] * ink[..., 3:]
    for kind, tolerance in (("TIFF", 2), ("JPEG", 8)):
        options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
        row = decode_image(encode(Image.fromarray(cmyk, "CMYK"), kind, **options), 32, "centre")
        assert abs(row - expected).max() <= tolerance, kind


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.fromarray(np.full((32, 32, 3), value, np.uint8)) for value in (40, 200)]
    for kind in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert (decode_image(data, 32, "centre") == 40).all(), kind


UPRIGHT = np.zeros((48, 80, 3), dtype=np.uint8)
UPRIGHT[:24, :, 0] = 220  # red above, green at the left, each corner another
UPRIGHT[:, :40, 1] = 180
STORED = {  # EXIF 2.3, 4.6.4: which side of the stored picture is the upper one, which the left one
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT, 1),
    7: UPRIGHT[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(UPRIGHT, -1),
}


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("crop", ["centre", "face"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied_before_the_crop(kind: str, crop: images.Crop) -> None:
    options = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}[kind]
    expected = decode_image(encode(UPRIGHT), 32, crop).astype(int)
    for orientation, stored in STORED.items():
        data = encode(np.ascontiguousarray(stored), kind, exif=turned(orientation), **options)
        assert abs(decode_image(data, 32, crop) - expected).max() <= (6 if kind == "JPEG" else 1), orientation


def test_a_large_photograph_is_turned_too() -> None:
    large = np.kron(UPRIGHT[:47, :79], np.ones((13, 13, 1), np.uint8))  # 1027×611: no multiple of libjpeg's blocks
    expected = lanczos(large, (208, 0, 819, 611), 32)
    for orientation, stored in ((3, large[::-1, ::-1]), (6, np.rot90(large))):
        data = encode(np.ascontiguousarray(stored), "JPEG", quality=95, exif=turned(orientation))
        assert abs(decode_image(data, 32, "centre") - expected).mean() < 2


def test_broken_exif_does_not_cost_the_image() -> None:
    data = encode(RGB, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert np.array_equal(decode_image(data, 32, "centre"), RGB)


@pytest.mark.parametrize("size", [(178, 218), (33, 200), (20, 24), (1, 1), (400, 300)])
@pytest.mark.parametrize("crop", ["centre", "face"])
def test_resize_is_lanczos_with_antialiasing(size: tuple[int, int], crop: images.Crop) -> None:
    picture = photograph(*size)
    for image_size in (32, 64):
        expected = lanczos(picture, crop_box(*size, crop), image_size)
        row = decode_image(encode(picture), image_size, crop)
        close = 0.8 if min(size) < 4 * image_size else 2.0  # above, averages of squares come first
        assert abs(row - expected).max() <= close


def test_resize_agrees_with_pillows() -> None:
    picture = photograph(178, 178)
    theirs = np.asarray(Image.fromarray(picture).resize((64, 64), Image.Resampling.LANCZOS)).astype(int)
    assert abs(decode_image(encode(picture), 64, "centre") - theirs).max() <= 1


@pytest.mark.parametrize("size", [(518, 623), (1111, 777)])
def test_reduced_decoding_stays_close_to_the_whole(size: tuple[int, int]) -> None:
    data = encode(photograph(*size), "JPEG", quality=90)
    with Image.open(io.BytesIO(data)) as image:
        whole = np.asarray(image)
    for image_size in (32, 64, 128):
        expected = lanczos(whole, crop_box(*size, "centre"), image_size)
        difference = abs(decode_image(data, image_size, "centre") - expected)
        assert difference.mean() < 0.8 and difference.max() < 6


def test_a_plain_area_keeps_its_colour_exactly() -> None:
    for size in ((97, 61), (1000, 800), (3, 3)):
        plain = np.full((size[1], size[0], 3), (255, 0, 93), np.uint8)
        assert (decode_image(encode(plain), 64, "centre") == (255, 0, 93)).all()


@pytest.mark.parametrize("geometry", [(128, 0.0, 128.0, 32), (9, 0.3, 7.9, 64), (1, 0, 1, 256), (1023, 0, 1023, 256)])
def test_sums_stay_exact_in_float32(geometry: tuple[int, float, float, int]) -> None:
    """Then no order of addition, no number of threads and no other BLAS gives other pixels."""
    for one, gain, largest in ((2**15, 8, 255), (2**11, 1 / 8, 8 * 2 * 255)):
        for _, _, weights in resampling._bands(*geometry, 1, one, gain):
            whole = weights.astype(float) * one / gain
            assert np.array_equal(whole, np.rint(whole))
            assert (whole.sum(axis=1) == one).all()
            assert np.abs(whole).sum(axis=1).max() * largest < 2**24


def test_face_crop_of_celeba_is_the_usual_one() -> None:
    assert crop_box(178, 218, "face") == (25, 50, 153, 178)
    assert crop_box(356, 436, "face") == (50, 100, 306, 356)


@pytest.mark.parametrize("crop", ["centre", "face"])
def test_every_crop_is_a_square_inside_the_picture(crop: images.Crop) -> None:
    rng = np.random.default_rng(6)
    for width, height in [
        *rng.integers(1, 3000, (300, 2)).tolist(),
        (1, 1),
        (1, 3000),
        (3000, 1),
        (64, 65),
        (178, 179),
    ]:
        left, top, right, bottom = crop_box(width, height, crop)
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        assert bottom - top == right - left


JPEG = encode(photograph(178, 218), "JPEG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not an image"),
        (b"<html>quota exceeded</html>", "not an image"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (encode(RGB)[:500], "truncated"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\nshowpage\n", "not an image"),
    ],
    ids=["empty", "page", "half-jpeg", "half-png", "postscript"],
)
def test_what_is_no_image_is_refused_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as error:
        decode_image(data, 32, "centre")
    assert "\n" not in str(error.value)


def test_tiles_are_the_inverse_of_grid() -> None:
    pictures = np.random.default_rng(8).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)
    picture = grid(pictures, columns=3)
    assert picture.shape == (96, 96, 3)
    assert np.array_equal(picture[32:64, 64:96], pictures[5])
    assert np.array_equal(tiles(picture, 32)[:7], pictures)
    assert (tiles(picture, 32)[7:] == 255).all()
    with pytest.raises(ValueError, match="96×95"):
        tiles(picture[:95], 32)


def test_a_png_comes_back_as_it_was(tmp_path: Path) -> None:
    write_png(tmp_path / "new" / "picture.png", RGB[:20])
    assert np.array_equal(read_png(tmp_path / "new" / "picture.png"), RGB[:20])
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["picture.png"]
    assert png_bytes(RGB) == png_bytes(RGB.copy())


def heic(picture: np.ndarray) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif")
    stream = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(picture)).save(stream, quality=-1, chroma=444, matrix_coefficients=0)
    return stream.getvalue()


def test_heic_is_read_as_telephones_write_it() -> None:
    data = heic(UPRIGHT)
    row = decode_image(data, 32, "centre").astype(int)
    assert abs(row - decode_image(encode(UPRIGHT), 32, "centre")).max() <= 3


def test_heic_says_which_extra_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_heif_opener", lambda: False)
    with pytest.raises(ValueError, match=r"^is HEIC, which the extra \[heif\] reads: pip install -e '\.\[heif\]'$"):
        decode_image(b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + bytes(100), 32, "centre")


def test_a_damaged_heic_gives_an_image_or_a_reason() -> None:
    data, rng = heic(UPRIGHT), np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an empty picture has none of its pixels
        for _ in range(40):
            damaged = bytearray(data)
            for position in rng.integers(0, len(data), 3):
                damaged[position] = rng.integers(256)
            try:
                assert decode_image(bytes(damaged), 32, "centre").shape == (32, 32, 3)
            except ValueError as error:
                assert str(error) and "\n" not in str(error)


def test_what_is_no_png_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    for name in ("text.png", "absent.png"):
        with pytest.raises(ValueError, match=name):
            read_png(tmp_path / name)
