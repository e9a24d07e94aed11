"""Which objective a task has."""

from llmscale.config.schema import Config
from llmscale.objectives.causal_lm import CausalLM
from llmscale.objectives.classify import Classify
from llmscale.objectives.objective import Objective
from llmscale.objectives.regress import Regress


def objective_of(config: Config) -> Objective:
    """What a run of `config` minimises; the labels must be known."""
    if config.task != "classify":
        return CausalLM()
    return Regress() if config.classify.problem == "regression" else Classify(config.classify.labels)
