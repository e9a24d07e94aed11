"""A copy of the actor in a process of its own, as transformers builds it, which writes with transformers'
`generate`. Its weights come by the weight stream.

Shapes: B rows, S tokens, V vocabulary.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria
from transformers.initialization import no_init_weights

from llmscale.config.rlhf_pools import RolloutSection
from llmscale.config.schema import ModelSection
from llmscale.engine.sampling import SamplingOptions, draw, uniform
from llmscale.model.huggingface import hugging_face_config
from llmscale.model.tensors import hugging_face_shapes
from llmscale.rlhf.rollout.buckets import Bucket, SyncFailed, arrived
from llmscale.rlhf.rollout.engine import Request, Written, sampling_options


class TransformersRollout:
    """
    Args:
        model: what the actor is.
        vocabulary_size: true number of tokens.
        positions: longest text.
        dtype: of its weights.
        end_ids: tokens that end an answer.

    Raises:
        InputError: transformers has no such model.
    """

    def __init__(
        self,
        model: ModelSection,
        vocabulary_size: int,
        positions: int,
        dtype: torch.dtype,
        device: torch.device,
        end_ids: frozenset[int],
    ) -> None:
        config = transformers.AutoConfig.for_model(**hugging_face_config(model, vocabulary_size, positions))
        with device, no_init_weights():
            self._model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
            self._model.tie_weights()
        self._shapes = hugging_face_shapes(model, vocabulary_size, positions)
        self._positions, self._device, self._end_ids = positions, device, end_ids
        self._version: int | None = None
        self._is_asleep = False

    @property
    def version(self) -> int | None:
        return self._version

    @torch.no_grad()
    def generate(self, requests: Sequence[Request], options: RolloutSection) -> list[Written]:
        """As `RolloutEngine.generate`.

        Raises:
            RuntimeError: no weights have come yet, or it sleeps. ValueError: a prompt leaves no room.
        """
        if self._version is None or self._is_asleep:
            raise RuntimeError("the rollout engine sleeps" if self._is_asleep else "no weights have come yet")
        sampling = sampling_options(options, self._end_ids)
        order = sorted(range(len(requests)), key=lambda place: len(requests[place].tokens))
        found: dict[int, Written] = {}
        for first in range(0, len(order), options.batch):
            places = order[first : first + options.batch]
            found |= zip(places, self._batch([requests[place] for place in places], sampling))
        return [found[place] for place in range(len(requests))]

    @torch.no_grad()
    def load_weights(self, version: int, buckets: Iterable[Bucket]) -> None:
        """As `RolloutEngine.load_weights`.

        Raises:
            SyncFailed: something is missing, or is not what was sent; the old weights stay in use.
        """
        found = arrived(buckets, self._shapes, version)
        own = self._model.state_dict()
        for name, tensor in found.tensors.items():
            if name not in own or own[name].shape != tensor.shape or own[name].dtype != tensor.dtype:
                raise SyncFailed(f"transformers' model has no {name} of this shape and type")
        for name, tensor in found.tensors.items():
            own[name].copy_(tensor)
        if self._version is None:
            found.check(self._model.state_dict())
        self._version = version

    def sleep(self) -> None:
        """Weights rest in the host's memory; where that is the device, nothing is gained."""
        self._is_asleep = True
        self._model.to("cpu")
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def wake(self) -> None:
        self._model.to(self._device)
        self._is_asleep = False

    def _batch(self, requests: Sequence[Request], sampling: SamplingOptions) -> Iterator[Written]:
        longest = max(len(one.tokens) for one in requests)
        rooms = [min(one.max_new_tokens, self._positions - len(one.tokens)) for one in requests]
        if min(rooms) < 1 or not all(one.tokens for one in requests):
            raise ValueError(f"a prompt is empty, or leaves no room in {self._positions} positions")
        tokens_BS, seen_BS = (
            torch.tensor([[*[0] * (longest - len(one.tokens)), *of(one)] for one in requests])
            for of in (lambda one: one.tokens, lambda one: [1] * len(one.tokens))
        )
        choice = _Choice([one.seed for one in requests], sampling, longest)
        self._model.generate(  # pyright: ignore[reportCallIssue]
            tokens_BS.to(self._device),
            attention_mask=seen_BS.to(self._device),
            do_sample=False,
            max_new_tokens=max(rooms),
            eos_token_id=None,
            pad_token_id=0,
            logits_processor=transformers.LogitsProcessorList([choice]),
            stopping_criteria=transformers.StoppingCriteriaList([_Ends(rooms, self._end_ids, longest)]),
        )
        tokens_BN = torch.stack(choice.tokens, dim=1).tolist()
        log_probabilities_BN = torch.stack(choice.log_probabilities, dim=1).tolist()
        assert self._version is not None
        for tokens, told, room in zip(tokens_BN, log_probabilities_BN, rooms):
            ends = [place for place, token in enumerate(tokens[:room]) if token in self._end_ids]
            stop = ends[0] + 1 if ends else room
            yield Written(tokens[:stop], told[:stop], bool(ends), self._version)


class _Choice(LogitsProcessor):
    """Draws each row's token by its own seed, and leaves transformers no other to take."""

    def __init__(self, seeds: Sequence[int], sampling: SamplingOptions, prompt: int) -> None:
        self._seeds, self._sampling, self._prompt = seeds, sampling, prompt
        self.tokens: list[Tensor] = []
        self.log_probabilities: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        number = input_ids.shape[1] - self._prompt
        drawn = draw(scores, self._sampling, [uniform(seed, number) for seed in self._seeds])
        self.tokens.append(drawn.tokens_B)
        self.log_probabilities.append(drawn.log_probabilities_B)
        only_BV = torch.full_like(scores, -math.inf)
        return only_BV.scatter_(1, drawn.tokens_B[:, None], 0.0)


class _Ends(StoppingCriteria):
    """Rows that have an end token, or no room left."""

    def __init__(self, rooms: Sequence[int], end_ids: frozenset[int], prompt: int) -> None:
        self._rooms, self._end_ids, self._prompt = torch.tensor(rooms), torch.tensor(list(end_ids)), prompt

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        ended_B = torch.isin(input_ids[:, -1], self._end_ids.to(input_ids))
        return ended_B | (input_ids.shape[1] - self._prompt >= self._rooms.to(input_ids.device))
