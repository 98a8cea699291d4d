"""`foveal train --sweep`: printing; `api/sweep.py` does the work."""

from pathlib import Path

from foveal.cli.shell import finish, progress, quoted, typed


def run_sweep(
    data: str | None,
    out: Path | None,
    sweeps: list[str],
    seeds: str | None,
    config: Path | None,
    settings: list[str],
    *,
    as_json: bool,
    dry_run: bool,
    force: bool,
) -> None:
    """Train with every value and seed, and print which is best by validation."""
    from foveal.api.sweep import plan_sweep, sweep
    from foveal.errors import ConfigError
    from foveal.experiments.sweep.axes import parse_seeds

    if not sweeps:
        raise ConfigError("--seeds repeats a sweep, and there is no --sweep.", fix="for one training: --seed N")
    if data is None:
        raise ConfigError("train --sweep needs DATA; the same command again goes on.", fix="see foveal train --help")
    chosen = None if seeds is None else parse_seeds(seeds)
    if dry_run:
        planned = plan_sweep(data, out, sweep=sweeps, seeds=chosen, config=config, overrides=settings)
        flags = {
            "--sweep": sweeps, "--seeds": seeds, "--out": out or "DIR", "--config": config, "--set": settings,
            "--force": force,
        }  # fmt: skip
        finish(planned.to_dict(), as_json, [str(planned)], [typed("train", [data], flags)])
        return
    if out is None:
        raise ConfigError("train --sweep needs a folder.", fix="add --out DIR, as in --out sweeps/lr.")
    done = sweep(
        data,
        out,
        sweep=sweeps,
        seeds=chosen,
        config=config,
        overrides=settings,
        force=force,
        progress=progress(),
    )
    following = f"foveal predict {quoted(done.best_run)} PHOTOS --out predictions.csv" if done.best_run else ""
    lines = [*done.sentences, f"Report: {done.report}", f"Summary: {done.summary}"]
    finish(done.to_dict(), as_json, lines, [following] if following else ["a wider --sweep"])
