"""The engine: a model under its layout and ZeRO, one call a step. It owns every divisor.

The loss of a step is the sum over all counted tokens of the global batch divided by their number, and so
is its gradient, under every layout.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed
from deepspeed.runtime.zero.partition_parameters import GatheredParameters
from deepspeed.runtime.zero.stage3 import unwrap_model_for_generation
from pydantic import JsonValue
from torch import Tensor
from torch.profiler import record_function

from llmscale.config.schema import Config
from llmscale.data.batch import Batch
from llmscale.engine import state
from llmscale.engine.anchor import anchor
from llmscale.engine.ask import Tell, ask
from llmscale.engine.clip import clip_gradients
from llmscale.engine.fingerprint import Fingerprint, take_fingerprint
from llmscale.engine.learning_rate import learning_rate
from llmscale.engine.optimizer import build_optimizer, parameter_groups
from llmscale.engine.reference import Reference
from llmscale.engine.schedule import LossFunction, ScheduledChunk, run_schedule
from llmscale.engine.unfreezing import distance_from_output, is_graded, learning_rate_scale
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
    """Mean over the terms of the global batch that count."""
    tokens: int
    """Tokens in the global batch that are no padding."""
    grad_norm: float
    """Norm of the whole model's gradient before clipping; not finite where the step was skipped."""
    lr: float
    metrics: Mapping[str, JsonValue] = field(default_factory=dict)
    """The objective's own."""


@dataclass(frozen=True)
class Sums:
    """Over one or several global batches, the same on every rank."""

    loss: float
    count: float
    """Terms of the loss."""
    tokens: int
    """Those that are no padding."""
    others: tuple[float, ...]
    """The objective's own."""

    @property
    def mean_loss(self) -> float:
        return self.loss / max(self.count, 1.0)

    def __add__(self, more: "Sums") -> "Sums":
        others = tuple(a + b for a, b in zip(self.others, more.others))
        return Sums(self.loss + more.loss, self.count + more.count, self.tokens + more.tokens, others)


Prepare = Callable[[Sequence[LanguageModel]], None]
"""Changes a fresh model from outside, before the optimizer is made: weights, heads, PEFT, what is frozen."""


