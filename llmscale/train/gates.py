"""What must hold in the first two steps of a run with PEFT: what is frozen stays, what is trained learns."""

import torch
import torch.distributed
from torch import Tensor

from llmscale.engine import state
from llmscale.engine.engine import Engine
from llmscale.model.peft.names import is_trained
from llmscale.model.tensors import SCORE
from llmscale.runtime.final import FinalFailure

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class TuningFailed(FinalFailure):
    """A method trains what it should not, or nothing where it should; trying again would not help."""


class TuningGate:
    """Asked after each of a run's first steps.

    Args:
        engine: before its first step.

    Raises:
        TuningFailed: a weight is trained that the method leaves as it is.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        wrong = wrongly_trained(engine)
        if wrong:
            method = engine.config.peft.method
            raise TuningFailed(f"{wrong[0]} is trained, which {method} leaves as it is")
        self.before = frozen_bits(engine)

    def after_step(self, step: int) -> None:
        """Collective over the ranks that share this one's part of the model.

        Raises:
            TuningFailed: a frozen tensor is not what it was after step 1, or after step 2 (in the first one
                LoRA's A has no gradient yet, since B is 0) there is one without a gradient.
        """
        if step == 1:
            changed = [name for name, bits in frozen_bits(self.engine).items() if bits != self.before[name]]
            if changed:
                raise TuningFailed(f"the first step changed {changed[0]}, which is frozen")
        if step == 2 and self._moments_tell():
            idle = without_gradient(self.engine)
            if idle:
                raise TuningFailed(f"two steps gave no gradient to {idle[0]}, which is to be trained")

    def _moments_tell(self) -> bool:
        """Layers that gradual unfreezing still holds at rest keep an A without gradient; moments on a disk
        are not at hand."""
        config = self.engine.config
        return config.optimizer.unfreeze_every is None and config.zero.offload.optimizer != "nvme"


def wrongly_trained(engine: Engine) -> list[str]:
    """Trained parameters, by stored name, that are not added, not of a head and not what the method names."""
    peft = engine.config.peft
    added = {id(chunk.get_parameter(name)) for chunk in engine.chunks for name in chunk.added}
    wrong: list[str] = []
    for local_name, parameter in engine.parameters.items():
        names = engine.declarations[local_name].names
        if id(parameter) in added or SCORE in names:
            continue
        is_bias = peft.method == "bitfit" and local_name.endswith(".bias")
        is_named = peft.method == "freeze" and any(is_trained(name, peft.train) for name in names)
        if not (is_bias or is_named):
            wrong.append(_stored_name(engine, local_name))
    return wrong


def frozen_bits(engine: Engine) -> dict[str, int]:
    """Of each frozen parameter, by stored name, the sum of its bits on this rank, read as whole numbers;
    under ZeRO-3 of this rank's partition. A hash of what happens to weights, not of what an enemy does."""
    found: dict[str, int] = {}
    for local_name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            here: Tensor = getattr(parameter, "ds_tensor", parameter).detach()
            bits = here.contiguous().view(BITS[here.element_size()]).sum(dtype=torch.int64)
            found[_stored_name(engine, local_name)] = int(bits)
    return found


def without_gradient(engine: Engine) -> list[str]:
    """Trained parameters, by stored name, whose gradients have been 0 on all ranks so far."""
    names = [name for name in engine.parameters if engine.declarations[name].regions]
    had = torch.tensor([_had_gradient(engine, name) for name in names], dtype=torch.int32)
    had = had.to(engine.world.device)
    for group in (engine.world.data_group, engine.world.tensor_group):
        torch.distributed.all_reduce(had, op=torch.distributed.ReduceOp.MAX, group=group)
    return [_stored_name(engine, name) for name, yes in zip(names, had.tolist()) if not yes]


def _had_gradient(engine: Engine, name: str) -> bool:
    """Adam's first moment has seen one, in what this rank owns of the parameter; where none ever came, Adam
    may have no moment."""
    owned = state.owned_range(engine.deepspeed, engine.parameters[name])
    return owned is not None and "exp_avg" in owned.moments and bool(owned.moments["exp_avg"].any())


def _stored_name(engine: Engine, local_name: str) -> str:
    return ", ".join(engine.declarations[local_name].names) or local_name
