"""What must hold before the first step of preference training: the model is its own reference, and tells two
answers apart. A violation means that what would be learned is not what was meant."""

import math
from collections.abc import Iterator, Mapping, Sequence

from pydantic import JsonValue

from llmscale.config.schema import Config
from llmscale.data.batch import Batch
from llmscale.engine.engine import Engine
from llmscale.objectives.preference.table import first_loss
from llmscale.runtime.final import FinalFailure

TOLERANCES = {"fp64": 1e-6, "fp32": 1e-4, "bf16": 2e-2}
"""How far the first loss may lie from what it must be, relative where that is above 1: an answer's
log-probability is a sum over many tokens, and is not computed in the same order twice."""


class StartFailed(FinalFailure):
    """The first batch shows that training would go wrong; trying again would not help."""


def check_start(engine: Engine, batches: Sequence[Batch]) -> None:
    """Look at the first global batch of `task: dpo` or `reward`, dropout off. Collective.

    Raises:
        StartFailed: says what is wrong, and where to look.
    """
    sums = engine.evaluate(batches)
    found = engine.objective.metrics(sums.others)
    faults = list(start_faults(engine.config, sums.mean_loss, found))
    if faults:
        raise StartFailed("before the first step " + "; ".join(faults))


def start_faults(config: Config, loss: float, metrics: Mapping[str, JsonValue]) -> Iterator[str]:
    """What is wrong with the first batch's loss and metrics; nothing where the start is sound."""
    if not math.isfinite(loss):
        yield f"the loss is {loss}: look at the weights that train.init_from names, and at train.precision"
        return
    told = "score" if config.task == "reward" else "log_probability"
    chosen, rejected = metrics.get(f"chosen_{told}"), metrics.get(f"rejected_{told}")
    if chosen is not None and chosen == rejected:
        yield (
            f"chosen and rejected answers have the same {told.replace('_', '-')}, {chosen}: "
            "look at them with `llmscale data inspect`"
        )
    if config.has_reference and not _is_reference(config, loss, metrics):
        yield (
            f"the {config.dpo.loss} loss is {loss:.6f} and the divergence from the reference "
            f"{metrics.get('kl')} nats, and of a model that is its own reference they are "
            f"{first_loss(config.dpo)} and 0: the reference's log-probabilities are not those of the weights "
            f"that the run starts from{_way_out(config)}"
        )


def _is_reference(config: Config, loss: float, metrics: Mapping[str, JsonValue]) -> bool:
    tolerance, expected = TOLERANCES[config.train.precision], first_loss(config.dpo)
    loss -= config.dpo.sft_weight * _number(metrics.get("sft_loss"))
    if expected is not None and abs(loss - expected) > tolerance * max(1.0, expected):
        return False
    answers = [abs(_number(metrics.get(f"{side}_log_probability"))) for side in ("chosen", "rejected")]
    return abs(_number(metrics.get("kl"))) <= tolerance * max(1.0, *answers)


def _way_out(config: Config) -> str:
    if config.dpo.reference != "precomputed":
        return ""
    kept = config.run_folder / "data" / "reference-*.npz"
    return f"; remove {kept}, and they are computed anew"


def _number(value: JsonValue) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0
