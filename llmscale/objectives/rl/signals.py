"""What is known of each token of an answer when it is learned from: the names in `Batch.signals`.

All stand where the label stands that they are of: at the token before it.
"""

import torch
from torch import Tensor

from llmscale.data.batch import Batch

OLD = "old_log_probabilities"
"""Of the policy that answered, as the trainer computes them. Left out where the only step on a rollout is
made: the policy that learns is still that one, and its own log-probabilities are taken."""
ROLLOUT = "rollout_log_probabilities"
"""The same as the engine that generated computed them."""
REFERENCE = "reference_log_probabilities"
ADVANTAGES = "advantages"
WEIGHTS = "weights"
"""Of the policy's loss at the token. Left out: 1."""
VALUES = "values"
"""What the critic said when the answer was given."""
RETURNS = "returns"
"""What it should have said."""


def signal(batch: Batch, name: str) -> Tensor:
    """[B, S], 0 where nothing is learned, whatever stands there.

    Raises:
        ValueError: tokens are to be learned, and nothing is known of them.
    """
    learned_BS = batch.loss_mask_BS > 0
    if name in batch.signals:
        return torch.where(learned_BS, batch.signals[name], 0.0)
    if bool(learned_BS.any()):
        raise ValueError(f"the batch has no {name.replace('_', ' ')}")
    return torch.zeros_like(batch.loss_mask_BS)
