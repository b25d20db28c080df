"""Encoded image → square array; arrays ⇄ pictures. The only user of PIL."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from began.base.files import replace_file
from began.data.resampling import resample

Pixels = npt.NDArray[np.uint8]
Crop = Literal["centre", "face"]
Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels

MAX_PIXELS = 89_478_485  # 256 MiB in 24-bit colour. A file of a few kilobytes can claim far more than memory holds.

# No format that runs an interpreter (EPS) or refers to other files. JPEG brings MPO along, the cameras' pairs.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "PCX", "SGI", "TGA", "JPEG2000", "AVIF")

# Large images are first brought down by a whole factor, the cheap way (libjpeg's scaled decoding, averages of squares),
# to no less than this times the final size; Lanczos does the rest. Measured on photographs, the result is nearer to
# Lanczos alone (48 dB) than bicubic is (45 dB); with a gap of 1 it is not (37 dB).
_REDUCING_GAP = 2

_HEIF_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"mif2", b"msf1"))

_BITS, _COMPRESSION, _PHOTOMETRIC, _PLANAR, _SAMPLE_FORMAT = 258, 259, 262, 284, 339  # of TIFF 6.0
_OLD_JPEG = 6

# What PIL warns of (odd metadata, many pixels) is no fault of the user; what cannot be decoded has a reason of its own.
warnings.filterwarnings("ignore", module=r"PIL\.")


def decode_image(data: bytes, image_size: int, crop: Crop) -> Pixels:
    """Encoded bytes → (image_size, image_size, 3) uint8 in RGB: upright, aspect kept, cropped, resized by Lanczos.

    Transparency lies on white; of an animation the first frame counts; whole numbers of other depths are scaled to 8
    bits; colour profiles are ignored. `crop` is explained at `crop_box`. The same bytes give the same pixels on every
    machine that decodes them alike. Raises ValueError with the reason when `data` is no image that can be shown, does
    not say what its pixels mean, or says what nothing here reads right.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_formats(data)) as image:
            _check_pixels(image, data)
            return _decode(image, image_size, crop)
    except UnidentifiedImageError:
        raise ValueError(_why_unidentified(data)) from None
    except Image.DecompressionBombError:
        raise ValueError(f"has more than {MAX_PIXELS:,} pixels") from None
    except MemoryError:
        raise ValueError("does not fit into memory") from None
    except Exception as error:  # a decoder meets a stranger's bytes: OSError, SyntaxError, struct.error, zlib.error, …
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None


def crop_box(width: int, height: int, crop: Crop) -> Box:
    """The square of a width×height picture that becomes the image.

    centre  the largest square in the middle.
    face    the face of CelebA's aligned 178×218 pictures: 128×128 at (25, 50), as carpedm20/BEGAN-tensorflow cuts it
            (data_loader.py). In another size, of the largest 178:218 rectangle in the middle.
    """
    side = min(width, height)
    if crop == "face":
        scale = min(width / 178, height / 218)
        side = max(1, math.floor(128 * scale + 0.5))
        left = min(math.floor((width - 178 * scale) / 2 + 25 * scale + 0.5), width - side)
        top = min(math.floor((height - 218 * scale) / 2 + 50 * scale + 0.5), height - side)
        return left, top, left + side, top + side
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _formats(data: bytes) -> tuple[str, ...]:
    """_FORMATS, and HEIF for its files: pillow-heif is loaded for them only."""
    if data[4:8] != b"ftyp" or data[8:12] not in _HEIF_BRANDS:
        return _FORMATS
    if not _heif_opener():
        if b"avif" in data[:64]:  # which may begin as HEIF does
            return _FORMATS
        raise ValueError("is HEIC, which the extra [heif] reads: pip install -e '.[heif]'")
    return (*_FORMATS, "HEIF")


