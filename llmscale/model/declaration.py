"""What the rest of llmscale needs to know of one parameter."""

from dataclasses import dataclass, field

from llmscale.model.regions import Region


@dataclass(frozen=True)
class ParameterDeclaration:
    """What the rest of llmscale needs to know of one local parameter.

    `regions` are this rank's boxes; padding rows of the vocabulary are in none of them.
    """

    local_name: str
    shape: tuple[int, ...]
    """Of the local tensor."""
    regions: tuple[Region, ...] = field(repr=False)
    tensor_replicated: bool
    """Every tensor rank holds the same values."""
    pipeline_replica: bool
    """A second copy, on the last stage, of a tensor that the first stage owns (tied embeddings)."""
    tied: bool
    """One of the two copies of a tied tensor on different stages: their gradients are summed."""

    @property
    def names(self) -> list[str]:
        """Hugging Face tensors that it is a part of; none for one that is never stored."""
        return list(dict.fromkeys(region.name for region in self.regions))

    @property
    def decays(self) -> bool:
        """Weight decay applies: matrices and embeddings, no norms and biases."""
        return len(self.shape) > 1

    def is_written_by(self, tensor_rank: int) -> bool:
        """This rank's copy is the one that a checkpoint stores."""
        return not self.pipeline_replica and (tensor_rank == 0 or not self.tensor_replicated)
