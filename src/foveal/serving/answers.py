"""What the server answers, as models: for the description of the interface, and for the tests of every answer."""

from typing import Any, Literal

from pydantic import Field

from foveal.config import Section
from foveal.files import to_json
from foveal.serving.messages import Answer, ModelFacts


class Heatmap(Section):
    """Where in the square the class was seen."""

    class_: str = Field(alias="class")
    """The predicted class, which it speaks of."""
    values: list[list[float]]
    """Rows from the top, each from the left, 0 to 1."""


class Fault(Section):
    """Why an image has no answer."""

    code: str
    """The pixel policy's code, such as `truncated`, or `model_failed`."""
    detail: str
    """One line of words."""


class Seconds(Section):
    """Where the time of an image went, in s."""

    decode: float
    """From the file's bytes to the square."""
    queue: float
    """Waiting, before and after decoding."""
    compute: float
    """Of the batch in which it was computed."""


class ImagePrediction(Section):
    """What the model says of one image."""

    name: str
    """The file name that the client gave; empty without one."""
    status: Literal["ok", "failed"]
    """Whether there is a prediction."""
    predicted: str | None
    """The most probable class; null where it failed."""
    probability: float | None
    """Its calibrated probability; null where it failed."""
    probabilities: dict[str, float] | None
    """Of each class, in the model's order; null where it failed."""
    heatmap: Heatmap | None
    """Null where it was not asked for, or there is none."""
    heatmap_reason: str
    """Why there is none although it was asked for; empty otherwise."""
    error: Fault | None
    """Why it failed; null where it did not."""
    seconds: Seconds
    """Where its time went."""


class Predictions(Section):
    """The answer to a request for predictions."""

    model: str
    """Which model answered."""
    predictions: list[ImagePrediction]
    """One an image, in the order in which they came."""
    seconds: float
    """From the head of the request to its answer."""


class Model(Section):
    """One of the models that are served."""

    name: str
    """What it is called in addresses."""
    architecture: str
    """The network, in words."""
    class_names: list[str]
    """In the order of the probabilities."""
    ordered: bool
    """Whether the classes are grades."""
    precision: Literal["fp32", "int8"]
    """What it computes in."""
    size_px: int
    """Side of the square that it sees."""
    tta: list[str]
    """Ways of test-time augmentation; a number of views, such as 8, is one more."""
    heatmap: bool
    """Whether it can say where it looks."""
    heatmap_reason: str
    """Why not; empty where it can."""
    licence: str
    """Of the weights that its training started from."""
    metrics: dict[str, Any]
    """Headline metrics a split, as measured before it was exported."""
    is_default: bool
    """Whether it answers at /v1/predict."""
    fit: str
    """How a picture becomes the square: crop, pad or squash; empty where its networks differ in it."""
    store_px: int
    """With fit crop, the shorter side before the central square is cut; 0 where its networks differ."""
    background: list[int]
    """Red, green and blue under transparency and padding."""


class Limits(Section):
    """What one request may bring."""

    max_upload_bytes: int
    """Of the whole body."""
    max_images: int
    """Parts."""


class Models(Section):
    """The models and the limits of this server."""

    models: list[Model]
    """The default is the first."""
    limits: Limits
    """What one request may bring."""


class Health(Section):
    """That the server is well."""

    status: Literal["ok"]
    """Always ok: what is not well answers with another status."""


class ProblemAnswer(Section):
    """Why a request was refused (RFC 9457)."""

    type: str
    """Place on /docs where this kind of problem is explained."""
    title: str
    """The kind of problem."""
    status: int
    """The answer's status."""
    detail: str
    """What was wrong with this request."""


def models_body(models: tuple[ModelFacts, ...], limits: Limits) -> bytes:
    """The answer of /v1/models, as JSON."""
    return to_json({"models": [each.to_dict() for each in models], "limits": limits.model_dump()}).encode("utf-8")


def predictions_body(
    model: ModelFacts, names: list[str], answers: list[Answer], *, wants_heatmap: bool, seconds: float
) -> bytes:
    """The answer of a prediction, as JSON. Nothing in it is NaN: what is not there is null."""
    entries = [
        _entry(model, name, answer, wants_heatmap=wants_heatmap) for name, answer in zip(names, answers, strict=True)
    ]
    return to_json({"model": model.name, "predictions": entries, "seconds": seconds}).encode("utf-8")


def _entry(model: ModelFacts, name: str, answer: Answer, *, wants_heatmap: bool) -> dict[str, Any]:
    is_ok = answer.status == "ok"
    heatmap = None
    if answer.heatmap is not None:
        heatmap = {"class": answer.predicted, "values": [[round(float(v), 4) for v in row] for row in answer.heatmap]}
    return {
        "name": name,
        "status": answer.status,
        "predicted": answer.predicted if is_ok else None,
        "probability": answer.probability if is_ok else None,
        "probabilities": dict(zip(model.class_names, answer.probabilities.tolist(), strict=True)) if is_ok else None,
        "heatmap": heatmap,
        "heatmap_reason": answer.heatmap_reason if wants_heatmap else "",
        "error": {"code": answer.error.code, "detail": answer.error.detail} if answer.error else None,
        "seconds": {
            "decode": answer.seconds.decode,
            "queue": answer.seconds.queue,
            "compute": answer.seconds.compute,
        },
    }
