"""The `cluster` section: which machines, how many ranks, and what happens when some of them fail."""

from typing import Annotated, Any, Literal, cast

from pydantic import Field, model_validator

from llmscale.config.section import NonNegativeInt, PositiveFloat, PositiveInt, Section

KINDS = ("local", "slurm", "ray")

TIME_PATTERN = r"^(\d+|\d+:\d{2}|\d+:\d{2}:\d{2}|\d+-\d+|\d+-\d+:\d{2}|\d+-\d+:\d{2}:\d{2})$"
"""What SLURM's --time takes: minutes, M:SS, H:MM:SS, D-H, D-H:MM, D-H:MM:SS."""


class ElasticSection(Section):
    """Going on with fewer nodes, which share the same global batches in the same order of samples."""

    @classmethod
    def shorthand(cls) -> str:
        return "min_nodes"

    min_nodes: PositiveInt
    """Fewest nodes to go on with. With fewer the run waits, then asks to be requeued."""


class WatchdogSection(Section):
    """What counts as a hang. A step's usual time is the slowest of the last hundred steps."""

    enabled: bool = True
    name_after: PositiveFloat = 5.0
    """Seconds without a step after which the rank that holds up the others is named, with its stack
    (or four times the usual step, if that is longer)."""
    restart_after: PositiveFloat = 60.0
    """Seconds without a step after which all ranks start again from the last checkpoint (or twenty times the
    usual step, if that is longer)."""
    start_seconds: PositiveFloat = 1800.0
    """How long the way to the first step, a validation or a save may take."""


class ContainerSection(Section):
    """An image that the ranks run in."""

    @classmethod
    def shorthand(cls) -> str:
        return "image"

    image: str
    runtime: Literal["pyxis", "apptainer"] = "pyxis"
    """pyxis: `srun --container-image`; apptainer: `apptainer exec` before the command."""
    mounts: list[str] = []
    """Folders seen inside, `/outside:/inside`."""


class RaySection(Section):
    """Which Ray a run of `cluster.kind=ray` goes to."""

    @classmethod
    def shorthand(cls) -> str:
        return "address"

    address: str | None = None
    """Job server of a Ray that runs already, `http://HOST:8265`. Left out: see `within`."""
    within: Literal["local", "slurm"] = "local"
    """Without an address: a Ray on this machine, or one that is started inside a SLURM allocation."""
    placement: Literal["spread", "pack"] = "spread"
    """spread: every node's agent on a machine of its own; pack: on as few machines as it takes."""
    wait_seconds: PositiveFloat = 600.0
    """How long the machines that a run asks for may take to be free; after that it ends with exit code 2."""
    dashboard_host: str = "127.0.0.1"
    """Address that the dashboard of a Ray of our own listens on."""


class ClusterSection(Section):
    """Machines. `cluster: slurm` sets the kind, `cluster: NAME` takes the profile of that name."""

    kind: Literal["local", "slurm", "ray"] = "local"
    profile: str | None = None
    """File of `configs/cluster/` (or a path) whose fields stand wherever this section says nothing."""
    nodes: PositiveInt = 1
    processes_per_node: PositiveInt = 1
    """Ranks a node: one a GPU."""
    gpus_per_node: NonNegativeInt = 0
    device: str | None = None
    """What each rank runs on, `H100`, `A100`, `cpu`: whether the model fits is checked before submitting.
    Left out: not checked."""
    cpus_per_process: PositiveInt | None = None
    """CPU cores to ask for a rank. Left out: what the scheduler gives."""
    partition: str | None = None
    """SLURM partition; several with commas."""
    account: str | None = None
    qos: str | None = None
    time: Annotated[str, Field(pattern=TIME_PATTERN)] | None = None
    """Time limit as SLURM writes it, `H:MM:SS` or `D-HH:MM:SS`; a bare number is minutes."""
    memory: Annotated[str, Field(pattern=r"^\d+[KMGT]?$")] | None = None
    """Memory a node, `64G`."""
    constraint: str | None = None
    """Features that the nodes must have."""
    exclude: list[str] = []
    """Nodes to stay away from."""
    exclusive: bool = False
    """No other job on the nodes."""
    options: list[str] = []
    """Further lines for sbatch, as they are: `--reservation=friday`."""
    environment: dict[str, str] = {}
    """Variables for the job."""
    setup: list[str] = []
    """Lines of shell before anything starts on the first node: `module load cuda/12.8`."""
    python: str | None = None
    """Interpreter on the nodes. Left out: the one that submits; in a container `python3`."""
    container: ContainerSection | None = None
    max_parallel: PositiveInt | None = None
    """Runs of a sweep at the same time. Left out: one for `local`, as many as find room for the others."""
    requeue: bool = True
    """Go back into the queue after preemption, the time limit or a lost node."""
    max_requeues: NonNegativeInt = 100
    """Requeues in all; three in a row without a new checkpoint end the run in any case, with exit code 3."""
    signal_seconds: PositiveInt = 120
    """Seconds before the time limit at which the run is asked to save and leave."""
    preflight: bool = True
    """Look at every node before training: connections, shared folder, clock, disk, devices, versions."""
    exclude_bad_nodes: bool = False
    """Where the preflight names a bad node: requeue without it, instead of ending."""
    max_restarts: NonNegativeInt = 2
    """Restarts without a new checkpoint in between before the run is given up with exit code 3: two restarts
    are three tries."""
    join_seconds: PositiveFloat = 600.0
    """How long the first nodes that are there wait for the others."""
    node_lost_seconds: PositiveFloat = 10.0
    """A node that is not heard of for this long is lost. Its ranks end by themselves before that."""
    elastic: ElasticSection | None = None
    watchdog: WatchdogSection = WatchdogSection()
    ray: RaySection = RaySection()
    interface: str | None = None
    """Network interface between the nodes, `ib0`. Left out: the one that leads to the first node."""
    backend: Literal["auto", "gloo", "nccl"] = "auto"
    """Collectives. auto: nccl where there is a CUDA device, gloo else."""
    threads: PositiveInt | None = None
    """CPU threads a rank. Left out: the machine's cores divided by the ranks on it."""
    numa_binding: bool = True
    """On machines of several NUMA nodes keep each rank on the cores of one: that of its GPU, or, where the
    ranks can be dealt to the nodes evenly, of its share."""

    @classmethod
    def shorthand(cls) -> str:
        return "kind"

    @classmethod
    def expand(cls, value: Any) -> Any:
        """`slurm` is a kind; any other word names a profile."""
        if not isinstance(value, str):
            return value
        return {"kind" if value in KINDS else "profile": value}

    @model_validator(mode="before")
    @classmethod
    def _minutes(cls, value: Any) -> Any:
        """YAML reads `time: 90` as a number."""
        if not isinstance(value, dict):
            return value
        fields = cast(dict[str, Any], value)
        return {**fields, "time": str(fields["time"])} if isinstance(fields.get("time"), int) else fields
