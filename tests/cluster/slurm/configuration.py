"""What the daemons of a test cluster read: slurm.conf, cgroup.conf, slurmdbd.conf, /etc/hosts."""

from dataclasses import dataclass
from pathlib import Path

LOGIN = "login"
NETWORK = "10.77.0"
"""Addresses of the login node (.1) and of the nodes (.11, .12, …)."""
SQL_PORT = 26836
FIRST_NODE_PORT = 30000
"""Of slurmd, where all run on one machine."""
PASSWORD = "slurm"
"""Of the accounting database, which listens on the loopback of a network of its own."""


@dataclass(frozen=True)
class ClusterShape:
    """How large a test cluster is, and how quickly it gives up on nodes."""

    nodes: int = 4
    cpus: int = 4
    """A node; more than the machine has will do, nothing is bound to them."""
    memory: int = 4000
    """MB a node, as SLURM counts; nothing enforces it."""
    accounting: bool = True
    """With slurmdbd and its database, for sacct."""
    node_timeout: int = 5
    """Seconds of silence after which a node is given up and its jobs are requeued."""
    machines: bool = True
    """A machine for each node. Without, all slurmd run on the login node, at ports of their own: for clusters
    of a thousand nodes, which nothing happens to."""

    @property
    def names(self) -> list[str]:
        return [f"node{number}" for number in range(1, self.nodes + 1)]


def address(name: str) -> str:
    number = 0 if name == LOGIN else 10
    return f"{NETWORK}.{1 if name == LOGIN else number + int(name.removeprefix('node'))}"


def hosts(shape: ClusterShape) -> str:
    names = (LOGIN, *shape.names) if shape.machines else (LOGIN,)
    lines = [f"{address(name)} {name}" for name in names]
    return "\n".join(["127.0.0.1 localhost", *lines, ""])


def slurm_conf(shape: ClusterShape, folder: Path) -> str:
    """A scheduler that decides at once, notices dead nodes in seconds, and requeues without the usual wait of
    two minutes (cred_expire, five seconds at least)."""
    where = (
        f"NodeName=node[1-{shape.nodes}]"
        if shape.machines
        else f"NodeName=node[1-{shape.nodes}] NodeHostname={LOGIN} NodeAddr={address(LOGIN)} "
        f"Port=[{FIRST_NODE_PORT}-{FIRST_NODE_PORT + shape.nodes - 1}]"
    )
    accounting = (
        "AccountingStorageType=accounting_storage/slurmdbd\n"
        f"AccountingStorageHost={LOGIN}\n"
        "JobAcctGatherType=jobacct_gather/linux\n"
        "JobAcctGatherFrequency=5"
        if shape.accounting
        else "AccountingStorageType=accounting_storage/none\nJobAcctGatherType=jobacct_gather/none"
    )
    return f"""\
ClusterName=test
SlurmctldHost={LOGIN}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.%n.pid
SlurmctldLogFile={folder}/logs/slurmctld.log
SlurmdLogFile={folder}/logs/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
PropagateResourceLimits=NONE
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU={shape.memory // shape.cpus // 2}
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,bf_continue,sched_interval=1,sched_min_interval=0,batch_sched_delay=0
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SlurmdTimeout={shape.node_timeout}
SlurmctldTimeout=10
MessageTimeout={shape.node_timeout}
TCPTimeout=2
KillWait=5
MinJobAge=3600
ReturnToService=2
RebootProgram=/bin/true
JobRequeue=1
{accounting}
{where} CPUs={shape.cpus} Sockets=1 CoresPerSocket={shape.cpus} ThreadsPerCore=1 \
RealMemory={shape.memory} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=low Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


CGROUP_CONF = "CgroupPlugin=cgroup/v1\n"
"""Nothing here uses cgroups, but slurmd loads one of the plugins, and that for v2 wants systemd."""


def slurmdbd_conf(folder: Path) -> str:
    return f"""\
DbdHost={LOGIN}
SlurmUser=root
AuthType=auth/munge
LogFile={folder}/logs/slurmdbd.log
PidFile=/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={SQL_PORT}
StorageUser=slurm
StoragePass={PASSWORD}
StorageLoc=slurm_accounting
CommitDelay=1
"""


DATABASE = f"""\
create database slurm_accounting;
create user 'slurm'@'127.0.0.1' identified by '{PASSWORD}';
create user 'slurm'@'localhost' identified by '{PASSWORD}';
grant all on slurm_accounting.* to 'slurm'@'127.0.0.1';
grant all on slurm_accounting.* to 'slurm'@'localhost';
"""
