"""`foveal serve`: flags and printing; `api/serve.py` does the work."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveal.cli.shell import (
    AsJson,
    Config,
    Debug,
    DryRun,
    Overrides,
    app,
    examples,
    finish,
    progress,
    quoted,
    typed,
    verb,
)

if TYPE_CHECKING:
    from foveal.serving.running import Ready


@app.command(
    epilog=examples(
        "foveal serve exports/signs", "foveal serve exports/a exports/b --host 0.0.0.0 --token-file token.txt"
    )
)
def serve(
    models: Annotated[
        list[Path], typer.Argument(metavar="BUNDLE...", help="Exports, runs or bundles; the first is the default.")
    ],
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="0 takes a free one.")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What clients must send; needed for any address but this machine's own."),
    ] = None,
    config: Config = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
    debug: Debug = False,
) -> None:
    """A REST interface and a web page over exported models, without torch, until Ctrl-C or SIGTERM."""
    with verb(debug):
        from foveal.api.serve import plan_serve
        from foveal.api.serve import serve as run

        if dry_run:
            planned = plan_serve(
                models, host=host, port=port, token_file=token_file, config=config, overrides=overrides or ()
            )
            flags = {
                "--host": None if host == "127.0.0.1" else host, "--port": None if port == 8000 else port,
                "--token-file": token_file, "--config": config, "--set": overrides,
            }  # fmt: skip
            words = [str(model) for model in models]
            finish(planned.to_dict(), as_json, [str(planned)], [typed("serve", words, flags)])
            return
        header = "" if token_file is None else f""" --header "Authorization: Bearer $(cat {quoted(token_file)})\""""

        def announce(ready: "Ready") -> None:
            names = [model.name for model in ready.models]
            everywhere = ", and at all other addresses of this machine" if ready.is_everywhere else ""
            lines = [f"foveal serves {', '.join(names)} at {ready.url}{everywhere}"]
            commands = [
                f"curl{header} {ready.url}/v1/models",
                f"curl{header} --form image=@PHOTO.jpg {ready.url}/v1/predict",
            ]
            finish({"url": ready.url, "models": names}, as_json, lines, commands, sys.stderr)
            sys.stdout.flush()

        stopped = run(
            models,
            host=host,
            port=port,
            token_file=token_file,
            config=config,
            overrides=overrides or (),
            on_ready=announce,
            progress=progress(),
        )
        raise typer.Exit(128 + stopped.signal_number if stopped.signal_number else 0)
