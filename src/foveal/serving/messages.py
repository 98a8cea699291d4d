"""What the front and the worker say to each other: plain values and how they become frames and values again."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

import foveal.errors
from foveal.errors import ArtifactError, ConfigError, FovealError
from foveal.serving.protocol import Frame, ProtocolError

_TUPLES = ("class_names", "tta", "background")  # of a model's facts: lists in JSON


@dataclass(frozen=True, slots=True)
class ServedExport:
    """A model that shall be served.

    Attributes:
        name: what it is called in addresses.
        path: the exported file, or its folder.
    """

    name: str
    path: str


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """All that the worker has to know.

    Attributes:
        exports: the models, the first being the default; no name twice.
        num_threads: threads that compute; None for one a processor.
        num_decode_threads: threads that decode; None for one a processor, at most 8.
        max_batch: images that are computed together; each view of test-time augmentation counts as one.
        max_wait_ms: how long a computer with nothing to do waits for images that are still being decoded.
        queue_size: images that may wait or be worked on, over all models; the next are refused.
        queue_mib: likewise, by the size of their files.
    """

    exports: tuple[ServedExport, ...]
    num_threads: int | None = None
    num_decode_threads: int | None = None
    max_batch: int = 8
    max_wait_ms: float = 5.0
    queue_size: int = 256
    queue_mib: int = 512

    def __post_init__(self) -> None:
        names = [export.name for export in self.exports]
        problems = []
        if not names:
            problems.append("exports: at least one model was expected")
        if len(set(names)) != len(names):
            problems.append(f"exports: names that differ were expected, and {', '.join(names)} came")
        problems += [
            f"{name}: at least 1 was expected, and {value} came"
            for name in ("num_threads", "num_decode_threads", "max_batch", "queue_size", "queue_mib")
            if (value := getattr(self, name)) is not None and value < 1
        ]
        if not 0.0 <= self.max_wait_ms <= 10_000.0:
            problems.append(f"max_wait_ms: 0 to 10000 were expected, and {self.max_wait_ms} came")
        if problems:
            raise ConfigError("The settings of the server make no sense.", problems=problems)

    def to_header(self) -> dict[str, Any]:
        """The header of the first frame."""
        return {"type": "settings", **asdict(self)}

    @classmethod
    def from_header(cls, header: dict[str, Any]) -> Self:
        """The settings in a frame.

        Raises:
            ConfigError: a value is out of range.
        """
        values = _plain(cls, header)
        return cls(**{**values, "exports": tuple(ServedExport(**each) for each in values["exports"])})


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What clients may know of a model.

    Attributes:
        name: what it is called in addresses.
        architecture: the network, in words.
        class_names: in the order of the probabilities.
        precision: fp32 or int8.
        size_px: side of the square that it sees; of the largest, where its networks differ.
        tta: ways of test-time augmentation beside a number of views.
        heatmap: whether it can say where it looks.
        heatmap_reason: why not; empty where it can.
        licence: of the weights that the training started from.
        metrics: headline metrics a split, as measured.
        is_default: whether it answers where no model is named.
        ordered: whether the classes are grades.
        fit: how a picture becomes the square, as in `foveal.pixels.geometry.Geometry`; empty where its networks differ.
        store_px: with fit `crop`, the shorter side before the central square is cut; 0 where its networks differ.
        background: sRGB, under transparency and padding.
    """

    name: str
    architecture: str
    class_names: tuple[str, ...]
    precision: str
    size_px: int
    tta: tuple[str, ...]
    heatmap: bool
    heatmap_reason: str
    licence: str
    metrics: dict[str, Any]
    is_default: bool
    ordered: bool = False
    fit: str = ""
    store_px: int = 0
    background: tuple[int, int, int] = (255, 255, 255)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        lists = {name: list(getattr(self, name)) for name in _TUPLES}
        return {**asdict(self), **lists}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The facts again."""
        values = _plain(cls, values)
        return cls(**{**values, **{name: tuple(values[name]) for name in _TUPLES if name in values}})


@dataclass(frozen=True, slots=True)
class AnswerFault:
    """Why an image has no answer.

    Attributes:
        code: the pixel policy's code (`foveal.pixels.policy.REJECTION_CODES`), or `model_failed`.
        detail: one line of words, without a path.
    """

    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class AnswerSeconds:
    """Where the time of one image went.

    Attributes:
        decode: from the file's bytes to the squares.
        queue: waiting, before and after decoding.
        compute: of the whole batch in which it was computed.
        batch_size: images in that batch; 0 where it failed before.
    """

    decode: float
    queue: float
    compute: float
    batch_size: int


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What a model says of one image.

    Attributes:
        status: ok or failed.
        predicted: the most probable class; empty where it failed.
        probability: its probability; NaN where it failed.
        probabilities: float64 [classes], adding up to 1; empty where it failed.
        heatmap: float32 [h, w], 0..1, where in the square the predicted class was seen; None without one.
        heatmap_reason: why there is none although it was asked for.
        error: why it failed; None where it did not.
        seconds: where the time went.
    """

    status: Literal["ok", "failed"]
    predicted: str
    probability: float
    probabilities: NDArray[np.float64]
    heatmap: NDArray[np.float32] | None
    heatmap_reason: str
    error: AnswerFault | None
    seconds: AnswerSeconds

    @classmethod
    def failed(cls, fault: AnswerFault, seconds: AnswerSeconds) -> Self:
        """Of an image that has none."""
        return cls("failed", "", float("nan"), np.empty(0), None, "", fault, seconds)


