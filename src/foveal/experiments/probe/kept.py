"""Fitted heads on disk, so that a probe that was killed does not fit them again."""

from dataclasses import asdict

from foveal.experiments.probe.heads import Candidate, FittedHead, Tried
from foveal.files import atomic_writer, read_json, write_json
from foveal.model.config import ClassicalHeadConfig
from foveal.model.tensors import read_tensors
from foveal.run_folder import RunFolder


def keep(run: RunFolder, fitted: FittedHead) -> None:
    """Write a fitted head; the description comes last, for it says that all is there."""
    from safetensors.torch import save

    best = fitted.best
    run.path.mkdir(parents=True, exist_ok=True)
    with atomic_writer(run.path / "head.safetensors") as stream:
        stream.write(save({name: tensor.contiguous() for name, tensor in best.tensors.items()}))
    content = {
        "head": fitted.name,
        "chosen": dict(best.chosen),
        "classical": None if best.classical is None else best.classical.model_dump(mode="json"),
        "notes": list(best.notes),
        "grid": [asdict(point) for point in fitted.tried],
        "seconds": fitted.seconds,
    }
    write_json(run.path / "head.json", content)


def taken_up(run: RunFolder, head: str) -> FittedHead | None:
    """The head that was fitted before; None where there is none."""
    if not (run.path / "head.json").is_file():
        return None
    content = read_json(run.path / "head.json")
    classical = content["classical"]
    best = Candidate(
        content["chosen"],
        None if classical is None else ClassicalHeadConfig.model_validate(classical),
        read_tensors(run.path / "head.safetensors"),
        tuple(content["notes"]),
    )
    return FittedHead(head, best, tuple(Tried(**point) for point in content["grid"]), content["seconds"])
