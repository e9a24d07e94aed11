"""The actor writes its answers itself: with its own weights, under its own layout."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from llmscale.config.rlhf_pools import RolloutSection
from llmscale.engine.engine import Engine
from llmscale.engine.generate import Generator
from llmscale.rlhf.rollout.buckets import Bucket, SyncFailed
from llmscale.rlhf.rollout.engine import Request, Written, sampling_options


class NativeRollout:
    """
    Args:
        engine: of the actor; its layout is without sequence parallelism.
        end_ids: tokens that end an answer.
    """

    def __init__(self, engine: Engine, end_ids: frozenset[int]) -> None:
        self._engine, self._end_ids = engine, end_ids
        self._before = [-1 - place for place in range(engine.config.peft.placeholders)]

    @property
    def version(self) -> int:
        return self._engine.steps_done

    def generate(self, requests: Sequence[Request], options: RolloutSection) -> list[Written]:
        """As `RolloutEngine.generate`. Collective over all replicas: ZeRO-3 gathers the weights once, for all
        answers, so that none of them waits for another replica."""
        behind = [replace(one, tokens=[*self._before, *one.tokens]) for one in requests]
        sampling = sampling_options(options, self._end_ids)
        with self._engine.whole_chunks() as chunks:
            generator = Generator(chunks, self._engine.world)
            texts = generator.write(behind, sampling, options.batch) if behind else []
        version = self.version
        return [Written(text.tokens, text.log_probabilities, text.finished, version) for text in texts]

    def load_weights(self, version: int, buckets: Iterable[Bucket]) -> None:
        """
        Raises:
            SyncFailed: always: there is nothing to be filled.
        """
        raise SyncFailed("the native engine writes with the actor's own weights, and takes no others")

    def sleep(self) -> None:
        """Nothing: between two rollouts it holds no memory."""

    def wake(self) -> None:
        """Nothing, as `sleep`."""
