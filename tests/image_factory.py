"""Every odd image file of the tests, made from code; by hand where Pillow's writer could hide a fault."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

Pixels = NDArray[Any]

# Upright, with four corners that tell all eight orientations apart.
CORNERS = np.zeros((16, 24, 3), np.uint8)
CORNERS[:8, :8] = (250, 20, 20)
CORNERS[:8, 8:] = (20, 250, 20)
CORNERS[8:, :8] = (20, 20, 250)
CORNERS[8:, 8:] = (240, 240, 20)


def scene(width: int = 48, height: int = 32) -> Pixels:
    """A smooth colourful picture, the same every time."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 7 + phase) * np.cos(y / 5 - phase) for phase in (0.0, 1.0, 2.0)]
    return np.stack([127 + 120 * wave for wave in waves], axis=-1).astype(np.uint8)


def saved(image: Image.Image | Pixels, name: str, **options: Any) -> bytes:
    """What Pillow writes."""
    stream = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(stream, name, **options)
    return stream.getvalue()


# --- PNG by hand ------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(
    width: int, height: int, bits: int, colour_type: int, rows: bytes, before: bytes = b"", after: bytes = b""
) -> bytes:
    """A PNG of unfiltered rows; `before` and `after` are chunks around the pixels."""
    stride = len(rows) // height
    raw = b"".join(b"\0" + rows[start : start + stride] for start in range(0, len(rows), stride))
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(raw))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + pixels + after + chunk(b"IEND", b"")


def deflated_zeros(num_bytes: int) -> bytes:
    """A valid zlib stream of zeros, made at once: blocks that end with a full flush may be repeated."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = squeeze.compress(bytes(2**20)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    num_pieces, rest = divmod(num_bytes, 2**20)
    end = squeeze.compress(bytes(rest)) + squeeze.flush()
    adler = (num_bytes % 65521) << 16 | 1
    return b"\x78\xda" + piece * num_pieces + end + struct.pack(">I", adler)


def png_bomb(width: int, height: int) -> bytes:
    """A valid black PNG of 1 bit a pixel that takes about a thousandth of what it unpacks to."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = deflated_zeros((1 + (width + 7) // 8) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def png_text_bomb(kind: bytes, num_bytes: int = 200 * 2**20) -> bytes:
    """A tiny PNG with a chunk of text (zTXt, iTXt) or a profile (iCCP) that unpacks to `num_bytes`."""
    starts = {b"zTXt": b"Comment\0\0", b"iTXt": b"Comment\0\x01\0\0\0", b"iCCP": b"profile\0\0"}
    return png(2, 2, 8, 0, bytes(4), before=chunk(kind, starts[kind] + deflated_zeros(num_bytes)))


def gray16_ramp_png() -> bytes:
    """16-bit grey, 256 x 1: pixel i has the value 257 i, from 0 to 65535."""
    return png(256, 1, 16, 0, np.arange(256, dtype=">u2").__mul__(257).astype(">u2").tobytes())


def rgb16_ramp_png() -> bytes:
    """The same ramp in 16-bit RGB."""
    ramp = (np.arange(256) * 257).astype(">u2")
    return png(256, 1, 16, 2, np.stack([ramp] * 3, axis=-1).tobytes())


def one_bit_png() -> bytes:
    """8 x 1: white, black, black, white, white, black, white, black."""
    return png(8, 1, 1, 0, bytes([0b10011010]))


def palette_png_transparent() -> bytes:
    """4 x 1: red opaque, green half, blue transparent, white opaque."""
    colours = bytes([255, 0, 0, 0, 255, 0, 0, 0, 255, 255, 255, 255])
    return png(4, 1, 8, 3, bytes([0, 1, 2, 3]), before=chunk(b"PLTE", colours) + chunk(b"tRNS", bytes([255, 128, 0])))


def rgba_hidden_colour() -> bytes:
    """RGBA PNG, 3 x 1: garish red under full transparency, the same at 25 %, and opaque."""
    return png(3, 1, 8, 6, bytes([255, 0, 0, 0, 255, 0, 0, 64, 255, 0, 0, 255]))


