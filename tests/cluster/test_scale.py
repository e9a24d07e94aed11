"""A thousand nodes: real slurmd, all on this machine."""

import time
from pathlib import Path

import pytest

from tests.cluster.runs import SlurmPlace
from tests.cluster.slurm.cluster import SlurmCluster
from tests.cluster.slurm.configuration import ClusterShape

pytestmark = [pytest.mark.cluster, pytest.mark.soak]

NODES = 1024
SUBMIT_SECONDS = 2.0


def test_a_job_of_1024_nodes(tmp_path: Path) -> None:
    """From the command to the job's id in two seconds; the script that was made runs on all nodes."""
    shape = ClusterShape(nodes=NODES, accounting=False, node_timeout=120, machines=False)
    with SlurmCluster(tmp_path / "slurm", shape) as cluster:
        place = SlurmPlace.make(tmp_path, cluster)
        batch = f"train.global_batch_size={NODES}"
        begin = time.monotonic()
        submitted = place.submit("large", f"cluster.nodes={NODES}", batch, "cluster.setup=[exit 0]")
        seconds = time.monotonic() - begin
        cluster.wait_for(submitted.job, "COMPLETED", seconds=120)
        print(f"submitted in {seconds:.2f} s")
        assert f"NumNodes={NODES}" in cluster.describe(submitted.job)
        assert seconds < SUBMIT_SECONDS
