"""P-tuning (arXiv:2103.10385): virtual tokens as in prompt tuning, made of learned embeddings by a network.

Its three layers are those of the peft library's prompt encoder, whose files hold only what comes out of them.
All of it is on every tensor rank.

Shapes: P virtual tokens, H hidden size, W width of the network.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup

from llmscale.config.tuning import PeftSection
from llmscale.model.initialize import normal_box, uniform_box
from llmscale.model.language_model import LanguageModel
from llmscale.model.peft.declared import whole_declaration
from llmscale.model.peft.prompt_tuning import LOCAL_NAME, put_before_texts, sequence_group, whole_gradient
from llmscale.model.regions import Region

PREFIX = "prompt_encoder."
"""Of the names of its tensors."""


class PromptEncoder(torch.nn.Module):
    """Embeds the placeholders.

    Args:
        group: of ranks each of which embeds a part of the sequence; None where each embeds all of it.
    """

    def __init__(self, tokens: int, width: int, like: Tensor, group: ProcessGroup | None) -> None:
        super().__init__()
        self.group = group
        hidden = like.shape[1]
        options = {"dtype": like.dtype, "device": like.device}
        self.embedding = torch.nn.Embedding(tokens, hidden, **options)
        self.mlp_head = torch.nn.Sequential(
            torch.nn.Linear(hidden, width, **options),
            torch.nn.ReLU(),
            torch.nn.Linear(width, width, **options),
            torch.nn.ReLU(),
            torch.nn.Linear(width, hidden, **options),
        )

    def forward(self, numbers: Tensor) -> Tensor:
        """Embeddings [..., H] of virtual tokens by their numbers [...], from 0."""
        every_P = torch.arange(self.embedding.num_embeddings, device=numbers.device)
        made_PH = self.mlp_head(self.embedding(every_P))
        return F.embedding(numbers, whole_gradient(made_PH, self.group))


def apply(chunks: Sequence[LanguageModel], options: PeftSection, seed: int) -> None:
    """A network for the chunk that has the embedding; drawn as the peft library draws it, but for biases,
    which begin at 0."""
    for chunk in (chunk for chunk in chunks if chunk.pre_process):
        like = chunk.embedding.word_embeddings.weight
        width = options.encoder_hidden_size or chunk.config.hidden_size
        encoder = PromptEncoder(options.virtual_tokens, width, like, sequence_group(chunk))
        put_before_texts(chunk, encoder)
        for key, parameter in encoder.named_parameters():
            local_name = f"{LOCAL_NAME}.{key}"
            declaration = whole_declaration(local_name, PREFIX + key, tuple(parameter.shape))
            chunk.added[local_name] = declaration
            parameter.data.copy_(_initial(seed, key, declaration.regions[0]))


def _initial(seed: int, key: str, region: Region) -> Tensor:
    if key.startswith("embedding"):
        return normal_box(seed, region, 1.0)
    if key.endswith("bias"):
        return torch.zeros(region.shape)
    return uniform_box(seed, region, 1 / math.sqrt(region.shape[1]))


def encoded(tensors: Mapping[str, Tensor]) -> Tensor:
    """What the network makes of its embeddings, [P, H], which is all that the peft library's files hold.

    Args:
        tensors: those of the network, by the names that a checkpoint has for them.
    """
    made_PH = tensors[f"{PREFIX}embedding.weight"]
    for layer in (0, 2, 4):
        name = f"{PREFIX}mlp_head.{layer}"
        made_PH = F.linear(
            made_PH if layer == 0 else F.relu(made_PH), tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        )
    return made_PH
