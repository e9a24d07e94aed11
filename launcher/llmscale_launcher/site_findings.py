"""What a SLURM's configuration means for runs: good to know, or a risk with the way out."""

from collections.abc import Iterator
from dataclasses import dataclass

from llmscale.config.schema import Config
from llmscale_launcher.slurm_site import Partition, Site, minutes_of

SHORT_KILL_WAIT = 30
SHORT_MEMORY_OF_JOBS = 60
CREDENTIAL_SECONDS = 120
"""What MUNGE's credentials live where AuthInfo names no other time."""


@dataclass(frozen=True)
class Finding:
    good: bool
    """False: something to change, or to know before a run is left alone."""
    name: str
    text: str


def findings(site: Site) -> Iterator[Finding]:
    """What is told of the cluster as a whole, then of each partition."""
    yield Finding(True, "cluster", f"{site.name}, SLURM {site.version}")
    yield from (Finding(False, "asked in vain", problem) for problem in site.problems)
    yield from _requeue(site)
    yield from _ends(site)
    yield from _processes(site)
    yield from _limits(site)
    for partition in site.partitions:
        yield from _partition(partition, site)


def _requeue(site: Site) -> Iterator[Finding]:
    if site.settings.get("JobRequeue") == "0":
        text = "0: jobs ask for requeueing themselves (cluster.requeue), but some sites forbid even that"
        yield Finding(False, "JobRequeue", text)
    else:
        yield Finding(True, "JobRequeue", "1: a job whose node dies goes back into the queue")
    expire = next((word[12:] for word in site.words("AuthInfo") if word.startswith("cred_expire=")), None)
    seconds = int(expire) if expire and expire.isdigit() else CREDENTIAL_SECONDS
    yield Finding(True, "after a requeue", f"a job rests for {seconds + 1} s before it can start again")
    silence = site.seconds("SlurmdTimeout")
    if silence is not None:
        text = f"SLURM misses a dead node after {silence} s, agents after cluster.node_lost_seconds"
        yield Finding(True, "SlurmdTimeout", text)


def _ends(site: Site) -> Iterator[Finding]:
    """How much time there is to save."""
    wait = site.seconds("KillWait") or 0
    if wait < SHORT_KILL_WAIT:
        text = f"{wait} s between TERM and KILL: too short to save in; keep cluster.signal_seconds high"
        yield Finding(False, "KillWait", text)
    else:
        yield Finding(True, "KillWait", f"{wait} s between TERM and KILL")
    if site.settings.get("PreemptType", "preempt/none") == "preempt/none":
        yield Finding(True, "preemption", "off")
        return
    early = "preempt_send_user_signal" in site.words("SlurmctldParameters")
    how = "the job's own signal comes first" if early else "TERM comes at once"
    yield Finding(True, "preemption", f"{site.settings['PreemptType']}, {how}")


def _processes(site: Site) -> Iterator[Finding]:
    tracking = site.settings.get("ProctrackType", "")
    if tracking == "proctrack/cgroup":
        yield Finding(True, "ProctrackType", "cgroup: nothing of a job outlives it")
    else:
        text = f"{tracking}: a process that leaves its group can outlive its job; proctrack/cgroup cannot"
        yield Finding(False, "ProctrackType", text)
    if "task/cgroup" not in site.settings.get("TaskPlugin", ""):
        plugin = site.settings.get("TaskPlugin")
        text = f"{plugin}: cores, memory and GPUs of a job are not fenced off from others"
        yield Finding(False, "TaskPlugin", text)
    if {"ALL", "MEMLOCK"} & set(site.words("PropagateResourceLimits")):
        text = "limits of the login node go with the job: InfiniBand wants `ulimit -l unlimited` there"
        yield Finding(True, "PropagateResourceLimits", text)
    if plugins := site.words("JobSubmitPlugins"):
        text = f"{', '.join(plugins)}: the site may change or refuse what a job asks for"
        yield Finding(True, "JobSubmitPlugins", text)


def _limits(site: Site) -> Iterator[Finding]:
    selection = site.settings.get("SelectType", "")
    shares = "cons" in selection
    text = "jobs share nodes" if shares else "a job gets whole nodes"
    yield Finding(True, "SelectType", f"{selection}: {text}")
    if size := site.settings.get("MaxArraySize"):
        yield Finding(True, "MaxArraySize", f"sweeps of up to {int(size) - 1} runs")
    age = site.seconds("MinJobAge")
    if age is not None and age < SHORT_MEMORY_OF_JOBS:
        text = f"{age} s: squeue forgets jobs soon, so how one ended is told by the run's events alone"
        yield Finding(False, "MinJobAge", text)
    if site.settings.get("EnforcePartLimits") == "NO":
        text = "NO: a job that asks for more than its partition gives is taken, and waits for ever"
        yield Finding(False, "EnforcePartLimits", text)
    if {"associations", "limits", "qos"} & set(site.words("AccountingStorageEnforce")):
        known = ", ".join(site.accounts) or "none that this user may charge"
        yield Finding(bool(site.accounts), "accounts", f"{known} (cluster.account)")


