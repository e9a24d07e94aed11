"""A first cluster profile for a SLURM site, with what was found as comments beside it."""

from collections.abc import Iterator

import yaml

from llmscale.config.cluster import ClusterSection
from llmscale.config.problems import InputError, Problem
from llmscale_launcher.slurm_site import Node, Partition, Site

LONGEST_MINUTES = 1440.0
"""A day: longer jobs wait long for a place, and requeues make up for it."""


def choose_partition(site: Site, name: str | None) -> Partition:
    """The one that is named, else the default one, else the one with the most nodes.

    Raises:
        InputError: there is none, or none of that name, or it has no nodes.
    """
    partitions = [partition for partition in site.partitions if partition.nodes]
    known = ", ".join(partition.name for partition in partitions) or "none"
    if name is not None:
        partitions = [partition for partition in partitions if partition.name == name]
    if not partitions:
        raise InputError([Problem("--partition", name, f"partitions with nodes are: {known}")])
    return max(partitions, key=lambda partition: (partition.is_default, len(partition.nodes)))


def profile_text(site: Site, partition: Partition) -> str:
    """YAML with comments; every field stands for what all nodes of the partition have."""
    node = partition.smallest
    assert node is not None
    lines = [
        f"# {site.name}: first profile for partition {partition.name}, by `llmscale doctor --cluster slurm`.",
        "# A config takes it with `cluster: FILE`, or by its name once it lies in configs/cluster/.",
        "kind: slurm",
        *_fields(site, partition, node),
        "# Lines of shell for every job, before anything starts: modules, proxies, scratch folders.",
        "setup: []",
        "# Variables for every job, such as NCCL_IB_HCA. `interface: ib0` names the network between nodes.",
        "environment: {}",
    ]
    text = "\n".join(lines) + "\n"
    ClusterSection.model_validate(yaml.safe_load(text))
    return text


def _fields(site: Site, partition: Partition, node: Node) -> Iterator[str]:
    yield _field("partition", partition.name, f"{len(partition.nodes)} nodes")
    if len(site.accounts) == 1:
        yield _field("account", site.accounts[0], "the only one that you may charge")
    elif site.accounts:
        yield f"# account: one of {', '.join(site.accounts)}"
    processes = node.gpus or max(1, node.cpus // 2)
    kind = f"{node.gpu_type or 'GPU'}s" if node.gpus else "CPUs"
    yield _field("processes_per_node", processes, f"{node.gpus or node.cpus} {kind} a node")
    if node.gpus:
        yield _field("gpus_per_node", node.gpus, None)
    yield _field("cpus_per_process", max(1, node.cpus // processes), f"{node.cpus} CPUs a node")
    if "MEMORY" in site.settings.get("SelectTypeParameters", ""):
        yield _field("memory", f"{node.memory}M", "all that SLURM has to give on a node")
    limit = partition.max_minutes
    minutes = LONGEST_MINUTES if limit is None else min(limit, LONGEST_MINUTES)
    allowed = partition.settings.get("MaxTime", "UNLIMITED")
    yield _field("time", _clock(minutes), f"the partition allows {allowed}")
    yield _field("signal_seconds", 120, "before the time limit; make it the time that two saves take")
    yield _field("requeue", True, "after preemption, the time limit or a lost node")
    yield _field("exclude_bad_nodes", True, "that the preflight names")
    features = sorted({feature for each in partition.nodes for feature in each.features})
    if features:
        yield f"# constraint: {'|'.join(features)}"


def _field(name: str, value: object, comment: str | None) -> str:
    text = yaml.safe_dump({name: value}).strip()
    return f"{text}  # {comment}" if comment else text


def _clock(minutes: float) -> str:
    days, rest = divmod(int(minutes), 1440)
    return f"{days}-{rest // 60:02}:{rest % 60:02}:00"