@lru_cache(maxsize=1)
def _heif_opener() -> bool:
    """Makes PIL open HEIF; False where pillow-heif is not installed."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener(thumbnails=False)
    return True


def _check_pixels(image: Image.Image, data: bytes) -> None:
    """Raises ValueError where PIL would give other pixels than the file's; `image` is open, and not yet decoded."""
    match image.format:
        case "TIFF":
            _check_tiff(image.tag_v2, image.mode)  # type: ignore[attr-defined]
        case "PNG":
            depth, colour = data[24], data[25]
            transparent = image.info.get("transparency")
            if colour == 0 and depth in (2, 4) and isinstance(transparent, int):
                image.info["transparency"] = transparent * 255 // (2**depth - 1)  # PIL scales the pixels only
            if colour == 2 and depth == 16 and transparent is not None:
                raise ValueError("has one transparent colour among those of 16 bits, which PIL reads to 8 bits")
        case "JPEG2000":
            start = max(0, data.find(b"\xff\x4f\xff\x51"))  # of the codestream; ISO 15444-1, A.5.1
            components = data[start + 42 :: 3][: int.from_bytes(data[start + 40 : start + 42], "big")]
            depths = {(component & 0x7F) + 1 for component in components}
            if any(component & 0x80 for component in components):
                raise ValueError("has signed pixels, expected whole numbers from 0")
            if depths - {8} and not (image.mode == "I;16" and min(depths) > 8):
                # PIL rounds 12 or 16 bits to 8 without a bound: white becomes black.
                raise ValueError(
                    f"has {', '.join(map(str, sorted(depths)))} bits in JPEG 2000, expected 8, or 9 to 16 in grey alone"
                )


def _check_tiff(tags: Mapping[int, Any], mode: str) -> None:
    """Raises ValueError for what TIFF 6.0 allows and PIL reads wrong or not at all; `mode` is PIL's, or ""."""
    bits, kinds = tags.get(_BITS, (1,)), tags.get(_SAMPLE_FORMAT, (1,))
    compression = tags.get(_COMPRESSION, 1)
    if 3 in kinds:
        raise ValueError("has floating-point pixels, expected whole numbers of 16 bits at most")
    if set(kinds) != {1}:
        raise ValueError("has signed pixels, or of an unknown kind, expected whole numbers from 0")
    if max(bits) > 16:
        raise ValueError(f"has pixels of {max(bits)} bits, expected 16 at most")
    photometric = tags.get(_PHOTOMETRIC)
    if photometric is None and compression != _OLD_JPEG:
        raise ValueError("does not say what its pixels mean (no PhotometricInterpretation)")
    in_planes = tags.get(_PLANAR, 1) == 2 and len(bits) > 1
    if in_planes and (mode in ("LA", "PA") or (max(bits) > 8 and compression == 1)):
        raise ValueError(f"has {len(bits)} planes of {max(bits)} bits one after another, expected them interleaved")
    if photometric == 6 and compression == 1:
        raise ValueError("has uncompressed YCbCr pixels, expected RGB or grey")
    if photometric in (8, 9, 10):
        raise ValueError("has CIE L*a*b* pixels, expected RGB or grey")
    if not mode:
        kind = f"{', '.join(map(str, bits))} bits, PhotometricInterpretation {photometric}"
        raise ValueError(f"is a TIFF of a kind that PIL does not read: {kind}")


def _why_unidentified(data: bytes) -> str:
    """The reason why PIL knows no way to open `data`."""
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        try:
            tags = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
            file = io.BytesIO(data)
            file.seek(tags.next)
            tags.load(file)
            _check_tiff(tags, "")
        except ValueError as error:
            return str(error)
        except Exception:
            return "is a TIFF of a kind that PIL does not read, or a damaged one"
    return "is not an image of a known format"