def answers_frame(request_id: int, answers: Sequence[Answer]) -> tuple[dict[str, Any], list[bytes]]:
    """The answers to a request, as header and blobs: by image, the probabilities and the heatmap where there is one."""
    entries: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for answer in answers:
        entry: dict[str, Any] = {"seconds": asdict(answer.seconds)}
        if answer.error is not None:
            entry["error"] = asdict(answer.error)
        else:
            entry |= {"predicted": answer.predicted, "heatmap_reason": answer.heatmap_reason}
            blobs.append(answer.probabilities.astype("<f8").tobytes())
            if answer.heatmap is not None:
                entry["heatmap_shape"] = list(answer.heatmap.shape)
                blobs.append(answer.heatmap.astype("<f4").tobytes())
        entries.append(entry)
    return {"type": "answers", "id": request_id, "answers": entries}, blobs


def read_answers(frame: Frame) -> list[Answer]:
    """The answers in a frame.

    Raises:
        ProtocolError: header and blobs do not fit together.
    """
    blobs = iter(frame.blobs)
    try:
        return [_answer(entry, blobs) for entry in frame.header["answers"]]
    except (KeyError, TypeError, ValueError, StopIteration, RuntimeError) as error:
        raise ProtocolError(f"The answers of the worker do not hang together: {error!r}") from error


def _answer(entry: dict[str, Any], blobs: Any) -> Answer:
    seconds = AnswerSeconds(**entry["seconds"])
    if "error" in entry:
        return Answer.failed(AnswerFault(**entry["error"]), seconds)
    probabilities = np.frombuffer(next(blobs), dtype="<f8").astype(np.float64)
    heatmap = None
    if "heatmap_shape" in entry:
        height, width = entry["heatmap_shape"]
        heatmap = np.frombuffer(next(blobs), dtype="<f4").astype(np.float32).reshape(height, width)
    return Answer(
        "ok",
        str(entry["predicted"]),
        float(probabilities.max()),
        probabilities,
        heatmap,
        str(entry["heatmap_reason"]),
        None,
        seconds,
    )


def error_header(error: FovealError, *, request_id: int | None = None) -> dict[str, Any]:
    """The header of a frame that says what went wrong, with a request or, without `request_id`, at the start."""
    kind = type(error).__name__
    said = {"error": kind, "message": error.message, "problems": list(error.problems), "fix": error.fix}
    return {"type": "failed", **said} if request_id is None else {"type": "refused", "id": request_id, **said}


def read_error(header: dict[str, Any]) -> FovealError:
    """The error in a frame, of its own class where that is one of ours."""
    kind = getattr(foveal.errors, str(header.get("error")), None)
    known = isinstance(kind, type) and issubclass(kind, FovealError) and kind is not foveal.errors.InterruptedRunError
    chosen = kind if known else ArtifactError
    problems = tuple(str(problem) for problem in header.get("problems", ()))
    return chosen(str(header.get("message", "")), problems=problems, fix=str(header.get("fix", "")))  # type: ignore[misc]


def _plain(kind: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    """The values that are fields of a dataclass."""
    names = {each.name for each in fields(kind)}
    return {key: value for key, value in values.items() if key in names}
