"""`llmscale doctor --cluster slurm`, on what a SLURM 22.05.8 said (`recorded/`), and on changes to that."""

import os
from pathlib import Path

import pytest
import typer
import yaml
from llmscale_launcher.site_findings import config_findings, findings
from llmscale_launcher.site_profile import choose_partition, profile_text
from llmscale_launcher.slurm_site import (
    Site,
    minutes_of,
    parse_accounts,
    parse_nodes,
    parse_partitions,
    parse_settings,
)

from llmscale.commands.doctor_site import doctor_slurm
from llmscale.config.cluster import ClusterSection
from llmscale.config.load import load_config
from llmscale.config.problems import InputError
from llmscale.config.schema import Config

RECORDED = Path(__file__).with_name("recorded")
CONFIG, PARTITIONS, NODES = (
    (RECORDED / name).read_text() for name in ("config.txt", "partition.txt", "nodes.txt")
)


def site(*changes: tuple[str, str], accounts: str = "root|\n") -> Site:
    """The recorded one; each change replaces a text wherever it stands, and must stand somewhere."""
    texts = [CONFIG, PARTITIONS, NODES]
    for old, new in changes:
        assert any(old in text for text in texts), old
        texts = [text.replace(old, new) for text in texts]
    config, partitions, nodes = texts
    return Site(
        parse_settings(config), parse_partitions(partitions, parse_nodes(nodes)), parse_accounts(accounts)
    )


def risks(found: Site) -> dict[str, str]:
    return {finding.name: finding.text for finding in findings(found) if not finding.good}


def test_what_was_recorded() -> None:
    found = site()
    assert (found.name, found.version) == ("lab", "22.05.8")
    assert [partition.name for partition in found.partitions] == ["main", "debug", "low", "high"]
    main, debug, low, high = found.partitions
    assert main.is_default and main.max_minutes is None and debug.max_minutes == 10
    assert (low.grace_seconds, high.tier) == (10, 10)
    assert main.smallest is not None
    assert (main.smallest.cpus, main.smallest.memory, main.smallest.gpus) == (2, 2000, 8)
    assert set(risks(found)) == {
        "KillWait",
        "ProctrackType",
        "TaskPlugin",
        "EnforcePartLimits",
        "partition main",
        "partition debug",
    }


SOUND = (
    ("KillWait                = 5 sec", "KillWait                = 60 sec"),
    ("proctrack/linuxproc", "proctrack/cgroup"),
    ("task/none", "task/cgroup,task/affinity"),
    ("EnforcePartLimits       = NO", "EnforcePartLimits       = ALL"),
    ("preempt/partition_prio", "preempt/none"),
)


def test_a_sound_site_has_no_risks() -> None:
    assert risks(site(*SOUND)) == {}


@pytest.mark.parametrize(
    ("old", "new", "name", "part"),
    [
        ("JobRequeue              = 1", "JobRequeue              = 0", "JobRequeue", "cluster.requeue"),
        ("KillWait                = 60 sec", "KillWait                = 9 sec", "KillWait", "9 s"),
        ("MinJobAge               = 600 sec", "MinJobAge               = 5 sec", "MinJobAge", "5 s"),
        ("task/cgroup,task/affinity", "task/affinity", "TaskPlugin", "not fenced"),
        ("State=UP", "State=DOWN", "partition main", "state DOWN"),
        ("|idle|", "|drained*|", "partition low", "0 of 3 nodes usable"),
        ("node3|main*|2|2000|gpu:8", "node3|main*|4|2000|gpu:h100:4", "partition main", "several kinds"),
        (
            "AccountingStorageEnforce = none",
            "AccountingStorageEnforce = associations",
            "accounts",
            "none that",
        ),
    ],
)
def test_each_risk_is_told(old: str, new: str, name: str, part: str) -> None:
    found = risks(site(*SOUND, (old, new), accounts=""))
    assert name in found and part in found[name]


@pytest.mark.parametrize(
    ("mode", "part"),
    [("REQUEUE", "set checkpoint.every"), ("CANCEL", "submit again"), ("SUSPEND", "watchdog")],
)
def test_ways_of_preemption(mode: str, part: str) -> None:
    found = risks(site(("PreemptMode=REQUEUE", f"PreemptMode={mode}"), ("GraceTime=10", "GraceTime=0")))
    assert part in found["partition low"]
    assert "partition high" not in found


