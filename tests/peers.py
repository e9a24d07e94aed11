"""The same models in transformers."""

import torch
import transformers

from llmscale.config.schema import ModelSection
from llmscale.model.huggingface import hugging_face_config


def peer(
    model: ModelSection, vocabulary_size: int, positions: int, device: str = "cpu"
) -> transformers.PreTrainedModel:
    """The model as transformers builds it, with weights of no meaning; on `meta` it needs no memory."""
    config = transformers.AutoConfig.for_model(**hugging_face_config(model, vocabulary_size, positions))
    with torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(config)
