"""Opening an exported model: found, checked, and refused where it is not what foveal wrote."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from foveal.errors import ArtifactError, FovealError
from foveal.exported.scan import check_self_contained, read_metadata
from foveal.exported.spec import FORMAT_VERSION, METADATA_KEY, ONNX_FILES, ExportSpec
from foveal.extras import require
from foveal.files import read_json, sha256_bytes

if TYPE_CHECKING:
    import onnxruntime

PARITY_FILE = "parity.json"
"""What was proven of the file before it was written: beside it."""

_MAX_BYTES = 2**31
_SPIN_MICROSECONDS = "200"
_ANEW = "export it again: foveal export RUN --to onnx --out DIR"


@dataclass(frozen=True)
class Export:
    """An exported model that has been checked.

    Attributes:
        path: the .onnx file.
        spec: what it says of itself.
        sha256: of the file.
        content: the file, so that what runs is what was checked.
    """

    path: Path
    spec: ExportSpec
    sha256: str
    content: bytes

    def session(self, num_threads: int | None = None) -> "onnxruntime.InferenceSession":
        """Make it ready to run on the CPU.

        Args:
            num_threads: for one image or batch; None leaves it to ONNX Runtime.

        Raises:
            ArtifactError: ONNX Runtime cannot run it.
            MissingExtraError: ONNX Runtime is not installed.
        """
        runtime: Any = require("onnxruntime", extra="serve", purpose="run exported models")
        runtime.disable_telemetry_events()
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # errors alone: the optional inputs are worth a warning to it
        if num_threads is not None:
            options.intra_op_num_threads = num_threads
        options.inter_op_num_threads = 1
        # Threads that wait actively take a core from whoever decodes the next image; threads that never do have to be
        # woken for every operator, which cost EfficientNet-B4 a fifth of its time on two processors. So: for a while.
        options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_MICROSECONDS)
        try:
            return runtime.InferenceSession(self.content, options, providers=["CPUExecutionProvider"])
        # What it raises are classes of its binding, without a common ground below Exception.
        except Exception as error:
            words = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ArtifactError(f"ONNX Runtime cannot run {self.path}: {words}", fix=_ANEW) from error


def is_export(path: Path) -> bool:
    """Whether `path` is an exported model, or a folder with one."""
    return _candidate(path) is not None


def find_export(path: Path) -> Path:
    """The .onnx file, given it or its folder.

    Raises:
        ArtifactError: there is none.
    """
    found = _candidate(path)
    if found is None and not path.exists():
        raise ArtifactError(f"{path}: there is no such file or folder.", fix="check the path.")
    if found is None:
        raise ArtifactError(
            f"{path} is no exported model: there is neither {' nor '.join(ONNX_FILES.values())}.", fix=_ANEW
        )
    return found


def open_export(path: Path) -> Export:
    """Read an exported model and check it: hash, one file and nothing outside of it, and the schema of its metadata.

    Args:
        path: the .onnx file, or its folder.

    Raises:
        ArtifactError: it is missing, damaged, changed, newer than this foveal, or was not exported by foveal.
    """
    file = find_export(path)
    if (size := file.stat().st_size) >= _MAX_BYTES:
        raise ArtifactError(f"{file} has {size:,} bytes, more than an ONNX file can have.", fix=_ANEW)
    content = file.read_bytes()
    sha256 = sha256_bytes(content)
    _check_hash(file, sha256)
    try:
        check_self_contained(content)
        metadata = read_metadata(content)
    except ArtifactError as error:
        raise ArtifactError(f"{file}: {error.message}", problems=error.problems, fix=error.fix) from error
    return Export(file, _spec(file, metadata), sha256, content)


def _candidate(path: Path) -> Path | None:
    if path.suffix == ".onnx" and path.is_file():
        return path
    return next((path / name for name in ONNX_FILES.values() if (path / name).is_file()), None)


def _check_hash(file: Path, sha256: str) -> None:
    """That it is the file of which parity was proven; a file by itself, without that record, has no hash to keep."""
    record = file.parent / PARITY_FILE
    if not record.is_file():
        return
    try:
        proven = read_json(record)["file"]
        name, expected = str(proven["name"]), str(proven["sha256"])
    except (FovealError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{record} does not say which file it is about.",
            fix=f"copy the folder again, or {_ANEW}",
        ) from error
    if name == file.name and sha256 != expected:
        raise ArtifactError(
            f"{file} is not the file that was proven: its sha256 differs from {PARITY_FILE}.",
            fix="copy the folder again; it was damaged or changed on the way.",
        )


def _spec(file: Path, metadata: Mapping[str, str]) -> ExportSpec:
    if METADATA_KEY not in metadata:
        raise ArtifactError(
            f"{file} was not exported by foveal: its metadata lack the key {METADATA_KEY!r}.", fix=_ANEW
        )
    try:
        spec = ExportSpec.model_validate_json(metadata[METADATA_KEY])
    except ValidationError as error:
        problems = [f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors()]
        raise ArtifactError(
            f"The metadata of {file} do not follow the schema of an export.", problems=problems, fix=_ANEW
        ) from error
    if spec.format_version != FORMAT_VERSION:
        raise ArtifactError(
            f"{file} has format version {spec.format_version}, and this foveal reads {FORMAT_VERSION}.",
            fix="use the foveal that wrote it, or export it again.",
        )
    return spec