def test_what_a_config_asks_for_in_vain() -> None:
    def told(**cluster: object) -> dict[str, str]:
        config = Config.model_validate({"cluster": {"kind": "slurm", **cluster}})
        return {finding.name: finding.text for finding in config_findings(site(), config)}

    assert told(nodes=3, gpus_per_node=8, cpus_per_process=2) == {}
    assert told(partition="debug", time="0:10:00", cpus_per_process=1) == {}
    assert "more than 00:10:00" in told(partition="debug", time="0:11:00", cpus_per_process=1)["cluster.time"]
    assert "there is main, debug" in told(partition="gpu", cpus_per_process=1)["cluster.partition"]
    assert "3 in main" in told(nodes=4, cpus_per_process=1)["cluster.nodes"]
    assert "one CPU together" in told(processes_per_node=2)["cluster.cpus_per_process"]


@pytest.mark.parametrize(
    ("time", "minutes"),
    [
        ("UNLIMITED", None),
        ("00:10:00", 10),
        ("7-00:00:00", 7 * 1440),
        ("1-12", 36 * 60),
        ("90", 90),
        ("1:30", 1.5),
    ],
)
def test_times(time: str, minutes: float | None) -> None:
    assert minutes_of(time) == minutes


def test_profile() -> None:
    found = site(("|gpu:8|(null)|", "|gpu:h100:4(S:0-1),tmp:1|fast,ib|"), ("|2|2000|", "|96|2000000|"))
    text = profile_text(found, choose_partition(found, None))
    section = ClusterSection.model_validate(yaml.safe_load(text))
    assert (section.kind, section.partition, section.account) == ("slurm", "main", "root")
    assert (section.processes_per_node, section.gpus_per_node, section.cpus_per_process) == (4, 4, 24)
    assert (section.memory, section.time) == ("2000000M", "1-00:00:00")
    assert "# constraint: fast|ib" in text and "4 h100s a node" in text
    debug = ClusterSection.model_validate(
        yaml.safe_load(profile_text(found, choose_partition(found, "debug")))
    )
    assert debug.time == "0-00:10:00"


def test_profile_of_an_unknown_partition() -> None:
    with pytest.raises(InputError, match="main, debug, low, high"):
        choose_partition(site(), "gpu")


@pytest.fixture
def slurm_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """scontrol, sinfo, sbatch and sacctmgr that say what was recorded."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, body in {
        "scontrol": f"case $2 in config) cat {RECORDED}/config.txt;; *) cat {RECORDED}/partition.txt;; esac",
        "sinfo": f"cat {RECORDED}/nodes.txt",
        "sbatch": "exit 1",
        "sacctmgr": 'echo "physics|"; echo "physics|"',
    }.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return programs


def test_command_writes_a_profile_that_configs_can_name(
    slurm_on_path: Path, tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = tmp_path / "site.yaml"
    doctor_slurm(None, None, profile)
    assert "lab, SLURM 22.05.8" in capsys.readouterr().out
    tiny = repository / "configs" / "pretrain" / "tiny.yaml"
    cluster = load_config(tiny, [f"cluster={profile}", "cluster.processes_per_node=4"]).cluster
    assert (cluster.partition, cluster.account) == ("main", "physics")
    with pytest.raises(InputError, match="is there already"):
        doctor_slurm(None, None, profile)


def test_no_slurm_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(typer.Exit) as end:
        doctor_slurm(None, None, None)
    assert end.value.exit_code == 1
    assert "scontrol, sinfo, sbatch not found" in capsys.readouterr().err


def test_a_slurm_that_refuses_is_told_in_its_words(
    slurm_on_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refusal = "slurm_load_ctl_conf error: Invalid authentication credential"
    (slurm_on_path / "scontrol").write_text(f"#!/bin/bash\necho '{refusal}' >&2\nexit 1\n")
    with pytest.raises(typer.Exit) as end:
        doctor_slurm(None, None, None)
    assert end.value.exit_code == 1
    said = capsys.readouterr().err.replace("\n", " ")
    assert "Invalid authentication credential" in said and "clocks" in said
