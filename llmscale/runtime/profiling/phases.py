"""The parts of a step, told by the marks that stand in a trace. No torch.

Three marks are always set, which costs a few microseconds a step while nothing is recorded: STEP and DATA by
the training loop, UPDATE by the engine. Those of each microbatch are Megatron's, and set while a step is
recorded only.
"""

from typing import Literal, get_args

Phase = Literal["data", "forward", "backward", "pipeline", "update", "rest"]
"""data: waiting for batches; pipeline: sending to other stages and waiting for them; update: gradients of
tied weights, clipping, the optimizer, and what ZeRO sends then; rest: what is between these."""

ORDER: tuple[Phase, ...] = get_args(Phase)

STEP, DATA, UPDATE = "step", "data", "update"

_MARKS: dict[str, Phase] = {
    STEP: "rest",
    DATA: "data",
    "forward-backward": "rest",
    "forward-compute": "forward",
    "backward-compute": "backward",
    UPDATE: "update",
}


def phase_of(mark: str) -> Phase | None:
    """What begins with a mark; None for anything else that stands in a trace."""
    if mark.endswith(("-recv", "-send")):
        return "pipeline"
    return _MARKS.get(mark)
