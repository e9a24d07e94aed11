"""What a run of reinforcement learning leaves to go on from: checkpoints of the models that learn, answers
that wait to be learned from, and the file that names them all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmscale.config.problems import InputError, Problem
from llmscale.config.rlhf_pools import LEARNING, Role
from llmscale.config.rlhf_roles import role_config
from llmscale.config.schema import Config
from llmscale.rlhf.answers import Answer
from llmscale.rlhf.replay import answers_from_bytes, answers_to_bytes
from llmscale.rlhf.state import State
from llmscale.rlhf.transaction import FOLDER, Transaction, commit, kept_steps, manifest_hash, newest
from llmscale.rlhf.workers.group import Group


@dataclass(frozen=True)
class Begun:
    """Where a run goes on."""

    state: State
    waiting: list[Answer]
    """Answers that are written and not yet learned from."""


class Commits:
    def __init__(self, config: Config, groups: Mapping[Role, Group]) -> None:
        self._config = config
        self._groups: dict[Role, Group] = {role: groups[role] for role in LEARNING if role in groups}

    @property
    def _folders(self) -> dict[Role, Path]:
        """Where each role that learns has its checkpoints."""
        if not self._config.rlhf.learns:
            return {}
        return {role: role_config(self._config, role).run_folder / "checkpoints" for role in self._groups}

    def load(self) -> Begun:
        """All models as the newest transaction has them, or as the run begins.

        Raises:
            InputError: there are transactions, and of none everything is sound. WorkerLost, WorkerFailed: see
                `Calls.results`.
        """
        found = self._newest()
        while not self._have_loaded(found):
            assert found is not None
            found = self._newest(before=found.step)
        if found is None:
            return Begun(State(), [])
        waiting = [] if found.replay is None else answers_from_bytes(found.replay)
        return Begun(State.from_json(found.state), waiting)

    def _newest(self, before: int | None = None) -> Transaction | None:
        if self._config.checkpoint.resume == "never":
            return None
        folder = self._config.run_folder
        found, known = newest(folder, self._folders, before), kept_steps(folder)
        if found is None and known:
            message = (
                f"has transactions of the steps {', '.join(map(str, known))}, of none of which all is "
                "there as it was; restore one, or set checkpoint.resume=never to begin anew"
            )
            raise InputError([Problem("run.name", folder / FOLDER, message)])
        return found

    def _have_loaded(self, transaction: Transaction | None) -> bool:
        """Every model is as the transaction names it. One whose checkpoint is damaged has an older one."""
        named = transaction.step if transaction is not None and self._folders else None
        step = -1 if named is None else named
        calls = [group.tell("load", step) for group in self._groups.values()]
        return all(loaded == named for call in calls for loaded in call.results())

    def save(self, state: State, waiting: Sequence[Answer]) -> Path:
        """Commit the step; returns what it can be told by.

        Raises:
            SaveFailed: the disk refuses. WorkerLost, WorkerFailed: see `Calls.results`.
        """
        folder, folders = self._config.run_folder, self._folders
        progress = {"samples": state.prompts, "tokens": state.tokens}
        kept = kept_steps(folder)
        calls = [self._groups[role].tell("save", state.step, progress, kept) for role in folders]
        for call in calls:
            call.results()
        name = f"step-{state.step:08d}"
        hashes = {role: manifest_hash(checkpoints / name) for role, checkpoints in folders.items()}
        replay = answers_to_bytes(waiting) if waiting else None
        commit(folder, Transaction(state.step, hashes, state.as_json(), replay))
        return Path("checkpoints", name) if folders else Path(FOLDER, f"{name}.json")
