"""One SLURM for all tests of a session, whole and idle at the beginning of each."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.runs import STEPS, SlurmPlace
from tests.cluster.slurm.cluster import SlurmCluster
from tests.distributed.trainings import Place, Run


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    with SlurmCluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: SlurmCluster) -> SlurmCluster:
    """Four nodes of four CPUs; whatever the test before broke is mended."""
    shared_cluster.mend()
    return shared_cluster


@pytest.fixture
def slurm_place(cluster: SlurmCluster, tmp_path: Path) -> SlurmPlace:
    """A folder for runs on the cluster."""
    return SlurmPlace.make(tmp_path, cluster)


@pytest.fixture(scope="session")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run on two ranks that nothing disturbs."""
    place = Place.make(tmp_path_factory.mktemp("oracle"))
    return place.uninterrupted("oracle", "cluster.processes_per_node=2", f"train.steps={STEPS}")
