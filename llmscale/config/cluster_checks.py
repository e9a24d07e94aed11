"""Rules over the keys of the `cluster` section, and of the section with the rest of the config.

Names that end up in `#SBATCH` lines are held to what schedulers use in names, so that nothing in a config
can add lines of its own to a batch script. Lines of shell are taken from `cluster.setup` alone.
"""

import re
from collections.abc import Iterator

from llmscale.config.problems import Problem
from llmscale.config.schema import Config

SLURM_ONLY = (
    "partition",
    "account",
    "qos",
    "time",
    "memory",
    "constraint",
    "exclude",
    "exclusive",
    "options",
)

NAMES = re.compile(r"[A-Za-z0-9_.,:/+-]+")
"""Partitions, accounts, qualities of service."""
FEATURES = re.compile(r"[A-Za-z0-9_.,:/+&|!*()\[\]-]+")
NODES = re.compile(r"[A-Za-z0-9_.,\[\]-]+")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
OPTION = re.compile(r"--[a-z][a-z0-9-]*(=.*)?|-[A-Za-z]( ?.*)?")
MOUNT = re.compile(r"/[^,:\s]*:/[^,:\s]*(:[a-z+]+)?")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")

OWN_OPTIONS = {
    **dict.fromkeys(("--array", "-a"), "sweep and cluster.max_parallel"),
    **dict.fromkeys(("--dependency", "-d", "--kill-on-invalid-dep"), "a pipeline's stages"),
    **dict.fromkeys(("--output", "-o", "--error", "-e", "--open-mode"), "the run folder"),
    **dict.fromkeys(("--job-name", "-J"), "run.name"),
    **dict.fromkeys(("--chdir", "-D"), "the folder that submits"),
    **dict.fromkeys(("--nodes", "-N", "--ntasks", "-n", "--ntasks-per-node"), "cluster.nodes"),
    **dict.fromkeys(("--cpus-per-task", "-c"), "cluster.cpus_per_process"),
    **dict.fromkeys(("--gpus-per-node", "--gpus", "-G"), "cluster.gpus_per_node"),
    **dict.fromkeys(("--requeue", "--no-requeue"), "cluster.requeue"),
    **dict.fromkeys(("--no-kill", "-k"), "cluster.elastic"),
    **dict.fromkeys(("--partition", "-p"), "cluster.partition"),
    **dict.fromkeys(("--account", "-A"), "cluster.account"),
    **dict.fromkeys(("--qos", "-q"), "cluster.qos"),
    **dict.fromkeys(("--time", "-t"), "cluster.time"),
    **dict.fromkeys(("--constraint", "-C"), "cluster.constraint"),
    **dict.fromkeys(("--exclude", "-x"), "cluster.exclude"),
    "--mem": "cluster.memory",
    "--exclusive": "cluster.exclusive",
    "--signal": "cluster.signal_seconds",
    "--wrap": "the template",
    "--parsable": "the template",
}
"""Options of sbatch that follow from the config, and from what."""


def names_are_names(config: Config) -> Iterator[Problem]:
    cluster = config.cluster
    for key, value, pattern in (
        ("partition", cluster.partition, NAMES),
        ("account", cluster.account, NAMES),
        ("qos", cluster.qos, NAMES),
        ("constraint", cluster.constraint, FEATURES),
        ("interface", cluster.interface, NAMES),
        *((f"exclude.{place}", node, NODES) for place, node in enumerate(cluster.exclude)),
    ):
        if value is not None and not pattern.fullmatch(value):
            yield Problem(f"cluster.{key}", repr(value), "is no name that SLURM takes: no blanks, no quotes")
    if cluster.python is not None and (not cluster.python or CONTROL.search(cluster.python)):
        yield Problem("cluster.python", repr(cluster.python), "must be the path or name of a program")


