"""`llmscale config`: the schema, and what a config comes to."""

import json
from pathlib import Path
from typing import Annotated

import typer
import yaml

from llmscale.config.load import load_config
from llmscale.config.schema import Config

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="The schema, and configs with everything filled in."
)


@app.command()
def schema() -> None:
    """Print the JSON Schema of config files, for editors to complete and check with."""
    typer.echo(json.dumps(Config.model_json_schema(), indent=2))


@app.command()
def show(
    config: Annotated[Path, typer.Argument(help="Config file (YAML).", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes, such as train.steps=100.")
    ] = None,
) -> None:
    """Print a config as a run would have it: preset, overrides and defaults filled in."""
    resolved = load_config(config, overrides or [])
    typer.echo(yaml.safe_dump(resolved.model_dump(mode="json"), sort_keys=False), nl=False)
