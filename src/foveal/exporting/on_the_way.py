"""A run or a bundle where an exported model is wanted: exported once, proven, and kept in the cache folder."""

from pathlib import Path

from foveal.data.cache import cache_folder
from foveal.data.manifest import Manifest
from foveal.errors import ArtifactError, DataError
from foveal.exported.opening import find_export, is_export, open_export
from foveal.exporting.config import LEAST_IMAGES, ExportConfig
from foveal.exporting.describing import bundle_sha256
from foveal.exporting.gate_images import GateImages, choose_images
from foveal.exporting.proven import Source, export_model, open_source
from foveal.file_lock import locked_in_turn
from foveal.progress import Progress
from foveal.version import __version__

_SEED = 0


def exported_of(path: Path, progress: Progress) -> Path:
    """An exported model of whatever is given.

    A run, bundle or experiment is exported in fp32 and proven on its own validation and training images: its test
    images are not looked at for that. Where they are gone, noise shows that bundle and file compute the same, and that
    is said. It is kept in the cache folder under the SHA-256 of bundle.json, so that a changed bundle is exported anew;
    of two processes at once, one waits for the other.

    Args:
        path: an exported model, or what one can be made of.
        progress: where to show it.

    Returns:
        The folder or file given where that is an exported model; else the folder in the cache.

    Raises:
        ArtifactError: it is neither, or is damaged; or the disk of the cache folder has no locks.
        ExportError: it cannot be exported.
        MissingExtraError: the libraries for it are not installed.
    """
    if is_export(path):
        return path
    source = open_source(path)
    folder = cache_folder() / "exports" / f"{bundle_sha256(source.bundle)}-{__version__}"
    if _is_whole(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked_in_turn(folder.with_name(f".{folder.name}.lock"), f"exporting {path}", progress.say):
        if _is_whole(folder):
            return folder
        progress.say(f"{path} is exported to ONNX on the way; this is done once, and kept in {folder.parent}.")
        images = _images(source, progress)
        done = export_model(
            source,
            images,
            folder,
            to="onnx",
            is_int8=False,
            config=ExportConfig(num_speed_images=0),
            seed=_SEED,
            force=True,
            progress=progress,
        )
    kind = "images of its own" if images else "images of noise, since its own are not there"
    progress.say(
        f"Bundle and file say the same of {done.parity.num_images:,} {kind}; probabilities differ by "
        f"{done.parity.max_difference:.2g} at most."
    )
    return folder


def _is_whole(folder: Path) -> bool:
    """Whether a proven export lies there; what is damaged is made anew."""
    if not is_export(folder):
        return False
    try:
        open_export(find_export(folder))
    except ArtifactError:
        return False
    return True


def _images(source: Source, progress: Progress) -> GateImages | None:
    if source.manifest is None:
        return None
    try:
        images = choose_images(
            Manifest.read(source.manifest),
            source.bundle.spec.class_names,
            margin=source.bundle.spec.training_data.box_margin,
            num_images=LEAST_IMAGES,
            num_calibration=0,
            seed=_SEED,
            order=("val", "train"),
        )
    except (DataError, ArtifactError) as error:
        progress.say(error.message)
        return None
    for note in images.notes:
        progress.say(note)
    return images
