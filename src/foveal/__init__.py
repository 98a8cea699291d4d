"""foveal: labelled images to a classifier one can trust and ship.

The verbs of the command line are functions of the same names here. They are imported when first used, so that
`import foveal` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from foveal.version import __version__

if TYPE_CHECKING:
    from foveal.api.audit import audit
    from foveal.api.bench import bench
    from foveal.api.clean import clean
    from foveal.api.compare import compare
    from foveal.api.crossval import crossval
    from foveal.api.demo import demo
    from foveal.api.ensemble import ensemble
    from foveal.api.evaluate import evaluate
    from foveal.api.explain import explain
    from foveal.api.export import export
    from foveal.api.extend import extend
    from foveal.api.models import models
    from foveal.api.predict import predict
    from foveal.api.preview import preview
    from foveal.api.probe import probe
    from foveal.api.serve import Server, serve
    from foveal.api.split import split
    from foveal.api.sweep import sweep
    from foveal.api.train import check, plan, train
    from foveal.api.tune import tune
    from foveal.explaining.explainer import Explainer
    from foveal.inference import Predictor

_HOMES = {
    "audit": "foveal.api.audit",
    "bench": "foveal.api.bench",
    "check": "foveal.api.train",
    "clean": "foveal.api.clean",
    "compare": "foveal.api.compare",
    "crossval": "foveal.api.crossval",
    "demo": "foveal.api.demo",
    "ensemble": "foveal.api.ensemble",
    "evaluate": "foveal.api.evaluate",
    "explain": "foveal.api.explain",
    "export": "foveal.api.export",
    "extend": "foveal.api.extend",
    "models": "foveal.api.models",
    "plan": "foveal.api.train",
    "predict": "foveal.api.predict",
    "preview": "foveal.api.preview",
    "probe": "foveal.api.probe",
    "serve": "foveal.api.serve",
    "split": "foveal.api.split",
    "sweep": "foveal.api.sweep",
    "train": "foveal.api.train",
    "tune": "foveal.api.tune",
    "Explainer": "foveal.explaining.explainer",
    "Predictor": "foveal.inference",
    "Server": "foveal.api.serve",
}

__all__ = [
    "Explainer",
    "Predictor",
    "Server",
    "__version__",
    "audit",
    "bench",
    "check",
    "clean",
    "compare",
    "crossval",
    "demo",
    "ensemble",
    "evaluate",
    "explain",
    "export",
    "extend",
    "models",
    "plan",
    "predict",
    "preview",
    "probe",
    "serve",
    "split",
    "sweep",
    "train",
    "tune",
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
