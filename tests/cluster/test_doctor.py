"""`llmscale doctor --cluster slurm` on a login node, and a run with the profile that it writes."""

import pytest
import yaml

from tests.cluster.runs import SlurmPlace

pytestmark = pytest.mark.cluster


def test_profile_of_this_site_carries_a_run(slurm_place: SlurmPlace) -> None:
    profile = slurm_place.place.folder / "site.yaml"
    said = slurm_place.llmscale("doctor", "--cluster", "slurm", "--output", str(profile))
    for part in ("SLURM ", "JobRequeue", "KillWait", "partition "):
        assert part in said
    fields = yaml.safe_load(profile.read_text())
    assert fields["partition"] in slurm_place.cluster.run("sinfo", "--noheader", "--format=%R")
    changes = ("cluster.processes_per_node=1", "cluster.cpus_per_process=1")
    slurm_place.llmscale(
        *("submit", str(slurm_place.place.config), "run.name=profiled", "train.steps=6"),
        *(f"cluster.profile={profile}", "cluster.kind=slurm", *changes),
    )
    submitted = slurm_place.submitted("profiled")
    submitted.finish()
    assert submitted.record["kind"] == "slurm"