def gray_key_png(bits: int) -> bytes:
    """Grey of 1, 2, 4, 8 or 16 bits, 2 x 1: white, and the value that is transparent: 1, or 0 where there is 1 bit."""
    top, key = 2**bits - 1, 1 if bits > 1 else 0
    if bits < 8:
        rows = bytes([(top << (8 - bits)) | key << (8 - 2 * bits)])
    else:
        rows = np.array([top, key], f">u{bits // 8}").tobytes()
    return png(2, 1, bits, 0, rows, before=chunk(b"tRNS", struct.pack(">H", key)))


def apng(num_frames: int = 3) -> bytes:
    """An animated PNG, 4 x 4, whose first frame is red."""
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")][:num_frames]
    return saved(frames[0], "PNG", save_all=True, append_images=frames[1:])


# --- BMP by hand ------------------------------------------------------------------------------------------------------


def bmp_with_opacity(*colours: tuple[int, int, int, int]) -> bytes:
    """One row of RGBA; Pillow writes the fourth value, but not that it means something."""
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, len(colours), 1, 1, 32, 3, 4 * len(colours), 2835, 2835, 0, 0)
    pixels = b"".join(bytes([blue, green, red, opacity]) for red, green, blue, opacity in colours)
    header = (header + masks).ljust(108, b"\0")
    return b"BM" + struct.pack("<IHHI", 14 + 108 + len(pixels), 0, 0, 14 + 108) + header + pixels


# --- TIFF by hand -----------------------------------------------------------------------------------------------------


def tiff(
    samples: Pixels,
    *,
    bits: int,
    photometric: int = 1,
    sample_format: int = 1,
    order: str = "<",
    big: bool = False,
    num_pages: int = 1,
    packed: bytes | None = None,
    tags: dict[int, tuple[int, int, bytes]] | None = None,
) -> bytes:
    """An uncompressed TIFF or BigTIFF of one strip a page, all pages showing the same.

    Args:
        samples: [height, width] or [height, width, channels], of the type that is stored.
        packed: the strip, where the samples are not whole bytes.
        tags: more entries: number to (type, count, content).
    """
    height, width = samples.shape[:2]
    num_channels = samples.shape[2] if samples.ndim == 3 else 1
    strip = packed if packed is not None else samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    short, long = order + "H", order + ("Q" if big else "I")
    inline = 8 if big else 4
    head = (b"II" if order == "<" else b"MM") + struct.pack(short, 43 if big else 42)
    head += struct.pack(order + "HH", 8, 0) if big else b""
    content = head + bytes(inline) + strip
    link = len(head)
    entries = {
        256: (4, 1, struct.pack(order + "I", width)),
        257: (4, 1, struct.pack(order + "I", height)),
        258: (3, num_channels, struct.pack(order + "H" * num_channels, *[bits] * num_channels)),
        259: (3, 1, struct.pack(short, 1)),
        262: (3, 1, struct.pack(short, photometric)),
        273: (4, 1, struct.pack(order + "I", len(head) + inline)),
        277: (3, 1, struct.pack(short, num_channels)),
        278: (4, 1, struct.pack(order + "I", height)),
        279: (4, 1, struct.pack(order + "I", len(strip))),
        339: (3, num_channels, struct.pack(order + "H" * num_channels, *[sample_format] * num_channels)),
        **(tags or {}),
    }
    for _ in range(num_pages):
        directory = struct.pack(long if big else short, len(entries))
        for tag, (kind, count, value) in sorted(entries.items()):
            if len(value) > inline:
                content, value = content + value, struct.pack(long, len(content))
            directory += struct.pack(order + "HH", tag, kind) + struct.pack(long, count) + value.ljust(inline, b"\0")
        at = len(content)
        content = content[:link] + struct.pack(long, at) + content[link + inline :] + directory + bytes(inline)
        link = len(content) - inline
    return content


def gray16_ramp_tiff(order: str = "<", **options: Any) -> bytes:
    """16-bit grey, 256 x 1: pixel i has the value 257 i."""
    return tiff((np.arange(256) * 257).astype(np.uint16)[None], bits=16, order=order, **options)