def _decode(image: Image.Image, image_size: int, crop: Crop) -> Pixels:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"has {width}×{height} pixels, more than {MAX_PIXELS:,}")
    first, _, last, _ = crop_box(width, height, crop)
    factor = max(1, int((last - first) / (_REDUCING_GAP * image_size)))
    scale = 1
    if factor > 1:
        # JPEG can be decoded at 1/2, 1/4 or 1/8, which costs less than all of it.
        largest = 1 << min(factor, 8).bit_length() - 1
        if image.draft(None, (max(1, width // largest), max(1, height // largest))):
            scale = largest
            factor //= scale
    size = image.size
    image.load()
    if image.size != size:  # libheif shows what a damaged file holds
        raise ValueError(f"has {image.width}×{image.height} pixels, where it says {size[0]}×{size[1]}")
    with suppress(Exception):  # of broken EXIF: the pixels may be fine all the same
        ImageOps.exif_transpose(image, in_place=True)
    if image.size != size:
        width, height = height, width
    left, top, right, bottom = (edge / scale for edge in crop_box(width, height, crop))
    image = _flatten(image)
    column, row = math.floor(left), math.floor(top)
    around = (column, row, min(math.ceil(right), image.width), min(math.ceil(bottom), image.height))
    region = image.reduce(factor, around) if factor > 1 else image.crop(around)
    pixels = np.frombuffer(region.tobytes(), dtype=np.uint8)  # half the time of np.asarray
    pixels = pixels.reshape((region.height, region.width, -1))
    start = ((left - column) / factor, (top - row) / factor)
    return resample(pixels, start, ((right - left) / factor, (bottom - top) / factor), image_size)


def _flatten(image: Image.Image) -> Image.Image:
    """Returns a loaded `image` as grey or colour of 8 bits, transparency on white."""
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return _flatten_16_bits(image)
    if image.mode == "F":
        raise ValueError("has floating-point pixels, expected whole numbers of 16 bits at most")
    opaque_throughout = image.mode == "RGBA" and image.getchannel("A").getextrema() == (255, 255)
    if opaque_throughout or not image.has_transparency_data:
        return image.convert("RGB")
    opaque = Image.new("RGB", image.size, "white")
    image = image.convert("RGBA")
    opaque.paste(image, mask=image)
    return opaque


def _flatten_16_bits(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits; PIL has scaled all but that of TIFF to 16."""
    values = np.asarray(image)
    tags = image.tag_v2 if image.format == "TIFF" else {}  # type: ignore[attr-defined]
    most = 2 ** tags.get(_BITS, (16,))[0] - 1
    if tags.get(_PHOTOMETRIC) == 0:
        values = most - values
    if values.min() < 0 or values.max() > most:
        raise ValueError(f"has pixels from {values.min()} to {values.max()}, expected 0 to {most}")
    grey = np.rint(values / np.float32(most / 255)).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey)


def grid(images: Pixels, columns: int) -> Pixels:
    """(N, S, S, 3) → one picture (rows·S, columns·S, 3), row by row without a gap; cells left over are white."""
    assert images.ndim == 4 and images.shape[1] == images.shape[2] and images.shape[3] == 3 and columns >= 1
    N, S = images.shape[:2]
    rows = math.ceil(N / columns)
    cells = np.full((rows * columns, S, S, 3), 255, dtype=np.uint8)
    cells[:N] = images
    return cells.reshape(rows, columns, S, S, 3).swapaxes(1, 2).reshape(rows * S, columns * S, 3)


def tiles(picture: Pixels, image_size: int) -> Pixels:
    """The inverse of `grid`: (rows·S, columns·S, 3) → (rows·columns, S, S, 3), white cells included."""
    S = image_size
    height, width, channels = picture.shape
    if channels != 3 or height % S or width % S:
        raise ValueError(f"a picture of {width}×{height} pixels is no grid of {S}×{S} images")
    return picture.reshape(height // S, S, width // S, S, 3).swapaxes(1, 2).reshape(-1, S, S, 3)


def png_bytes(picture: Pixels) -> bytes:
    """(H, W, 3) uint8 in RGB → a PNG file's bytes."""
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, "PNG")
    return buffer.getvalue()


def webp_bytes(picture: Pixels) -> bytes:
    """(H, W, 3) uint8 in RGB → a WebP file's bytes: a few percent of a PNG's, and nearly the same to the eye."""
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, "WEBP", quality=88, method=4)
    return buffer.getvalue()


def jpeg_bytes(picture: Pixels, quality: int) -> bytes:
    """(H, W, 3) uint8 in RGB → a JPEG file's bytes, with colours at full resolution; quality: 1 to 95."""
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def write_png(path: Path, picture: Pixels) -> None:
    """Writes (H, W, 3) uint8 as PNG; a new file takes the place of an old one."""
    with replace_file(path) as temporary:
        temporary.write_bytes(png_bytes(picture))


def read_png(path: Path) -> Pixels:
    """A PNG file → (H, W, 3) uint8 in RGB. Raises ValueError naming the file when it is none."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            return np.array(image.convert("RGB"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot be read as PNG: {error}") from None


def decode_rgba(data: bytes) -> Pixels:
    """A PNG file's bytes that this program made → (H, W, 4) uint8: RGB, and opacity from 0 to 255."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGBA"))
