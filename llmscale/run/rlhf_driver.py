"""A run of reinforcement learning from its start to its end: pools are placed, models opened and restored,
steps made, told and committed."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from llmscale.config.rlhf_pools import Role
from llmscale.config.rlhf_roles import pools_of, role_config
from llmscale.config.schema import Config
from llmscale.control.exit_codes import EXIT_SAVED
from llmscale.data.chat.encode import chat_encoder
from llmscale.data.checks import resolved_vocabulary_size
from llmscale.data.prompts import Prompt, PromptReader, open_prompts
from llmscale.parallel.environment import RankEnvironment
from llmscale.plan.parameters import model_parameters
from llmscale.rlhf.controller import Controller, Models, Outcome, State
from llmscale.rlhf.group import Group
from llmscale.rlhf.places import NoPlace
from llmscale.rlhf.recovery import Recovery
from llmscale.rlhf.rewards.reward import Means, ModelScores
from llmscale.rlhf.rewards.weighted import Rewards
from llmscale.rlhf.transaction import Transaction, commit, kept_steps, manifest_hash, newest
from llmscale.run.rlhf_groups import Opened, opened_groups
from llmscale.runtime import stop_signal
from llmscale.runtime.events import EventLog
from llmscale.runtime.hooks import Hooks, RunStart, Sample, SaveRecord, StepRecord, ValidationRecord
from llmscale.runtime.standard_hooks import standard_hooks

SHOWN = 4
"""Samples of a validation that are kept."""
LEARNING: tuple[Role, ...] = ("actor", "critic")


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


@contextmanager
def _driver(config: Config, opened: Opened) -> Iterator["Driver"]:
    tokenizer = config.tokenizer.path
    assert tokenizer is not None
    chat = chat_encoder(config, tokenizer, config.train.sequence_length)
    longest = config.train.sequence_length - config.rlhf.rollout.max_new_tokens
    reader = PromptReader(chat, longest)
    means = Means(_scores_of(opened.groups.get("reward")), config.run_folder / "rewards")
    with Rewards(config.rlhf.rewards, means) as rewards:
        yield Driver(config, opened, reader, rewards, chat.said)


def _scores_of(group: Group | None) -> ModelScores | None:
    """What the reward model gives to whole texts."""
    if group is None:
        return None
    return lambda texts: group.submit("scores", list(texts), costs=[len(text) for text in texts]).results()


@dataclass
class Driver:
    """Steps until the end, or until a signal asks to stop."""

    config: Config
    opened: Opened
    reader: PromptReader
    rewards: Rewards
    decode: Callable[[Sequence[int]], str]

    @property
    def groups(self) -> Mapping[Role, Group]:
        return self.opened.groups

    def run(self) -> bool:
        """Returns whether the run is complete (False: a signal came, and the state is saved)."""
        config = self.config
        state = self._load()
        models = Models(
            self.groups["actor"],
            self.groups.get("critic"),
            self.groups.get("reference"),
            self.groups.get("rollout"),
        )
        prompts = open_prompts(config, self.reader, "train")
        controller = Controller(config, models, prompts, self.rewards, self.decode, state)
        hooks = standard_hooks(config, config.run_folder, 0)
        self.opened.pulse.listener = hooks.on_waiting
        recovery = Recovery(
            self.opened.pools,
            EventLog(config.run_folder),
            hooks,
            config.cluster.max_restarts,
            controller.forget_writers,
        )
        hooks.on_start(self._start(state))
        held_out = self._held_out()
        if held_out and not state.step:
            self._validate(controller, recovery, held_out, hooks)
        saved = state.step
        while state.step < config.train.last_step and not stop_signal.requested():
            began = time.perf_counter()
            outcome = controller.learn(recovery.repeated(state.step, controller.gather))
            recovery.step_done()
            hooks.on_step(self._record(state, outcome, time.perf_counter() - began))
            if held_out and _is_due(config.train.validate_every, state.step):
                self._validate(controller, recovery, held_out, hooks)
            if _is_due(config.checkpoint.every, state.step):
                saved = self._save(state, hooks)
        if saved != state.step or not state.step:
            self._save(state, hooks)
        complete = state.step >= config.train.last_step
        hooks.on_end(state.step, not complete)
        return complete

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
        samples = [Sample(str(prompt.said), text) for prompt, text in zip(prompts, outcome.texts)]
        hooks.on_validation(
            ValidationRecord(
                step=controller.state.step,
                loss=-outcome.figures["reward_mean"],
                perplexity=None,
                seconds=time.perf_counter() - began,
                metrics=outcome.figures,
                samples=samples[:SHOWN],
            )
        )

    @property
    def _learning(self) -> dict[str, Path]:
        """Where each role that learns has its checkpoints."""
        return {
            role: role_config(self.config, role).run_folder / "checkpoints"
            for role in LEARNING
            if role in self.groups
        }

    def _load(self) -> State:
        """All models as the newest transaction has them, or as the run begins."""
        resumes = self.config.checkpoint.resume != "never"
        found = newest(self.config.run_folder, self._learning) if resumes else None
        calls = [
            self.groups[role].tell("load", found.step if found is not None else -1)
            for role in LEARNING
            if role in self.groups
        ]
        for call in calls:
            call.results()
        return State() if found is None else State.from_json(found.state)

    def _save(self, state: State, hooks: Hooks) -> int:
        began = time.perf_counter()
        hooks.on_phase("saving")
        kept = kept_steps(self.config.run_folder)
        calls = [
            self.groups[role].tell(
                "save", state.step, {"samples": state.prompts, "tokens": state.tokens}, kept
            )
            for role in LEARNING
            if role in self.groups
        ]
        for call in calls:
            call.results()
        hashes = {
            role: manifest_hash(folder / f"step-{state.step:08d}") for role, folder in self._learning.items()
        }
        commit(self.config.run_folder, Transaction(state.step, hashes, state.as_json()))
        hooks.on_save(
            SaveRecord(state.step, time.perf_counter() - began, f"checkpoints/step-{state.step:08d}")
        )
        hooks.on_phase("training")
        return state.step

    def _start(self, state: State) -> RunStart:
        config = self.config
        parameters = model_parameters(
            config.model, resolved_vocabulary_size(config), config.train.sequence_length, None
        ).total
        return RunStart(
            step=state.step,
            steps=config.train.last_step,
            samples=state.prompts,
            tokens=state.tokens,
            world_size=sum(pool.processes for pool in pools_of(config).values()),
            parameters=parameters,
            facts={"pools": {name: list(pool.roles) for name, pool in pools_of(config).items()}},
        )

    def _record(self, state: State, outcome: Outcome, seconds: float) -> StepRecord:
        figures = dict(outcome.figures)
        tokens = sum(one.answer_length for one in outcome.experiences)
        return StepRecord(
            step=state.step,
            samples=state.prompts,
            tokens=state.tokens,
            loss=figures.pop("loss"),
            grad_norm=figures.pop("grad_norm"),
            lr=figures.pop("lr"),
            step_seconds=seconds,
            tokens_per_second=tokens / seconds,
            mfu=None,
            extra={**figures, "memory_bytes": psutil.Process().memory_info().rss},
        )


def _is_due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0
