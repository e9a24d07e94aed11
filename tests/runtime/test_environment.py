"""Who a rank is, by the variables of torchrun and SLURM."""

import pytest

from llmscale.parallel.environment import NodeEnvironment, RankEnvironment, ports_of_job

TORCHRUN = {
    **{"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1"},
    **{
        "GROUP_WORLD_SIZE": "2",
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "1234",
        "TORCHELASTIC_RESTART_COUNT": "2",
    },
}
SLURM = {
    **{"SLURM_PROCID": "6", "SLURM_LOCALID": "2", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2"},
    **{"SLURM_NODEID": "1", "SLURM_JOB_NODELIST": "gpu[03-04,7],cpu1", "SLURM_JOB_ID": "41234567"},
}


def test_torchrun() -> None:
    assert RankEnvironment.from_variables(TORCHRUN) == RankEnvironment(5, 1, 8, 4, 1, 2, "10.0.0.1", 1234, 2)


def test_slurm() -> None:
    assert RankEnvironment.from_variables(SLURM) == RankEnvironment(6, 2, 8, 4, 1, 2, "gpu03", 0, 0)


def test_torchrun_comes_before_slurm() -> None:
    assert RankEnvironment.from_variables({**SLURM, **TORCHRUN}).rank == 5


def test_nothing_set_is_a_world_of_one() -> None:
    assert RankEnvironment.from_variables({}) == RankEnvironment()


@pytest.mark.parametrize("variables", [{"RANK": "x"}, {"RANK": "4", "WORLD_SIZE": "4"}, {"RANK": "1"}])
def test_contradictions_are_refused(variables: dict[str, str]) -> None:
    with pytest.raises(ValueError):
        RankEnvironment.from_variables(variables)


def test_agents_of_a_slurm_job_agree_on_where_to_meet() -> None:
    second = NodeEnvironment.from_variables(SLURM)
    first = NodeEnvironment.from_variables({**SLURM, "SLURM_NODEID": "0"})
    assert (first.host, first.ports, first.job) == (second.host, second.ports, second.job)
    assert first.host == "gpu03" and first.has_coordinator and not second.has_coordinator


def test_jobs_that_follow_each_other_have_other_ports() -> None:
    ports = [set(ports_of_job(str(job))) for job in range(4_000_000, 4_000_600)]
    assert len(set.union(*ports)) == sum(len(some) for some in ports)
    assert all(1024 < port < 32768 for some in ports for port in some)


def test_said_outright() -> None:
    said = {"LLMSCALE_RENDEZVOUS": "a:1", "LLMSCALE_NODES": "3", "LLMSCALE_NODE": "2", "LLMSCALE_JOB": "j"}
    assert NodeEnvironment.from_variables(said) == NodeEnvironment(2, 3, "a", (1,), False, "j")
    apart = NodeEnvironment.from_variables({**said, "LLMSCALE_COORDINATOR": "b:2", "LLMSCALE_NODE": "0"})
    assert (apart.host, apart.ports, apart.has_coordinator) == ("b", (2,), False)


@pytest.mark.parametrize("variables", [{"LLMSCALE_NODES": "2"}, {"LLMSCALE_RENDEZVOUS": "a"}])
def test_nobody_knows_where_to_meet(variables: dict[str, str]) -> None:
    with pytest.raises(ValueError):
        NodeEnvironment.from_variables(variables)
