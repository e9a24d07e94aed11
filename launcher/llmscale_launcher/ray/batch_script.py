"""The batch script of a run on a Ray inside a SLURM allocation: `slurm/ray.sbatch` filled in."""

from llmscale_launcher.backends.base import JobRequest
from llmscale_launcher.batch_script import script_values
from llmscale_launcher.ray.placement import ask_of
from llmscale_launcher.template import render, templates_folder


def ray_script(request: JobRequest) -> str:
    """The script of a run."""
    ask = ask_of(request.config.cluster)
    values = script_values(request) | {
        "CPUS": str(ask.cpus),
        "GPUS": str(ask.gpus),
        "DASHBOARD_HOST": request.config.cluster.ray.dashboard_host,
    }
    return render((templates_folder() / "ray.sbatch").read_text(), values)