def options_are_options(config: Config) -> Iterator[Problem]:
    for place, option in enumerate(config.cluster.options):
        key = f"cluster.options.{place}"
        name = re.split(r"[= ]", option, maxsplit=1)[0]
        if CONTROL.search(option) or not OPTION.fullmatch(option):
            yield Problem(
                key, repr(option), "must be one option of sbatch in one line: `--reservation=friday`"
            )
        elif name in OWN_OPTIONS:
            yield Problem(key, option, f"follows from {OWN_OPTIONS[name]}; set that")


def variables_are_variables(config: Config) -> Iterator[Problem]:
    for name, value in config.cluster.environment.items():
        if not VARIABLE.fullmatch(name):
            message = "is no name of a variable: letters, digits and _, no digit first"
            yield Problem("cluster.environment", repr(name), message)
        if "\x00" in value:
            yield Problem(f"cluster.environment.{name}", repr(value), "holds a zero byte")


def container_is_named(config: Config) -> Iterator[Problem]:
    container = config.cluster.container
    if container is None:
        return
    if not container.image or CONTROL.search(container.image):
        yield Problem("cluster.container.image", repr(container.image), "must name an image")
    for place, mount in enumerate(container.mounts):
        if not MOUNT.fullmatch(mount):
            message = "is written /outside:/inside, whole paths without blanks or commas"
            yield Problem(f"cluster.container.mounts.{place}", repr(mount), message)


def kind_is_said(config: Config) -> Iterator[Problem]:
    """A partition without `kind: slurm` is a forgotten line. With `kind: local`, said aloud, it is a config
    of a cluster that is tried at home, where those keys mean nothing."""
    cluster = config.cluster
    if "kind" in cluster.model_fields_set:
        return
    known = [key for key in SLURM_ONLY if getattr(cluster, key)]
    if known:
        message = f"cluster.{known[0]} is for SLURM: set cluster.kind=slurm, or =local to ignore it"
        yield Problem("cluster.kind", cluster.kind, message)


def a_rank_has_a_gpu(config: Config) -> Iterator[Problem]:
    cluster = config.cluster
    if 0 < cluster.gpus_per_node < cluster.processes_per_node:
        yield Problem(
            "cluster.processes_per_node",
            cluster.processes_per_node,
            f"is more than cluster.gpus_per_node = {cluster.gpus_per_node}; each rank has a GPU of its own",
        )
    if cluster.kind == "slurm" and cluster.backend == "nccl" and not cluster.gpus_per_node:
        yield Problem("cluster.gpus_per_node", 0, "asks for no GPU, and cluster.backend=nccl needs them")


def signal_within_time(config: Config) -> Iterator[Problem]:
    cluster = config.cluster
    if cluster.time is not None and cluster.signal_seconds >= time_limit_seconds(cluster.time):
        message = f"leaves no time to train in cluster.time = {cluster.time}"
        yield Problem("cluster.signal_seconds", cluster.signal_seconds, message)


def bad_nodes_need_a_requeue(config: Config) -> Iterator[Problem]:
    cluster = config.cluster
    if not cluster.exclude_bad_nodes:
        return
    for key, present in (("preflight", cluster.preflight), ("requeue", cluster.requeue)):
        if not present:
            yield Problem("cluster.exclude_bad_nodes", True, f"needs cluster.{key}=true")


def time_limit_seconds(text: str) -> int:
    """A time limit in SLURM's forms: M, M:SS, H:MM:SS, D-H, D-H:MM, D-H:MM:SS."""
    days, dash, clock = text.rpartition("-")
    numbers = [int(part) for part in clock.split(":")]
    if dash:
        units: tuple[int, ...] = (3600, 60, 1)
    else:
        units = (3600, 60, 1) if len(numbers) == 3 else (60, 1)
    return int(days or 0) * 86400 + sum(number * unit for number, unit in zip(numbers, units))


RULES = (
    names_are_names,
    options_are_options,
    variables_are_variables,
    container_is_named,
    kind_is_said,
    a_rank_has_a_gpu,
    signal_within_time,
    bad_nodes_need_a_requeue,
)
