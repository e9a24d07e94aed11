"""Weights that nobody trains, in memory of the host between two uses."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from llmscale.model.language_model import LanguageModel


class Resting:
    """
    Args:
        chunks: with their weights; on a GPU those go to the host at once.
        device: where the weights are while they are used.
    """

    def __init__(self, chunks: Sequence[LanguageModel], device: torch.device) -> None:
        self.device = device
        self._resting = [
            (parameter, _at_host(parameter.data)) for chunk in chunks for parameter in chunk.parameters()
        ]
        self._rest()

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """The weights are on the device inside."""
        for parameter, resting in self._resting:
            parameter.data = resting.to(self.device, non_blocking=True)
        try:
            yield
        finally:
            self._rest()

    def _rest(self) -> None:
        for parameter, resting in self._resting:
            parameter.data = resting


def _at_host(weight: Tensor) -> Tensor:
    return weight.cpu().pin_memory() if weight.is_cuda else weight
