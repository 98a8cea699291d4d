"""The command line: thin verbs over the functions of the same names, one module a verb.

Results go to stdout, everything else to stderr. Nothing heavy is imported before a verb runs: `--help` is quick.
"""

from importlib import import_module

from foveal.cli.shell import app

VERBS = (
    "demo", "audit", "clean", "preview", "split", "train", "evaluate", "predict", "explain", "tune", "crossval",
    "ensemble", "compare", "extend", "probe", "export", "serve", "bench", "models",
)  # fmt: skip
"""In the order of `foveal --help`: each module registers its verb when it is imported."""

for _verb in VERBS:
    import_module(f"foveal.cli.{_verb}")

__all__ = ["VERBS", "app", "main"]


def main() -> None:
    """Entry point of the `foveal` command."""
    app()