class Engine:
    """A model that can be trained, evaluated, saved and loaded; every method is collective.

    Args:
        config: model, training, optimizer and ZeRO sections are read.
        world: the layout to train under; made active by each method.
        vocabulary_size: true number of tokens.
        objective: what is minimised.
        prepare: called with the fresh model, the world being active.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        vocabulary_size: int,
        objective: Objective,
        prepare: Prepare | None = None,
    ) -> None:
        self.config = config
        self.world = world
        self.objective = objective
        self.vocabulary_size = vocabulary_size
        with world.active():
            self.chunks = build_model(config.model, config.train, vocabulary_size, world, config.outputs)
            if prepare is not None:
                prepare(self.chunks)
            for chunk in self.chunks:
                anchor(chunk)
            self.module = torch.nn.ModuleList(self.chunks) if len(self.chunks) > 1 else self.chunks[0]
            prefixes = [f"{i}." for i in range(len(self.chunks))] if len(self.chunks) > 1 else [""]
            self.declarations = {
                prefix + name: declaration
                for prefix, chunk in zip(prefixes, self.chunks)
                for name, declaration in declare_parameters(chunk).items()
            }
            self.parameters = {
                name: parameter
                for name, parameter in self.module.named_parameters()
                if parameter.requires_grad
            }
            """Those that are trained."""
            self._mark_for_gradient_norm()
            groups = parameter_groups(
                self.parameters, self.declarations, self._distances(prefixes), config.optimizer.weight_decay
            )
            self.deepspeed = deepspeed_engine(
                self.module, build_optimizer(config.optimizer, groups), config, world
            )
            for chunk in self.chunks:
                chunk.has_whole_weights = config.zero.stage < 3
            if config.optimizer.distance_penalty:
                state.remember_start(self.deepspeed)
            self.scheduled = self._scheduled_chunks()
        self.steps_done = 0
        self.reference: Reference | None = None
        """Asked for what the data does not tell of an objective's reference model."""

    def _distances(self, prefixes: Sequence[str]) -> dict[str, int]:
        """Of each parameter from the output, as far as learning rates depend on it; else 0."""
        if not is_graded(self.config.optimizer):
            return dict.fromkeys(self.parameters, 0)
        return {
            prefix + name: distance_from_output(chunk, name)
            for prefix, chunk in zip(prefixes, self.chunks)
            for name, _ in chunk.named_parameters()
        }

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
            self._set_learning_rate(lr, step)
            sums = self._forward_backward(microbatches, step, forward_only=False)
            with record_function("update"):  # as profiles know it: runtime.profiling.phases
                self._sum_tied_gradients()
                grad_norm = self._update()
        self.steps_done = step
        metrics = self.objective.metrics(sums.others)
        return StepResult(sums.mean_loss, sums.tokens, float(grad_norm), lr, metrics)

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
    def evaluate(self, microbatches: Sequence[Batch], objective: Objective | None = None) -> Sums:
        """Loss of one global batch, dropout off; by `objective` where it is another than the engine's."""
        with self.world.active():
            self.deepspeed.eval()
            return self._forward_backward(
                microbatches, self.steps_done, forward_only=True, objective=objective
            )

    def ask(self, microbatches: Sequence[Batch], tell: Tell) -> list[Tensor]:
        """What `tell` makes of the output for each microbatch, on the ranks of the last stage; nothing on
        others. Replicas give as many microbatches each."""
        with self.world.active():
            return ask(
                self.scheduled, self.world, [batch.to(self.world.device) for batch in microbatches], tell
            )

    @contextlib.contextmanager
    def whole_chunks(self) -> Iterator[Sequence[LanguageModel]]:
        """This rank's chunks, for a use that DeepSpeed does not know of. ZeRO-3 gathers all weights for the
        time of it. Collective."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.world.active())
            if self.deepspeed.zero_optimization_stage() == 3:
                stack.enter_context(unwrap_model_for_generation(self.deepspeed))
            yield self.chunks

    @contextlib.contextmanager
    def whole_parameters(self, parameters: Iterable[torch.nn.Parameter]) -> Iterator[None]:
        """Some of this rank's parameters with all their values, which ZeRO-3 puts together for the time of
        it. Collective over the replicas, which name the same ones."""
        if self.deepspeed.zero_optimization_stage() < 3:
            yield
            return
        different = {id(parameter): parameter for parameter in parameters}
        with self.world.active(), GatheredParameters(list(different.values())):
            yield

    def fingerprint(self) -> Fingerprint | None:
        """What the model says to one fixed batch; None where that is not finite. Changes nothing."""
        return take_fingerprint(
            self.scheduled,
            self.world,
            self.objective,
            self.vocabulary_size,
            self.config.train.sequence_length,
            self.config.peft.placeholders,
        )

    def _forward_backward(
        self,
        microbatches: Sequence[Batch],
        step: int,
        forward_only: bool,
        objective: Objective | None = None,
    ) -> Sums:
        """Sums over the global batch."""
        goal = objective or self.objective
        batches = [batch.to(self.world.device) for batch in microbatches]
        if self.reference is not None and goal.has_reference:
            batches = self.reference.told(batches)
        here = [
            sum(goal.count(batch) for batch in batches),
            float(sum(batch.tokens_BS.numel() - batch.padding for batch in batches)),
        ]
        count, tokens = self._global_sums(here, self.world.data_group)
        # DeepSpeed takes the mean of the gradients over the data-parallel ranks; what is wanted is their sum.
        scale = self.world.data_group.size() / max(count, 1.0)

        def loss_function(chunk: LanguageModel, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
            loss_sum, others = goal.loss_and_sums(chunk, output, batch)
            return loss_sum * scale, torch.cat((loss_sum.detach().double()[None], others.double()))

        if goal.ahead_count:
            goal.begin(self._look_ahead(goal, batches, step))
        loss, *others = self._scheduled_sums(batches, loss_function, 1 + goal.sum_count, step, forward_only)
        return Sums(loss, count, int(tokens), tuple(others))

    @torch.no_grad()
    def _look_ahead(self, goal: Objective, batches: list[Batch], step: int) -> list[float]:
        """What the losses of this global batch have to know of the whole of it. Dropout drops the same here
        as afterwards."""

        def ahead(chunk: LanguageModel, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
            sums = goal.ahead(chunk, output, batch).double()
            return sums.sum(), sums

        return self._scheduled_sums(batches, ahead, goal.ahead_count, step, forward_only=True)

    def _scheduled_sums(
        self,
        batches: list[Batch],
        loss_function: LossFunction,
        count: int,
        step: int,
        forward_only: bool,
    ) -> list[float]:
        """The `count` reported numbers, over all microbatches of all ranks."""
        reports = run_schedule(
            self.scheduled,
            self.world,
            batches,
            loss_function,
            forward_only,
            before_microbatch=lambda number: self.world.seed(self.config.train.seed, "step", step, number),
        )
        own = self.world.is_last_stage and self.world.coordinates.tensor == 0
        summed = torch.stack(reports).sum(0).tolist() if own else [0.0] * count
        return self._global_sums(summed, None)

    def _global_sums(self, values: list[float], group: torch.distributed.ProcessGroup | None) -> list[float]:
        total = torch.tensor(values, dtype=torch.float64, device=self.world.device)
        torch.distributed.all_reduce(total, group=group)
        return total.tolist()

    def _set_learning_rate(self, lr: float, step: int) -> None:
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = lr * learning_rate_scale(self.config.optimizer, group["distance"], step)

    def _sum_tied_gradients(self) -> None:
        """Tied embeddings on the first and the last stage: each copy gets the sum of both gradients."""
        group = self.world.embedding_group
        for name, parameter in self.parameters.items():
            if self.declarations[name].tied and group is not None:
                gradient = parameter.grad if parameter.grad is not None else parameter._hp_grad  # pyright: ignore[reportAttributeAccessIssue]
                torch.distributed.all_reduce(gradient, group=group)

    def pieces_to_save(self) -> list[Piece]:
        """Views of all that this rank writes: over the ranks every element stands once."""
        tensor_rank = self.world.coordinates.tensor
        return self._pieces(
            [name for name in self.parameters if self.declarations[name].is_written_by(tensor_rank)]
        )

    def pieces_to_load(self) -> list[Piece]:
        """Views of all that this rank holds, replicas included, to be filled in place."""
        return self._pieces(list(self.parameters))

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
            if self.config.optimizer.distance_penalty and not self.steps_done:
                state.remember_start(self.deepspeed)

    def close(self) -> None:
        """Take DeepSpeed's hooks out of the model, which keep both in memory. The World stays."""
        with self.world.active():
            self.deepspeed.destroy()
