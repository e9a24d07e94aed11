"""Ranks and checkpoints as the simulator has them: no work is done, but everything that can go wrong with
who runs, who saves and what is kept does."""

import itertools
from collections.abc import Callable
from random import Random
from typing import Protocol

from llmscale.checkpoint.epochs import Epochs
from llmscale.control.messages import Evidence, Failure, Place
from llmscale.control.watchdog import Beat
from tests.control.schedules import Plan

STEP_SECONDS = 2.0
SAVE_EVERY = 2
KEEP_LAST = 2
EXIT_SAVED = 75


class Violation(AssertionError):
    """An invariant does not hold."""


class Storage:
    """Checkpoints and epochs of a run, by the rules of `llmscale.checkpoint`: claim, load, record; and
    for a commit look, rename, look again, mark."""

    def __init__(self, fences: bool) -> None:
        self.fences = fences
        self.newest = 0
        self.resumed: dict[int, int] = {}
        self.committed: list[tuple[int, int]] = []
        """(step, epoch) of what has its marker."""
        self.acknowledged = -1
        """Newest step that a writer which was the newest at that moment has committed."""

    def history(self) -> list[tuple[int, int]]:
        """Checkpoints that belong to the run's line, by step."""
        if not self.fences:
            return sorted(self.committed)
        epochs = Epochs(self.newest, self.resumed)
        return sorted(found for found in self.committed if not epochs.fences(found[1], found[0]))

    def newest_step(self) -> int | None:
        history = self.history()
        return history[-1][0] if history else None

    def claim(self) -> int:
        self.newest += 1
        return self.newest

    def start_from(self, epoch: int) -> int:
        """Load the newest checkpoint and say so; returns its step, 0 for none."""
        step = self.newest_step()
        if (step if step is not None else -1) < self.acknowledged:
            raise Violation(f"epoch {epoch} starts from {step}, and {self.acknowledged} had been committed")
        self.resumed[epoch] = -1 if step is None else step
        return step or 0

    def is_stale(self, epoch: int) -> bool:
        return self.fences and epoch != self.newest

    def commit(self, step: int, epoch: int) -> bool:
        """Put the marker; returns whether this belongs to history now."""
        if any(found == step for found, _ in self.committed):
            return False
        self.committed.append((step, epoch))
        if epoch == self.newest:
            self.acknowledged = max(self.acknowledged, step)
        history = self.history()
        if any(earlier[1] > later[1] for earlier, later in itertools.pairwise(history)):
            raise Violation(f"two writers in one history: (step, epoch) {history}")
        if not self.is_stale(epoch):
            kept = set(history[-KEEP_LAST:]) | (set(self.committed) - set(history))
            self.committed = [found for found in self.committed if found in kept]
        return (step, epoch) in history


class Node(Protocol):
    """What ranks need to know of the machine that they are on."""

    @property
    def cut(self) -> bool: ...

    @property
    def master(self) -> str: ...

    def ranks_changed(self) -> None:
        """Something for the agent to notice."""
        ...


class Run(Protocol):
    """What ranks and training need of the simulator around them."""

    chance: Random
    plan: Plan
    storage: Storage
    events: list[tuple[str, int | None]]

    def later(self, seconds: float, action: Callable[..., object], *arguments: object) -> None: ...

    def training_at(self, place: Place) -> "Training": ...

    def check_alone(self, ranks: "SimulatedRanks", port: int) -> None: ...

    def open_port(self) -> int: ...


