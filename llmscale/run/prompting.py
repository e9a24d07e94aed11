"""How a model that answers is asked, in the middle of its training."""

from llmscale.config.problems import InputError, Problem
from llmscale.config.schema import Config
from llmscale.data.chat.encode import chat_encoder
from llmscale.train.samples import Prompting


def chat_prompting(config: Config) -> Prompting:
    """A prompt is what a user says, by the template of the run, and the assistant is to answer.

    Raises:
        InputError: tokenizer or template cannot be used.
    """
    path = config.tokenizer.path
    if path is None:
        raise InputError([Problem("tokenizer.path", None, "set it: what a user says must become tokens")])
    encoder = chat_encoder(config, path, config.train.sequence_length)
    return Prompting(
        lambda prompt: encoder.prompt([{"role": "user", "content": prompt}]), frozenset(encoder.stops)
    )