def twelve_bit_tiff() -> bytes:
    """12-bit grey, packed, 256 x 1: pixel i has the value 16 i."""
    values = np.arange(256) * 16
    first, second = values[0::2], values[1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1).astype(np.uint8)
    return tiff(values[None], bits=12, packed=packed.tobytes())


def float_tiff_ramp(low: float = 0.0, high: float = 1.0) -> bytes:
    """32-bit floats, 256 x 1, in equal steps."""
    return tiff(np.linspace(low, high, 256, dtype=np.float32)[None], bits=32, sample_format=3)


def multipage_tiff(num_pages: int = 3) -> bytes:
    """Pages of 24 x 16, the first showing the corners."""
    pages = [Image.fromarray(CORNERS), *[Image.new("RGB", (24, 16), "navy") for _ in range(num_pages - 1)]]
    return saved(pages[0], "TIFF", save_all=True, append_images=pages[1:])


# --- ICC profiles by hand (ICC.1:2001-04) -----------------------------------------------------------------------------


def _icc(device_class: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    d50 = struct.pack(">iii", 0xF6D6, 0x10000, 0xD32D)
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": b"XYZ \0\0\0\0" + d50,
        **tags,
    }
    offset, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", offset + len(body), len(content))
        body += content
    header = bytes(8) + struct.pack(">I", 0x02400000) + device_class + space + connection
    header += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + d50
    content = header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body
    return struct.pack(">I", len(content)) + content[4:]


def rgb_profile(columns: Pixels, gamma: float) -> bytes:
    """A screen: linear light to XYZ (D50) by a 3 x 3 matrix, whose columns are the red, green and blue."""
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    tags = {}
    for index, letter in enumerate((b"r", b"g", b"b")):
        fixed = [round(float(value) * 65536) for value in columns[:, index]]
        tags[letter + b"XYZ"] = b"XYZ \0\0\0\0" + struct.pack(">iii", *fixed)
        tags[letter + b"TRC"] = curve
    return _icc(b"mntr", b"RGB ", b"XYZ ", tags)


ADOBE_RGB_TO_XYZ = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
ADOBE_GAMMA = 563 / 256


def adobe_rgb_profile() -> bytes:
    return rgb_profile(ADOBE_RGB_TO_XYZ, ADOBE_GAMMA)


def gray_profile(gamma: float) -> bytes:
    return _icc(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))})


def cmyk_profile() -> bytes:
    """A made-up printer: paper is white, full cyan is a mid grey (L* = 50), everything else is black."""
    colours = {(0, 0, 0, 0): (255, 128, 128), (1, 0, 0, 0): (128, 128, 128)}
    corners = [(c, m, y, k) for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)]
    table = b"".join(bytes(colours.get(corner, (0, 128, 128))) for corner in corners)
    identity = bytes(range(256))
    matrix = struct.pack(">9i", *[0x10000 if index % 4 == 0 else 0 for index in range(9)])
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + identity * 4 + table + identity * 3
    return _icc(b"prtr", b"CMYK", b"Lab ", {b"A2B0": lut})


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def icc_jpeg(profile: bytes, image: Image.Image | Pixels | None = None) -> bytes:
    return saved(scene() if image is None else image, "JPEG", quality=100, subsampling=0, icc_profile=profile)


# --- JPEG -------------------------------------------------------------------------------------------------------------


def jpeg(pixels: Pixels | None = None, **options: Any) -> bytes:
    return saved(scene() if pixels is None else pixels, "JPEG", **{"quality": 95, "subsampling": 0, **options})


