"""What a model's answers to the held-out sums are worth, asked outside of its run."""

from collections.abc import Sequence
from pathlib import Path

from llmscale.config.load import load_config
from llmscale.data.chat.encode import chat_encoder
from llmscale.data.prompt_records import Prompt, PromptReader
from llmscale.data.prompts import open_prompts
from llmscale.engine.sampling import SamplingOptions
from llmscale.rlhf.rewards.constant import constant_answers
from llmscale.rlhf.rewards.reward import Sample
from llmscale.rlhf.rewards.weighted import Rewards
from llmscale.run.generate import open_writer
from llmscale.run.target import find_target

SEED = 1_000_000
"""Far from those of the runs."""


class HeldOut:
    """
    Args:
        config: of the runs.
    """

    def __init__(self, config: Path) -> None:
        self.config = load_config(config, [])
        assert self.config.tokenizer.path is not None
        self.chat = chat_encoder(self.config, self.config.tokenizer.path, self.config.train.sequence_length)
        reader = PromptReader(self.chat, self.config.train.sequence_length)
        self.prompts: list[Prompt] = list(open_prompts(self.config, reader, "validation"))

    def rewards(self, run: Path, answers: int = 1, temperature: float = 1.0) -> list[list[float]]:
        """Of each prompt, those of `answers` answers of the model that `run` has made."""
        asked = [prompt.tokens for prompt in self.prompts for _ in range(answers)]
        longest = self.config.rlhf.rollout.max_new_tokens
        ends = frozenset(self.chat.stops)
        options = SamplingOptions(longest, temperature, seed=SEED, end_ids=ends)
        with open_writer(find_target(str(run), run.parent)) as writer:
            written = writer.generate(asked, options)
        samples = [
            self._sample(self.prompts[number // answers], tokens) for number, tokens in enumerate(written)
        ]
        with Rewards(self.config.rlhf.rewards) as rewards:
            values = [float(one.value or 0.0) for one in rewards.score(samples)]
        return [values[first : first + answers] for first in range(0, len(values), answers)]

    def best_constant(self) -> float:
        """The mean reward of the best answer that is the same to every prompt: all numbers are tried."""
        samples = [self._sample(prompt, ()) for prompt in self.prompts]
        numbers = [str(number) for number in range(200)]
        with Rewards(self.config.rlhf.rewards) as rewards:
            return constant_answers(rewards.score, samples, constants=numbers)[0].mean

    def _sample(self, prompt: Prompt, written: Sequence[int]) -> Sample:
        finished = bool(written) and written[-1] in self.chat.stops
        tokens = (*prompt.tokens, *written)
        said = self.chat.said(written)
        return Sample(prompt.said, said, tokens, len(prompt.tokens), finished, prompt.record, prompt.fields)
