"""What a file is by its first bytes, whatever its name says."""

import re
from typing import Literal, get_args

from foveal.pixels.rejection import ImageRejectedError, RejectionCode

Format = Literal["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"]
ALLOWED_FORMATS: tuple[Format, ...] = get_args(Format)

NUM_HEAD_BYTES = 1024
"""How much of a file `sniff` needs to see."""

_ALLOWED_STARTS: tuple[tuple[bytes, Format], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II\x2a\x00", "TIFF"),
    (b"MM\x00\x2a", "TIFF"),
    (b"II\x2b\x00", "TIFF"),
    (b"MM\x00\x2b", "TIFF"),
)

# The length of a BMP's second header, which tells it from a text that happens to start with "BM".
BMP_HEADER_SIZES = (12, 40, 52, 56, 64, 108, 124)

# (offset, bytes, name, code): a picture or page in a format that is not on the list is told from a file that is none.
_KNOWN_OTHERS: tuple[tuple[int, bytes, str, RejectionCode], ...] = (
    (0, b"%PDF", "a PDF document", "format_not_allowed"),
    (0, b"%!PS", "a PostScript (EPS) file", "format_not_allowed"),
    (0, b"\xc5\xd0\xd3\xc6", "a PostScript (EPS) file", "format_not_allowed"),
    (0, b"SIMPLE  =", "a FITS file", "format_not_allowed"),
    (4, b"ftypavif", "an AVIF image", "format_not_allowed"),
    (4, b"ftypavis", "an AVIF image", "format_not_allowed"),
    (4, b"ftyphei", "a HEIC image", "format_not_allowed"),
    (4, b"ftyphev", "a HEIC image", "format_not_allowed"),
    (4, b"ftypmif1", "a HEIF image", "format_not_allowed"),
    (4, b"ftypmsf1", "a HEIF image", "format_not_allowed"),
    (4, b"ftypcrx", "a camera raw file (CR3)", "format_not_allowed"),
    (0, b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 image", "format_not_allowed"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 image", "format_not_allowed"),
    (0, b"\x00\x00\x00\x0cJXL ", "a JPEG XL image", "format_not_allowed"),
    (0, b"\xff\x0a", "a JPEG XL image", "format_not_allowed"),
    (0, b"8BPS", "a Photoshop document", "format_not_allowed"),
    (0, b"gimp xcf", "a GIMP document", "format_not_allowed"),
    (0, b"\x00\x00\x01\x00", "an icon (ICO)", "format_not_allowed"),
    (0, b"v/1\x01", "an OpenEXR image", "format_not_allowed"),
    (0, b"#?RADIANCE", "a Radiance HDR image", "format_not_allowed"),
    (0, b"qoif", "a QOI image", "format_not_allowed"),
    (0, b"FUJIFILMCCD-RAW", "a camera raw file (RAF)", "format_not_allowed"),
    (0, b"IIRO", "a camera raw file (ORF)", "format_not_allowed"),
    (0, b"IIU\x00", "a camera raw file (RW2)", "format_not_allowed"),
    (128, b"DICM", "a DICOM file", "format_not_allowed"),
    (0, b"PK\x03\x04", "a zip archive (or an office document)", "not_an_image"),
    (0, b"PK\x05\x06", "an empty zip archive", "not_an_image"),
    (0, b"\x1f\x8b", "a gzip archive", "not_an_image"),
    (0, b"BZh", "a bzip2 archive", "not_an_image"),
    (0, b"\xfd7zXZ\x00", "an xz archive", "not_an_image"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "not_an_image"),
    (0, b"Rar!", "a RAR archive", "not_an_image"),
    (257, b"ustar", "a tar archive", "not_an_image"),
    (4, b"ftyp", "a video or audio file (MP4)", "not_an_image"),
    (0, b"\x1a\x45\xdf\xa3", "a video file (Matroska or WebM)", "not_an_image"),
    (0, b"\x89HDF", "an HDF5 file", "not_an_image"),
    (0, b"\x93NUMPY", "a NumPy array file", "not_an_image"),
    (0, b"SQLite format 3", "an SQLite database", "not_an_image"),
    (0, b"PAR1", "a Parquet table", "not_an_image"),
    (0, b"\x7fELF", "a program", "not_an_image"),
    (0, b"MZ\x90", "a program", "not_an_image"),
    (0, b"version https://git-lfs", "a Git LFS pointer; fetch the images with `git lfs pull`", "not_an_image"),
    (0, b"/annex/objects/", "a git-annex pointer; fetch the images with `git annex get`", "not_an_image"),
)


def sniff(head: bytes) -> Format:
    """The format that a file's first bytes say it has.

    Args:
        head: the first `NUM_HEAD_BYTES` bytes, or all where there are fewer.

    Raises:
        ImageRejectedError: nothing is there, or it is not one of `ALLOWED_FORMATS`; the message names what it is.
    """
    if not head:
        raise ImageRejectedError("the file is empty (0 bytes)", "empty")
    for start, name in _ALLOWED_STARTS:
        if head.startswith(start):
            return name
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in BMP_HEADER_SIZES:
        return "BMP"
    what, code = _name_other(head)
    raise ImageRejectedError(f"the content is {what}; allowed are {', '.join(ALLOWED_FORMATS)}", code)


def _name_other(head: bytes) -> tuple[str, RejectionCode]:
    for offset, magic, name, code in _KNOWN_OTHERS:
        if head.startswith(magic, offset):
            return name, code
    if re.match(rb"P[1-7Ff]\s", head):
        return "a PNM image", "format_not_allowed"
    if not head.strip(b"\x00"):
        return "nothing but zero bytes", "not_an_image"
    text = _as_text(head)
    if text is None:
        return "not an image in any known format", "not_an_image"
    return _name_text(text)


def _as_text(head: bytes) -> str | None:
    for mark, encoding in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if head.startswith(mark):
            return head.decode(encoding, errors="replace")
    if any(byte < 9 or 13 < byte < 27 or 27 < byte < 32 or byte == 127 for byte in head):
        return None
    # The head may end in the middle of a letter, and old texts are not UTF-8, so a few undecodable bytes are no proof.
    text = head.decode("utf-8", errors="replace")
    return None if text.count("\ufffd") > len(text) // 4 else text


def _name_text(text: str) -> tuple[str, RejectionCode]:
    start = text.lstrip().lower()
    if "<svg" in start and start.startswith("<"):
        return "an SVG drawing", "format_not_allowed"
    if re.match(r"(<!--.*?-->\s*)*<(!doctype html|html|head|body|script|div|p>)", start, re.DOTALL):
        return "an HTML page, as a failed download leaves it", "not_an_image"
    if start.startswith("<"):
        return ("an HTML page", "not_an_image") if "<html" in start else ("an XML file", "not_an_image")
    if re.match(r'[\[{]\s*["\[{\]}0-9\-tfn]', start):
        return "a JSON text", "not_an_image"
    return "a text", "not_an_image"
