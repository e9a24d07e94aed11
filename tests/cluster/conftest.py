"""One SLURM for all tests of a session, whole and idle at the beginning of each."""

from collections.abc import Iterator

import pytest

from tests.cluster.slurm.cluster import SlurmCluster


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    with SlurmCluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: SlurmCluster) -> SlurmCluster:
    """Four nodes of four CPUs; whatever the test before broke is mended."""
    shared_cluster.mend()
    return shared_cluster
