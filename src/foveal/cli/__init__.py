"""The command line: thin verbs over the functions of the same names, one module a verb.

Results go to stdout, everything else to stderr. Nothing heavy is imported before a verb runs: `--help` is quick.
"""

# The order here is the order in `foveal --help`.
from foveal.cli import demo as _demo  # isort: skip
from foveal.cli import audit as _audit  # isort: skip
from foveal.cli import clean as _clean  # isort: skip
from foveal.cli import preview as _preview  # isort: skip
from foveal.cli import split as _split  # isort: skip
from foveal.cli import train as _train  # isort: skip
from foveal.cli import evaluate as _evaluate  # isort: skip
from foveal.cli import predict as _predict  # isort: skip
from foveal.cli import explain as _explain  # isort: skip
from foveal.cli import export as _export  # isort: skip
from foveal.cli import tune as _tune  # isort: skip
from foveal.cli import crossval as _crossval  # isort: skip
from foveal.cli import ensemble as _ensemble  # isort: skip
from foveal.cli import compare as _compare  # isort: skip
from foveal.cli import extend as _extend  # isort: skip
from foveal.cli import probe as _probe  # isort: skip
from foveal.cli import models as _models  # isort: skip
from foveal.cli import serve as _serve  # isort: skip
from foveal.cli import bench as _bench  # isort: skip
from foveal.cli.shell import app

del _demo, _audit, _clean, _preview, _split, _train, _evaluate, _predict, _tune, _compare, _extend, _probe, _models
del _bench, _serve, _crossval, _ensemble, _explain
__all__ = ["app", "main"]


def main() -> None:
    """Entry point of the `foveal` command."""
    app()
