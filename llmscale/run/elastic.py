"""The same run on fewer nodes: which numbers of them work."""

from llmscale.config.checks import fits_nodes
from llmscale.config.schema import Config


def usable_nodes(config: Config) -> frozenset[int]:
    """Numbers of nodes that layout and batch size work with, from `elastic.min_nodes` to `cluster.nodes`."""
    cluster = config.cluster
    fewest = cluster.elastic.min_nodes if cluster.elastic else cluster.nodes
    fewer = (nodes for nodes in range(fewest, cluster.nodes) if fits_nodes(config, nodes))
    return frozenset({cluster.nodes, *fewer})


def with_nodes(config: Config, nodes: int) -> Config:
    """The config as it is on another number of nodes: same global batch, same order of samples."""
    if nodes == config.cluster.nodes:
        return config
    cluster = config.cluster.model_copy(update={"nodes": nodes, "elastic": None})
    return config.model_copy(update={"cluster": cluster})
