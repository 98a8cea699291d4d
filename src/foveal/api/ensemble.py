"""`foveal ensemble`: several models, one bundle that votes."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, get_args

from foveal.api.opening import refuse_inside
from foveal.errors import ConfigError
from foveal.experiments.ensemble.data import VoteData, other_data, own_data
from foveal.experiments.ensemble.members import Candidate, check_classes, open_candidates
from foveal.experiments.ensemble.voting import Ensemble, finished, make_ensemble, settings_of
from foveal.metrics import shown
from foveal.model.voting import Vote
from foveal.progress import Progress, Silence
from foveal.report.ensemble_page import build_ensemble_page
from foveal.run_folder import ExperimentFolder
from foveal.training.config import Config, read_config


@dataclass(frozen=True)
class EnsembleResult:
    """A finished ensemble.

    Attributes:
        outcome: its rows, weights, comparison and sentences.
        report: the page to open.
    """

    outcome: Ensemble
    report: Path

    @property
    def folder(self) -> Path:
        """Where everything lies; itself a model."""
        return self.outcome.folder.path

    @property
    def bundle(self) -> Path:
        """The deployable folder."""
        return self.outcome.folder.bundle

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        outcome = self.outcome
        return {
            "folder": str(self.folder),
            "report": str(self.report),
            "bundle": str(self.bundle),
            "rows": list(outcome.rows),
            "validation": list(outcome.validation),
            "weights": dict(outcome.weights),
            "best_member": outcome.best_member,
            "comparison": outcome.comparison,
            "sentences": list(outcome.sentences),
        }

    def table(self) -> list[list[str]]:
        """A row a member and one for the ensemble, for a person."""
        rows = [["model", "weight", "validation", "test", "95 % interval", "macro F1", "log loss", "ms"]]
        for row, validation in zip(self.outcome.rows, self.outcome.validation, strict=True):
            bounds, latency = row["confidence_intervals"].get("accuracy"), row["latency_ms"]
            cells = [row["name"], shown(row["weight"]), shown(validation["accuracy"]), shown(row["accuracy"])]
            cells += [f"[{shown(bounds[0])}, {shown(bounds[1])}]" if bounds else "", shown(row["macro_f1"])]
            rows.append([*cells, shown(row["log_loss"]), f"{latency['p50']:.1f}" if latency else ""])
        return rows

    def _repr_html_(self) -> str:
        head, *body = self.table()
        table = f"<tr>{''.join(f'<th>{html.escape(cell)}</th>' for cell in head)}</tr>"
        table += "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in body)
        said = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in self.outcome.sentences)
        return f"<p>Ensemble <code>{html.escape(str(self.folder))}</code></p><table>{table}</table><ul>{said}</ul>"


@dataclass(frozen=True)
class EnsemblePlan:
    """What `ensemble --dry-run` shows.

    Attributes:
        members: name, network and image size of each.
        vote: how they vote.
        num_val: images that weights and temperature would be fitted on.
        num_test: images that all would be measured on.
        counts_as_look: whether this would count as a look at the runs' test split.
    """

    members: tuple[tuple[str, str, int], ...]
    vote: Vote
    num_val: int
    num_test: int
    counts_as_look: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        keys = ("name", "model", "image_size")
        return {
            "members": [dict(zip(keys, member, strict=True)) for member in self.members],
            "vote": self.vote,
            "num_val": self.num_val,
            "num_test": self.num_test,
            "counts_as_look": self.counts_as_look,
        }

    def __str__(self) -> str:
        look = ", counted as a look at the test split of each run" if self.counts_as_look else ""
        lines = [f"member      {name}: {model}, {size} px" for name, model, size in self.members]
        lines += [f"vote        {self.vote}, fitted on {self.num_val:,} validation images"]
        return "\n".join([*lines, f"measured    on {self.num_test:,} test images{look}"])


def ensemble(
    models: Sequence[str | PathLike[str]],
    out: str | PathLike[str] = "ensemble",
    *,
    vote: Vote = "soft",
    data: str | PathLike[str] | None = None,
    config: Config | str | PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    device: str = "auto",
    force: bool = False,
    progress: Progress | None = None,
) -> EnsembleResult:
    """Make one bundle of several models of the same classes, and measure it beside each of them.

    Weights and temperature are fitted on validation alone. The members may be of any architecture and image size.

    Args:
        models: runs, or bundles of one network.
        out: the folder; its bundle votes.
        vote: soft (the mean of the probabilities), majority, or weighted.
        data: labelled images with a val and a test split; those that the members' runs share, if not given.
        config: a configuration, or a YAML file of one, that says how `data` is read.
        overrides: texts such as "data.columns.label=cell_type", on top of it.
        device: auto, cpu, cuda or mps.
        force: whether to start anew in a folder that holds an ensemble.
        progress: where to show it.

    Raises:
        ConfigError: fewer than two models, a key or value is wrong, or the folder was begun with other settings.
        ArtifactError: a model is damaged, votes itself, or knows other classes; all at once.
        DataError: a member has learnt from images that another is tested on; or images cannot be read.

    Example:
        >>> import foveal
        >>> foveal.ensemble(["runs/a", "runs/b"], "ensemble", vote="weighted")  # doctest: +SKIP
    """
    chosen, folder = read_config(config, overrides), ExperimentFolder(Path(out))
    candidates = _candidates(models, vote, data, chosen, config, overrides)
    if data is not None:
        refuse_inside(folder.path, data)
    found = _data(candidates, data, chosen)
    folder.prepare()
    with folder.lock():
        folder.begin("ensemble", settings_of(candidates, vote, data, chosen), force=force)
        outcome = finished(folder)
        if outcome is None:
            outcome = make_ensemble(
                folder,
                candidates,
                found,
                vote=vote,
                seed=chosen.seed,
                device=device,
                progress=progress or Silence(),
            )
        elif progress is not None:
            progress.say("The ensemble was made already; nothing is left to do.")
        with folder.stage("report"):
            report = build_ensemble_page(folder)
    return EnsembleResult(outcome, report)


def plan_ensemble(
    models: Sequence[str | PathLike[str]],
    *,
    vote: Vote = "soft",
    data: str | PathLike[str] | None = None,
    config: Config | str | PathLike[str] | None = None,
    overrides: Sequence[str] = (),
) -> EnsemblePlan:
    """What `ensemble` would do: nothing is decoded, written or counted as a look.

    Raises:
        ConfigError: as `ensemble`.
        ArtifactError: as `ensemble`.
        DataError: as `ensemble`, but for what only decoding can show.
    """
    chosen = read_config(config, overrides)
    candidates = _candidates(models, vote, data, chosen, config, overrides)
    found = _data(candidates, data, chosen)
    return EnsemblePlan(
        members=tuple((each.name, each.architecture, each.bundle.spec.preprocessing.size_px) for each in candidates),
        vote=vote,
        num_val=len(found.manifest.of_split("val")),
        num_test=len(found.manifest.of_split("test")),
        counts_as_look=found.is_own,
    )


def _candidates(
    models: Sequence[str | PathLike[str]],
    vote: Vote,
    data: str | PathLike[str] | None,
    chosen: Config,
    config: Config | str | PathLike[str] | None,
    overrides: Sequence[str],
) -> list[Candidate]:
    if vote not in get_args(Vote):
        raise ConfigError(f"--vote {vote}: expected one of {', '.join(get_args(Vote))}.")
    says_data = chosen.model_copy(update={"seed": Config().seed}) != Config()
    if data is None and says_data and (config is not None or overrides):
        raise ConfigError(
            "--config and --set say how DATA is read, and there is no DATA.",
            fix="add --data DATA; or leave them out to take the images that the members' runs share.",
        )
    candidates = open_candidates(models)
    check_classes(candidates)
    return candidates


def _data(candidates: Sequence[Candidate], data: str | PathLike[str] | None, config: Config) -> VoteData:
    return own_data(candidates) if data is None else other_data(data, config)