def _partition(partition: Partition, site: Site) -> Iterator[Finding]:
    name, node = f"partition {partition.name}", partition.smallest
    state = partition.settings.get("State")
    if node is None or state != "UP":
        yield Finding(False, name, f"state {state}, {len(partition.nodes)} nodes")
        return
    usable = sum(node.is_usable for node in partition.nodes)
    gpus = f", {node.gpus} × {node.gpu_type or 'GPU'}" if node.gpus else ""
    limit = partition.settings.get("MaxTime", "UNLIMITED")
    default = ", the default" if partition.is_default else ""
    text = (
        f"{usable} of {len(partition.nodes)} nodes usable, {node.cpus} CPUs, {node.memory} MiB{gpus}, "
        f"time limit {limit}{default}"
    )
    yield Finding(usable > 0, name, text)
    if len({(each.gpus, each.cpus, each.memory) for each in partition.nodes}) > 1:
        text = "has nodes of several kinds: cluster.constraint picks one; the smallest is told above"
        yield Finding(False, name, text)
    yield from _preemption(partition, site, name)


def _preemption(partition: Partition, site: Site, name: str) -> Iterator[Finding]:
    """Only what others can push aside."""
    if site.settings.get("PreemptType", "preempt/none") == "preempt/none":
        return
    by_tier = site.settings["PreemptType"] == "preempt/partition_prio"
    if by_tier and partition.tier >= max(other.tier for other in site.partitions):
        return
    mode = partition.settings.get("PreemptMode", site.settings.get("PreemptMode", "OFF"))
    grace = f"{partition.grace_seconds} s (GraceTime) to save"
    if "REQUEUE" in mode:
        good = partition.grace_seconds > 0
        text = f"preempted jobs have {grace}, and go back into the queue"
        if not good:
            text += ": what was not saved is lost, so set checkpoint.every by how much that may be"
        yield Finding(good, name, text)
    elif "CANCEL" in mode:
        text = f"preempted jobs have {grace}, and are cancelled: submit again by hand"
        yield Finding(False, name, text)
    elif "SUSPEND" in mode:
        text = "preempted jobs pause: set cluster.watchdog.restart_after above the longest pause"
        yield Finding(False, name, text)


def config_findings(site: Site, config: Config) -> Iterator[Finding]:
    """What a config asks for and the cluster does not give."""
    cluster = config.cluster
    wanted = cluster.partition.split(",") if cluster.partition else None
    partitions = [
        partition
        for partition in site.partitions
        if (partition.name in wanted if wanted is not None else partition.is_default)
    ]
    if not partitions:
        there = ", ".join(partition.name for partition in site.partitions)
        text = f"there is no such partition, and there is {there}" if wanted else f"name one of {there}"
        yield Finding(False, "cluster.partition", f"{cluster.partition}: {text}")
    for partition in partitions:
        yield from _fits(partition, config)


def _fits(partition: Partition, config: Config) -> Iterator[Finding]:
    cluster, name = config.cluster, f"in {partition.name}"
    asked = minutes_of(cluster.time) if cluster.time else None
    if partition.max_minutes is not None and asked is not None and asked > partition.max_minutes:
        limit = partition.settings["MaxTime"]
        yield Finding(False, "cluster.time", f"{cluster.time} is more than {limit} {name}")
    cpus = (cluster.cpus_per_process or 1) * cluster.processes_per_node
    if cluster.cpus_per_process is None:
        text = f"left out: SLURM gives the {cluster.processes_per_node} processes of a node one CPU together"
        yield Finding(False, "cluster.cpus_per_process", text)
    fitting = [node for node in partition.nodes if node.cpus >= cpus and node.gpus >= cluster.gpus_per_node]
    if len(fitting) < cluster.nodes:
        size = f"{cpus} CPUs and {cluster.gpus_per_node} GPUs"
        text = f"{cluster.nodes} asked for, and {len(fitting)} {name} have {size}"
        yield Finding(False, "cluster.nodes", text)
