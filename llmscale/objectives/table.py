"""Which objective a task has."""

from llmscale.config.schema import Config
from llmscale.objectives.causal_lm import CausalLM
from llmscale.objectives.classify import Classify
from llmscale.objectives.objective import Objective
from llmscale.objectives.prefer import Preference
from llmscale.objectives.prefer_unpaired import UnpairedPreference
from llmscale.objectives.preference.table import LOSSES_OF_PAIRS
from llmscale.objectives.regress import Regress
from llmscale.objectives.reward import ComparedReward, OutcomeReward


def objective_of(config: Config) -> Objective:
    """What a run of `config` minimises; the labels must be known."""
    if config.task == "reward":
        is_compared = config.reward.loss == "bradley_terry"
        return ComparedReward(config.reward) if is_compared else OutcomeReward()
    if config.task == "dpo":
        is_paired = config.dpo.loss in LOSSES_OF_PAIRS
        return Preference(config.dpo) if is_paired else UnpairedPreference(config.dpo)
    if config.task != "classify":
        return CausalLM()
    return Regress() if config.classify.problem == "regression" else Classify(config.classify.labels)
