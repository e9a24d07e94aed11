"""A run of reinforcement learning from its start to its end: pools are placed, models opened and restored,
steps made, told and committed."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

from llmscale.config.rlhf_pools import Role
from llmscale.config.rlhf_roles import pools_of
from llmscale.config.schema import Config
from llmscale.control.exit_codes import EXIT_SAVED
from llmscale.data.chat.encode import ChatEncoder, chat_encoder
from llmscale.data.checks import resolved_vocabulary_size
from llmscale.data.prompt_records import Prompt, PromptReader
from llmscale.data.prompts import Prompts, open_prompts
from llmscale.parallel.environment import RankEnvironment
from llmscale.plan.parameters import model_parameters
from llmscale.rlhf.answers import Author, single_answers
from llmscale.rlhf.best_answers import BestAnswers, EachOnce
from llmscale.rlhf.controller import Controller
from llmscale.rlhf.conversations.conversations import Conversations
from llmscale.rlhf.conversations.environments import MultiTurn
from llmscale.rlhf.judging import Decode
from llmscale.rlhf.models import Models
from llmscale.rlhf.rewards.reward import Means, ModelScores
from llmscale.rlhf.rewards.weighted import Rewards
from llmscale.rlhf.state import State
from llmscale.rlhf.workers.dealing import Cost
from llmscale.rlhf.workers.group import Group
from llmscale.rlhf.workers.lost import WorkerLost
from llmscale.rlhf.workers.places import NoPlace
from llmscale.rlhf.workers.recovery import Recovery, tell
from llmscale.run.rlhf_commits import Begun, Commits
from llmscale.run.rlhf_constant import warn_of_constant_answers
from llmscale.run.rlhf_groups import Opened, opened_groups
from llmscale.run.rlhf_records import is_sampled, samples_of, step_record, validation_record
from llmscale.runtime import stop_signal
from llmscale.runtime.events import EventLog
from llmscale.runtime.hooks import Hooks, RunStart, SaveRecord
from llmscale.runtime.standard_hooks import standard_hooks


def drive(config: Config, environment: RankEnvironment) -> int:
    """The whole run; returns 0 when it is complete, 75 when it was asked to stop and has saved, or found no
    place for its pools.

    Raises:
        InputError: the pools do not fit the Ray, or the prompts cannot be read.
    """
    try:
        with ExitStack() as opened:
            models = opened.enter_context(opened_groups(config))
            driver = opened.enter_context(_driver(config, models))
            return 0 if driver.run() else EXIT_SAVED
    except NoPlace as reason:
        print(reason, flush=True)
        return EXIT_SAVED
    except WorkerLost as lost:
        tell(EventLog(config.run_folder), None, lost)
        raise


@contextmanager
def _driver(config: Config, opened: Opened) -> Iterator["Driver"]:
    tokenizer = config.tokenizer.path
    assert tokenizer is not None
    chat = chat_encoder(config, tokenizer, config.train.sequence_length)
    longest = config.train.sequence_length - config.peft.placeholders
    reader = PromptReader(chat, longest - config.rlhf.rollout.max_new_tokens, config.rlhf.prompts == "text")
    means = Means(_scores_of(opened.groups.get("reward")), config.run_folder / "rewards")
    with Rewards(config.rlhf.rewards, means) as rewards, _author(config, chat) as author:
        yield Driver(config, opened, reader, rewards, chat.said, author)


@contextmanager
def _author(config: Config, chat: ChatEncoder) -> Iterator[Author]:
    """How answers come about: alone, or in conversations with an environment."""
    section = config.rlhf.environment
    if section is None:
        yield single_answers
        return
    longest = config.train.sequence_length - config.peft.placeholders
    with closing(MultiTurn(section, chat, longest)) as game:
        yield Conversations(section, game, longest)


def _scores_of(group: Group | None) -> ModelScores | None:
    """What the reward model gives to whole texts."""
    if group is None:
        return None

    def scores(texts: Sequence[Sequence[int]]) -> Sequence[float]:
        costs = [Cost(len(text)) for text in texts]
        return group.submit("scores", list(texts), costs=costs).results()

    return scores


@dataclass
class Driver:
    """Steps until the end, or until a signal asks to stop."""

    config: Config
    opened: Opened
    reader: PromptReader
    rewards: Rewards
    decode: Decode
    author: Author

    @property
    def groups(self) -> Mapping[Role, Group]:
        return self.opened.groups

    def run(self) -> bool:
        """Returns whether the run is complete (False: a signal came, and the state is saved)."""
        config = self.config
        commits = Commits(config, self.groups)
        begun = commits.load()
        state, prompts = begun.state, self._prompts()
        hooks = standard_hooks(config, config.run_folder, 0)
        self.opened.pulse.listener = hooks.on_waiting
        controller = self._controller(prompts, begun, hooks)
        recovery = Recovery(
            self.opened.pools,
            EventLog(config.run_folder),
            hooks,
            config.cluster.max_restarts,
            controller.forget_writers,
        )
        best = None if config.rlhf.learns else BestAnswers(config.run_folder, state.prompts)
        last_step = self._last_step(prompts)
        hooks.on_start(self._start(state, last_step))
        held_out = self._held_out()
        if held_out and not state.step:
            self._validate(controller, recovery, held_out, hooks)
        saved = state.step
        while state.step < last_step and not stop_signal.requested():
            began = time.perf_counter()
            outcome = controller.learn(recovery.repeated(state.step, controller.gather))
            recovery.step_done()
            if state.step == 1:
                warn_of_constant_answers(config.rlhf, outcome, EventLog(config.run_folder))
            if best is not None:
                best.append(outcome.prompts, outcome.experiences, outcome.texts)
            hooks.on_step(step_record(state, outcome, time.perf_counter() - began))
            if is_sampled(state.step, last_step):
                hooks.on_samples(state.step, samples_of(outcome))
            if held_out and _is_due(config.train.validate_every, state.step):
                self._validate(controller, recovery, held_out, hooks)
            if _is_due(config.checkpoint.every, state.step):
                saved = self._save(controller, commits, hooks)
        if saved != state.step or not state.step:
            self._save(controller, commits, hooks)
        complete = state.step >= last_step
        hooks.on_end(state.step, not complete)
        return complete

    def _controller(self, prompts: Prompts | EachOnce, begun: Begun, hooks: Hooks) -> Controller:
        models = Models(
            self.groups["actor"],
            self.groups.get("critic"),
            self.groups.get("reference"),
            self.groups.get("rollout"),
        )
        return Controller(
            self.config,
            models,
            prompts,
            self.rewards,
            self.decode,
            begun.state,
            self.author,
            begun.waiting,
            on_part=hooks.on_part,
        )

    def _prompts(self) -> Prompts | EachOnce:
        """Of the training: epoch after epoch, or each once where nothing is learned of them."""
        prompts = open_prompts(self.config, self.reader, "train")
        return prompts if self.config.rlhf.learns else EachOnce(prompts)

    def _last_step(self, prompts: Prompts | EachOnce) -> int:
        last = self.config.train.last_step
        if self.config.rlhf.learns:
            return last
        return min(last, math.ceil(len(prompts) / self.config.rlhf.rollout.prompts))

    def _held_out(self) -> list[Prompt]:
        """Prompts that nothing is learned from."""
        if self.config.train.validate_every is None:
            return []
        prompts = open_prompts(self.config, self.reader, "validation")
        return prompts.at(0, min(len(prompts), self.config.rlhf.validation.prompts))

    def _validate(
        self, controller: Controller, recovery: Recovery, prompts: Sequence[Prompt], hooks: Hooks
    ) -> None:
        began = time.perf_counter()
        hooks.on_phase("validating")
        outcome = recovery.repeated(controller.state.step, lambda: controller.validate(prompts))
        seconds = time.perf_counter() - began
        hooks.on_validation(validation_record(controller.state.step, outcome, seconds))

    def _save(self, controller: Controller, commits: Commits, hooks: Hooks) -> int:
        began = time.perf_counter()
        hooks.on_phase("saving")
        state, waiting = controller.state, controller.waiting()
        path = commits.save(state, waiting)
        hooks.on_save(SaveRecord(state.step, time.perf_counter() - began, str(path)))
        hooks.on_phase("training")
        return state.step

    def _start(self, state: State, last_step: int) -> RunStart:
        config = self.config
        parameters = model_parameters(
            config.model, resolved_vocabulary_size(config), config.train.sequence_length, None
        ).total
        return RunStart(
            step=state.step,
            steps=last_step,
            samples=state.prompts,
            tokens=state.tokens,
            world_size=sum(pool.processes for pool in pools_of(config).values()),
            parameters=parameters,
            facts={"pools": {name: list(pool.roles) for name, pool in pools_of(config).items()}},
        )


def _is_due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0
