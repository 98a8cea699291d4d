"""The images that are measured on: real ones where there are any, else generated ones."""

import os
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NUM_CLASSES = 10
NUM_GENERATED_EACH = 200
SIDE_PX = 100


def data_folder() -> Path:
    """`$FOVEAL_DATA`, or the folder that lies beside the repository where CI runs."""
    return Path(os.environ.get("FOVEAL_DATA") or ROOT.parent / "shared" / "data")


def real_images() -> Path | None:
    """`sign_digits`, where there is a folder of real images."""
    folder = data_folder() / "sign_digits"
    return folder.resolve() if folder.is_dir() else None


def cifar10_archive() -> Path | None:
    """`cifar10.tar.gz`, train/ and test/ of class folders with 32 px JPEGs, where there is a folder of real images."""
    file = data_folder() / "cifar10.tar.gz"
    return file.resolve() if file.is_file() else None


def unpacked_cifar10(scratch: Path) -> Path | None:
    """A folder with train/ and test/ of CIFAR-10; unpacked below `scratch` where the data holds only the archive."""
    folder, archive = data_folder() / "cifar10", cifar10_archive()
    if folder.is_dir():
        return folder.resolve()
    if archive is None:
        return None
    folder = scratch / "cifar10"
    if not folder.is_dir():
        with tarfile.open(archive) as opened:
            opened.extractall(folder, filter="data")
    return folder


def find_or_generate(scratch: Path) -> Path:
    """The folder of class folders to measure on; generated below `scratch` where there are no real images."""
    return real_images() or generate(scratch / "generated")


def generate(folder: Path) -> Path:
    """Photograph-like JPEGs: a patch of waves for each class under noise."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    across = np.linspace(0.0, 2.0 * np.pi, SIDE_PX)
    for number in range(NUM_CLASSES):
        waves = 90.0 * np.sin((number + 1) * across)[:, None] * np.cos((NUM_CLASSES - number) * across)[None, :]
        (folder / str(number)).mkdir(parents=True)
        for index in range(NUM_GENERATED_EACH):
            noise = generator.normal(128.0, 30.0, (SIDE_PX, SIDE_PX, 3)) + waves[:, :, None]
            image = Image.fromarray(noise.clip(0, 255).astype(np.uint8))
            image.save(folder / str(number) / f"{index:04}.jpg", quality=92)
    return folder