class Training:
    """All ranks of one generation: they meet, step and save together."""

    def __init__(self, run: Run, nodes: int) -> None:
        self.run = run
        self.nodes = nodes
        self.members: list[SimulatedRanks] = []
        self.step = 0
        self.epoch = 0
        self.over = False
        self.last_code: int | None = None
        """What all ranks will return once the last save is there."""

    def join(self, member: "SimulatedRanks") -> None:
        self.members.append(member)
        if len(self.members) == self.nodes:
            self.run.later(self.run.chance.uniform(0.5, 2.0), self._begin)

    def _begin(self) -> None:
        if self.over or not self._together():
            return self._stall(self._begin)
        self.epoch = self.run.storage.claim()
        self.step = self.run.storage.start_from(self.epoch)
        for member in self.members:
            member.step = self.step
        return self.run.later(STEP_SECONDS, self._end_of_step)

    def _together(self) -> bool:
        """Whether a collective of all ranks would end."""
        apart = self.nodes > 1 and any(member.node.cut for member in self.members)
        return not apart and all(member.alive and not member.hanging for member in self.members)

    def _stall(self, again: Callable[[], None]) -> None:
        if not self.over:
            self.run.later(1.0, again)

    def _end_of_step(self) -> None:
        if self.over or not self._together():
            return self._stall(self._end_of_step)
        run = self.run
        if self.step >= run.plan.steps:
            return self._leave(0)
        if run.plan.crash_step == self.step + 1:
            victim = run.chance.choice(self.members)
            return victim.die("error", run.plan.crash_code)
        self.step += 1
        for member in self.members:
            member.step = self.step
        if self.step >= run.plan.steps:
            return self._leave(0)
        if any(member.asked_to_save for member in self.members):
            return self._leave(EXIT_SAVED)
        if self.step % SAVE_EVERY == 0:
            self._save(self._nothing)
        return run.later(STEP_SECONDS, self._end_of_step)

    def _nothing(self, saved: bool) -> None:
        """A save in the background fails or not; training goes on."""

    def _leave(self, code: int) -> None:
        self.last_code = code
        self._save(self._have_left)

    def _have_left(self, saved: bool) -> None:
        if not saved:
            return self.members[0].die("error", None)
        for member in self.members:
            member.finish(self.last_code or 0)
        self.over = True
        return None

    # A save: look, rename, look again, mark. Only the first rank does these; it may take its time.

    def _save(self, then: Callable[[bool], None]) -> None:
        self.run.later(0.5, self._rename, self.step, then)

    def _writer_lives(self) -> bool:
        return self.members[0].alive

    def _rename(self, step: int, then: Callable[[bool], None]) -> None:
        if not self._writer_lives():
            return
        if self.run.storage.is_stale(self.epoch) or self.run.chance.random() < self.run.plan.save_fails:
            then(False)
            return
        slow = self.run.chance.random() < self.run.plan.slow_save
        self.run.later(self.run.chance.uniform(5, 40) if slow else 0.1, self._look_again, step, then)

    def _look_again(self, step: int, then: Callable[[bool], None]) -> None:
        if not self._writer_lives():
            return
        if self.run.storage.is_stale(self.epoch):
            then(False)
            return
        self.run.later(0.01, self._mark, step, then)

    def _mark(self, step: int, then: Callable[[bool], None]) -> None:
        if not self._writer_lives():
            return
        in_history = self.run.storage.commit(step, self.epoch)
        if in_history:
            self.run.events.append(("saved", step))
        then(in_history or step <= (self.run.storage.newest_step() or 0))

    def member_gone(self, gone: "SimulatedRanks") -> None:
        """The others lose a connection: some notice, some wait for ever."""
        self.over = True
        for member in self.members:
            if member is not gone and member.alive and self.run.chance.random() < 0.7:
                self.run.later(self.run.chance.uniform(0.05, 2.0), member.die, "error", None)


class SimulatedRanks:
    """The ranks of one node, as an agent wants them (`llmscale.control.node.Ranks`)."""

    def __init__(self, run: Run, node: Node, host: str) -> None:
        self.run = run
        self.node = node
        self.host = host
        self.alive = False
        self.hanging = False
        self.asked_to_save = False
        self.port = 0
        self.step = 0
        self.place: Place | None = None
        self.training: Training | None = None
        self.outcome: Failure | dict[int, int] | None = None

    def open_store(self) -> int:
        return self.run.open_port()

    def start(self, place: Place) -> None:
        self.run.check_alone(self, place.master_port)
        self.alive, self.hanging, self.asked_to_save = True, False, False
        self.outcome, self.step, self.place, self.port = None, 0, place, place.master_port
        self.training = self.run.training_at(place)
        self.training.join(self)

    def kill(self) -> None:
        if self.alive:
            self.alive = False
            if self.training:
                self.training.member_gone(self)

    def ask_to_save(self) -> None:
        self.asked_to_save = True

    def poll(self) -> Failure | dict[int, int] | None:
        return self.outcome

    def beats(self) -> dict[int, Beat]:
        if self.place is None:
            return {}
        phase = "training" if self.step else "starting"
        return {self.place.first_rank: Beat(phase, self.step, self.step, 0.0)}

    def examine(self) -> None:
        """Looking takes no time here."""

    def evidence(self) -> tuple[Evidence, ...] | None:
        rank = self.place.first_rank if self.place else 0
        return (Evidence(rank, self.host, 1, "T" if self.hanging else "S", (), self.step),)

    def die(self, kind: str, exit_code: int | None) -> None:
        """A rank of this node ends that should not have."""
        if not self.alive:
            return
        rank = self.place.first_rank if self.place else 0
        cause = "killed by SIGKILL" if kind == "signal" else "an error"
        self.outcome = Failure(rank, self.host, 1, cause, exit_code, "", (), kind)  # pyright: ignore[reportArgumentType]
        self.kill()
        self.node.ranks_changed()

    def finish(self, code: int) -> None:
        if self.alive and self.place:
            self.alive = False
            self.outcome = dict.fromkeys(
                range(self.place.first_rank, self.place.first_rank + self.place.processes), code
            )
            self.node.ranks_changed()
