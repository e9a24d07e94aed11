"""`llmscale doctor --cluster slurm`: what a site's SLURM means for runs, and a first profile for it."""

from collections.abc import Iterable
from pathlib import Path

import typer
from llmscale_launcher.job import write_whole
from llmscale_launcher.site_findings import Finding, config_findings, findings
from llmscale_launcher.site_profile import choose_partition, profile_text
from llmscale_launcher.slurm_site import SiteError, read_site
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmscale.config.load import load_config
from llmscale.config.problems import InputError, Problem


def doctor_slurm(partition: str | None, config: Path | None, output: Path | None) -> None:
    """Print what was found and a profile, or write the profile to `output`.

    Raises:
        InputError: the file is there already, or there is no such partition.
    """
    if output is not None and output.exists():
        raise InputError([Problem("--output", output, "is there already; remove it or name another")])
    try:
        site = read_site()
    except SiteError as error:
        Console(stderr=True).print(Text(f"no SLURM to look at: {error}", style="bold red"))
        raise typer.Exit(1) from None
    text = profile_text(site, choose_partition(site, partition))
    console = Console()
    print_findings(findings(site), console)
    if config is not None:
        console.print(Text(f"{config} here", style="bold"))
        print_findings(config_findings(site, load_config(config)), console)
    if output is None:
        console.print(Text("a first profile (--output FILE writes it)", style="bold"))
        console.print(Text(text), soft_wrap=True)
        return
    write_whole(output, text)
    console.print(f"wrote {output}: look through it, then `cluster: {output}` in a config")


def print_findings(found: Iterable[Finding], console: Console) -> None:
    table = Table.grid(padding=(0, 2))
    for finding in found:
        mark = Text("ok", style="green") if finding.good else Text("!!", style="yellow")
        table.add_row("  ", mark, finding.name, Text(finding.text))
    console.print(table)
