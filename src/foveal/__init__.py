"""foveal: labelled images to a classifier one can trust and ship.

The verbs of the command line are functions of the same names here. They are imported when first used, so that
`import foveal` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from foveal.version import __version__

if TYPE_CHECKING:
    from foveal.api.audit import audit
    from foveal.api.clean import clean
    from foveal.api.demo import demo
    from foveal.api.evaluate import evaluate
    from foveal.api.models import models
    from foveal.api.predict import predict
    from foveal.api.preview import preview
    from foveal.api.split import split
    from foveal.api.train import check, plan, train
    from foveal.inference import Predictor

_HOMES = {
    "audit": "foveal.api.audit",
    "check": "foveal.api.train",
    "clean": "foveal.api.clean",
    "demo": "foveal.api.demo",
    "evaluate": "foveal.api.evaluate",
    "models": "foveal.api.models",
    "plan": "foveal.api.train",
    "predict": "foveal.api.predict",
    "preview": "foveal.api.preview",
    "split": "foveal.api.split",
    "train": "foveal.api.train",
    "Predictor": "foveal.inference",
}

__all__ = [
    "Predictor",
    "__version__",
    "audit",
    "check",
    "clean",
    "demo",
    "evaluate",
    "models",
    "plan",
    "predict",
    "preview",
    "split",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'foveal' has no attribute {name!r}")
    try:
        return getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        from foveal.extras import missing_extra

        raise missing_extra(error) or error from error


def __dir__() -> list[str]:
    return sorted(__all__)