def truncated_jpeg() -> bytes:
    whole = jpeg(scene(200, 150))
    return whole[: len(whole) * 6 // 10]


def cmyk_jpeg(colour: tuple[int, int, int, int] = (200, 100, 50, 25), profile: bytes | None = None) -> bytes:
    """Flat ink, inverted with an Adobe marker, as Photoshop writes it."""
    return saved(Image.new("CMYK", (16, 16), colour), "JPEG", quality=100, icc_profile=profile)


def ycck_jpeg(colour: tuple[int, int, int, int] = (200, 100, 50, 25)) -> bytes:
    """The same numbers, but declared as YCCK by the Adobe marker's last byte."""
    content = cmyk_jpeg(colour)
    at = content.index(b"Adobe") + 11
    return content[:at] + b"\x02" + content[at + 1 :]


def jpeg_with_segment(marker: int, content: bytes) -> bytes:
    """A JPEG with one more segment right behind its first two bytes."""
    whole = jpeg()
    return whole[:2] + struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content + whole[2:]


# --- EXIF -------------------------------------------------------------------------------------------------------------


def as_stored(upright: Pixels, orientation: int) -> Pixels:
    """What a camera stores, from the table of TIFF 6.0 (tag 274): where row 0 and column 0 of the file belong."""
    rows = {1: "top", 2: "top", 3: "bottom", 4: "bottom", 5: "left", 6: "right", 7: "right", 8: "left"}[orientation]
    columns = {1: "left", 2: "right", 3: "right", 4: "left", 5: "top", 6: "top", 7: "bottom", 8: "bottom"}[orientation]
    height, width = upright.shape[:2]
    along = {"top": range(height), "bottom": range(height)[::-1], "left": range(width), "right": range(width)[::-1]}
    if orientation <= 4:
        return np.array([[upright[y, x] for x in along[columns]] for y in along[rows]], np.uint8)
    return np.array([[upright[y, x] for y in along[columns]] for x in along[rows]], np.uint8)


def exif_block(orientation: int, order: str = ">") -> bytes:
    head = (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(order + "IH", 8, 1)
    return b"Exif\0\0" + head + struct.pack(order + "HHIHHI", 0x0112, 3, 1, orientation, 0, 0)


def exif_oriented(orientation: int, name: str = "JPEG") -> bytes:
    """The corners as a camera stores them under an orientation; lossless but for JPEG."""
    stored = as_stored(CORNERS, orientation)
    if name == "TIFF":
        return tiff(stored, bits=8, photometric=2, tags={274: (3, 1, struct.pack("<H", orientation))})
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "PNG": {}, "WEBP": {"lossless": True}}[name]
    return saved(stored, name, exif=exif_block(orientation), **options)


# --- animations and things that are no images -------------------------------------------------------------------------


def animated_gif(num_frames: int = 4) -> bytes:
    """24 x 16, the first frame showing the corners."""
    frames = [Image.fromarray(CORNERS), *[Image.new("RGB", (24, 16), (i, 99, 9)) for i in range(num_frames - 1)]]
    return saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=40, disposal=2)


def animated_webp(num_frames: int = 4) -> bytes:
    """The same, lossless."""
    frames = [Image.fromarray(CORNERS), *[Image.new("RGB", (24, 16), (i, 99, 9)) for i in range(num_frames - 1)]]
    return saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True, duration=40)


def html_named_jpg() -> bytes:
    return b"\n<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head></html>\n"


OTHER_CONTENT: dict[str, bytes] = {
    "PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj",
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "FITS": b"SIMPLE  =                    T / conforms to FITS".ljust(80) + b" " * 2800,
    "SVG": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "AVIF": b"\0\0\0\x1cftypavif\0\0\0\0mif1avif",
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n",
    "DICOM": bytes(128) + b"DICM\x02\0\0\0UL",
}
NO_IMAGES: dict[str, bytes] = {
    "text": b"path,label\ncat.jpg,cat\n",
    "HTML": html_named_jpg(),
    "JSON": b'{"error": "not found"}',
    "XML": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "zip": b"PK\x03\x04\x14\0\0\0",
    "tar": bytes(257) + b"ustar\x0000",
    "gzip": b"\x1f\x8b\x08\0",
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "zero bytes": bytes(4096),
    "not an image": bytes([7, 200, 3, 255, 0, 1, 2, 128]) * 8,
    "text that begins like a BMP": b"BMI,age,label\n23.5,61,1\n" * 3,
}
