"""The engine: a model under its layout and ZeRO, one call a step. It owns every divisor.

The loss of a step is the sum over all counted tokens of the global batch divided by their number, and so
is its gradient, under every layout.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from llmscale.config.schema import Config
from llmscale.data.batch import Batch
from llmscale.engine import state
from llmscale.engine.clip import clip_gradients
from llmscale.engine.fingerprint import Fingerprint, take_fingerprint
from llmscale.engine.optimizer import build_optimizer, learning_rate, parameter_groups
from llmscale.engine.schedule import ScheduledChunk, run_schedule
from llmscale.engine.zero import deepspeed_engine
from llmscale.model.build import build_model
from llmscale.model.language_model import LanguageModel
from llmscale.model.parameters import declare_parameters
from llmscale.model.regions import Piece
from llmscale.objectives.objective import Objective
from llmscale.parallel.world import World


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step was, the same on every rank."""

    loss: float
    """Mean over the counted tokens of the global batch."""
    tokens: int
    """Tokens in the global batch that counted."""
    grad_norm: float
    """Norm of the whole model's gradient before clipping; not finite where the step was skipped."""
    lr: float


@dataclass(frozen=True)
class Evaluation:
    """Loss over a set of batches, the same on every rank."""

    loss: float
    tokens: int


class Engine:
    """A model that can be trained, evaluated, saved and loaded; every method is collective.

    Args:
        config: model, training, optimizer and ZeRO sections are read.
        world: the layout to train under; made active by each method.
        vocabulary_size: true number of tokens.
        objective: what is minimised.
    """

    def __init__(self, config: Config, world: World, vocabulary_size: int, objective: Objective) -> None:
        self.config = config
        self.world = world
        self.objective = objective
        self.vocabulary_size = vocabulary_size
        with world.active():
            self.chunks = build_model(config.model, config.train, vocabulary_size, world)
            self.module = torch.nn.ModuleList(self.chunks) if len(self.chunks) > 1 else self.chunks[0]
            prefixes = [f"{i}." for i in range(len(self.chunks))] if len(self.chunks) > 1 else [""]
            self.declarations = {
                prefix + name: declaration
                for prefix, chunk in zip(prefixes, self.chunks)
                for name, declaration in declare_parameters(chunk).items()
            }
            self.parameters = dict(self.module.named_parameters())
            self._mark_for_gradient_norm()
            groups = parameter_groups(self.parameters, self.declarations, config.optimizer.weight_decay)
            self.deepspeed = deepspeed_engine(
                self.module, build_optimizer(config.optimizer, groups), config, world
            )
            self.scheduled = self._scheduled_chunks()
        self.steps_done = 0

    def _mark_for_gradient_norm(self) -> None:
        """Tell DeepSpeed which gradients several ranks hold, so that the norm counts each once."""
        for name, parameter in self.parameters.items():
            declaration = self.declarations[name]
            parameter.tensor_model_parallel = not declaration.tensor_replicated  # pyright: ignore[reportAttributeAccessIssue]
            if declaration.pipeline_replica:
                parameter.ds_pipe_replicated = True  # pyright: ignore[reportAttributeAccessIssue]

    def _scheduled_chunks(self) -> list[ScheduledChunk]:
        # ZeRO acts on the engine's forward, of one chunk; several mean ZeRO-1, which does not need it.
        if len(self.chunks) > 1 or not self.config.has_partitions:
            return [ScheduledChunk(chunk, chunk) for chunk in self.chunks]
        return [ScheduledChunk(self.chunks[0], self.deepspeed)]

    def step(self, microbatches: Sequence[Batch]) -> StepResult:
        """Forward, backward and update over this rank's microbatches of one global batch."""
        step = self.steps_done + 1
        lr = learning_rate(self.config.optimizer, self.config.train.steps, step)
        with self.world.active():
            self.deepspeed.train()
            self._set_learning_rate(lr)
            loss_sum, tokens = self._forward_backward(microbatches, step, forward_only=False)
            self._sum_tied_gradients()
            grad_norm = self._update()
        self.steps_done = step
        return StepResult(loss_sum / tokens, int(tokens), float(grad_norm), lr)

    def _update(self) -> float:
        """Clip and step the optimizer, unless the gradient is not finite; its norm before."""
        if self.config.has_partitions:
            self.deepspeed.step()
            return self.deepspeed.get_global_grad_norm()
        norm = clip_gradients(self.parameters, self.declarations, self.world, self.config.optimizer.clip)
        if math.isfinite(norm):
            self.deepspeed.step()
        else:
            self.deepspeed.zero_grad()
        return norm

    @torch.no_grad()
    def evaluate(self, microbatches: Sequence[Batch]) -> Evaluation:
        """Mean loss of one global batch, dropout off."""
        with self.world.active():
            self.deepspeed.eval()
            loss_sum, tokens = self._forward_backward(microbatches, self.steps_done, forward_only=True)
        return Evaluation(loss_sum / max(tokens, 1), int(tokens))

    def fingerprint(self) -> Fingerprint | None:
        """What the model says to one fixed batch; None where that is not finite. Changes nothing."""
        length = self.config.train.sequence_length
        return take_fingerprint(self.scheduled, self.world, self.objective, self.vocabulary_size, length)

    def _forward_backward(
        self, microbatches: Sequence[Batch], step: int, forward_only: bool
    ) -> tuple[float, float]:
        """Sum of the loss, and count, over the global batch."""
        batches = [_to_device(batch, self.world.device) for batch in microbatches]
        tokens = self._global_sum([self.objective.count(batch) for batch in batches], self.world.data_group)
        # DeepSpeed takes the mean of the gradients over the data-parallel ranks; what is wanted is their sum.
        scale = self.world.data_group.size() / max(tokens, 1.0)

        def loss_function(chunk: LanguageModel, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
            loss_sum = self.objective.loss_sum(chunk, output, batch)
            return loss_sum * scale, loss_sum.detach()

        reports = run_schedule(
            self.scheduled,
            self.world,
            batches,
            loss_function,
            forward_only,
            before_microbatch=lambda number: self.world.seed(self.config.train.seed, "step", step, number),
        )
        own = self.world.is_last_stage and self.world.coordinates.tensor == 0
        loss_sum = self._global_sum([float(report) for report in reports] if own else [], None)
        return loss_sum, tokens

    def _global_sum(self, values: list[float], group: torch.distributed.ProcessGroup | None) -> float:
        total = torch.tensor(sum(values), dtype=torch.float64, device=self.world.device)
        torch.distributed.all_reduce(total, group=group)
        return float(total)

    def _set_learning_rate(self, lr: float) -> None:
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = lr

    def _sum_tied_gradients(self) -> None:
        """Tied embeddings on the first and the last stage: each copy gets the sum of both gradients."""
        group = self.world.embedding_group
        for name, parameter in self.parameters.items():
            if self.declarations[name].tied and group is not None:
                gradient = parameter.grad if parameter.grad is not None else parameter._hp_grad  # pyright: ignore[reportAttributeAccessIssue]
                torch.distributed.all_reduce(gradient, group=group)

    def pieces_to_save(self) -> list[Piece]:
        """Views of all that this rank writes: over the ranks every element stands once."""
        return self._pieces(
            [n for n, d in self.declarations.items() if d.is_written_by(self.world.coordinates.tensor)]
        )

    def pieces_to_load(self) -> list[Piece]:
        """Views of all that this rank holds, replicas included, to be filled in place."""
        return self._pieces(list(self.declarations))

    def weight_pieces(self) -> list[Piece]:
        """Those of `pieces_to_load` that are weights, for a run that begins from another one's."""
        return [piece for piece in self.pieces_to_load() if not piece.name.startswith(state.OPTIMIZER_PREFIX)]

    def _pieces(self, names: list[str]) -> list[Piece]:
        state.create_optimizer_state(self.deepspeed)
        return [
            piece
            for name in names
            for piece in state.parameter_pieces(
                self.deepspeed, self.parameters[name], self.declarations[name]
            )
        ]

    def counters(self) -> dict[str, int]:
        """Small numbers that belong to the pieces."""
        return {"step": self.steps_done, "optimizer_steps": state.optimizer_steps(self.deepspeed)}

    def after_load(self, counters: Mapping[str, Any]) -> None:
        """Take over what was filled into the pieces; `counters` as they were when those were saved."""
        with self.world.active():
            self.steps_done = counters["step"]
            state.set_optimizer_steps(self.deepspeed, counters["optimizer_steps"])
            state.publish_masters(self.deepspeed)

    def close(self) -> None:
        """Take DeepSpeed's hooks out of the model, which keep both in memory. The World stays."""
        with self.world.active():
            self.deepspeed.destroy()


def _to_device(batch: Batch, device: torch.device) -> Batch:
    return Batch(
        tokens_BS=batch.tokens_BS.to(device, non_blocking=True),
        labels_BS=batch.labels_BS.to(device, non_blocking=True),
        loss_mask_BS=batch.loss_mask_BS.to(device, non_blocking=True),
        position_ids_BS=batch.position_ids_BS.to(device, non_blocking=True),
    )
