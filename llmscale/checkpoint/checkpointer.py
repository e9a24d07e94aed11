"""Saving and resuming a run, from the point of view of one rank of it.

A save holds training up for one copy to host memory; the rest goes on in one background thread. All
ranks call `load_newest`, `save` and `wait` at the same points of the program.
"""

import logging
import threading
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist
from pydantic import JsonValue

from llmscale.checkpoint.agreement import Agreement
from llmscale.checkpoint.epochs import claim_epoch, record_start
from llmscale.checkpoint.errors import CheckpointError, SaveFailed, StaleWriter
from llmscale.checkpoint.loader import Accept, Loaded, load_first_sound
from llmscale.checkpoint.manifest import TensorEntry, json_object
from llmscale.checkpoint.shards import HostImage, signature_of, tensor_entries
from llmscale.checkpoint.store import Checkpoint, Store
from llmscale.checkpoint.writer import SaveRequest, commit_parts, describe, report_failure, write_part
from llmscale.config.problems import InputError, Problem
from llmscale.config.schema import CheckpointSection
from llmscale.model.regions import Piece

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SaveOutcome:
    """What became of a save, as rank 0 knows it: the one that commits."""

    step: int
    state: Literal["committed", "failed", "present"]
    """present: the step had been committed before, so there was nothing to do."""
    reason: str = ""
    """Why it failed, or what went wrong after it was committed."""
    byte_count: int = 0
    seconds: float = 0.0
    """From the call of `save` to the end."""
    removed: tuple[str, ...] = ()
    """Older checkpoints that this one has superseded."""


class Checkpointer:
    """`folder` is the run's `checkpoints`; `description` goes into every manifest (layout, config, hashes).

    `group` is a gloo group over all ranks (None for one rank), used only inside the calls of this class.
    """

    def __init__(
        self,
        folder: Path,
        rank: int,
        world_size: int,
        options: CheckpointSection,
        group: dist.ProcessGroup | None = None,
        description: Mapping[str, JsonValue] | None = None,
        timeout_seconds: float = 1800.0,
    ) -> None:
        self._store = Store(folder)
        self._agreement = Agreement(rank, world_size, group)
        self._options = options
        self._description = json_object(description or {})
        self._timeout_seconds = timeout_seconds
        self._epoch: int | None = None
        self._candidates: list[Checkpoint] = []
        """Rank 0: what the run may go on from, newest first."""
        self._image: HostImage | None = None
        self._tensors: dict[str, TensorEntry] = {}
        self._thread: threading.Thread | None = None
        self._result: SaveOutcome | None = None
        """Rank 0: left by the thread when it ends."""
        self._undecided = False
        """A save was begun whose outcome this rank does not know yet."""
        self._last: SaveOutcome | None = None
        self._unread: list[SaveOutcome] = []
        self._kept: frozenset[int] = frozenset()
        """Steps that the save in flight must not remove."""

    def load_newest(
        self, pieces: Sequence[Piece], accept: Accept | None = None, newest: int | None = None
    ) -> Loaded | None:
        """Begin or resume the run: fill the pieces from the newest sound checkpoint; None without one.

        To be called once, before the first save. Live tensors change only after everything has been verified
        and read on all ranks. Litter of saves that died is removed; checkpoints beyond the loaded one
        (damaged, or all of them with `resume: never`) are set aside under another name.

        Args:
            newest: checkpoints of later steps are not looked at; None: all are.

        Raises:
            InputError: the checkpoint does not fit the pieces, or `resume` asks for one and there is none.
            CheckpointError: there are checkpoints, and none is sound.
        """
        self._epoch = self._agreement.decide(None, lambda _: self._start(newest))
        self._agreement.attempt(lambda: self._prepare(pieces))
        assert self._image is not None
        loaded, passed_over = load_first_sound(self._agreement, self._candidates, pieces, self._image, accept)
        if loaded is None:
            self._refuse_scratch(passed_over)
        set_aside = self._agreement.decide(None, lambda _: self._settle(loaded.step if loaded else None))
        if self._agreement.rank == 0:
            for fault in passed_over:
                logger.warning("not used: %s", fault)
        return loaded and replace(loaded, passed_over=tuple(passed_over), set_aside=tuple(set_aside))

    def _start(self, newest: int | None) -> int:
        """Rank 0: fence off earlier starts of the run, clear their litter away, list what there is."""
        known = [one.manifest.epoch for one in self._store.checkpoints() if one.manifest]
        epoch = claim_epoch(self._store.folder, above=max(known, default=0))
        for name in self._store.clean():
            logger.warning("removed %s, left by a save that did not finish", name)
        if self._options.resume != "never":
            self._candidates = [
                one
                for one in reversed(self._store.checkpoints())
                if one.state != "fenced" and (newest is None or one.step <= newest)
            ]
        return epoch

    def _prepare(self, pieces: Sequence[Piece]) -> list[str]:
        """Have an image and a manifest part that fit the pieces."""
        if self._image is None or self._image.signature != signature_of(pieces):
            self._image = None
            self._tensors = tensor_entries(pieces, self._agreement.rank)
            self._image = HostImage(pieces)
        return []

    def _refuse_scratch(self, passed_over: Sequence[str]) -> None:
        """A run that has checkpoints, or must have one, does not silently start from scratch."""
        if passed_over:
            raise CheckpointError(
                f"no checkpoint in {self._store.folder} can be used: {'; '.join(passed_over)}. "
                "Restore one, or set checkpoint.resume to never to set them aside and start from scratch"
            )
        if self._options.resume == "required":
            message = f"there is no checkpoint in {self._store.folder}: set it to auto to start from scratch"
            raise InputError([Problem("checkpoint.resume", "required", message)])

    def _settle(self, step: int | None) -> list[str]:
        """Rank 0: record where history goes on, and take what is beyond out of the way of new saves."""
        assert self._epoch is not None
        record_start(self._store.folder, self._epoch, step)
        beyond = [one for one in self._store.checkpoints() if step is None or one.step > step]
        return [self._set_aside(one) for one in beyond]

    def _set_aside(self, found: Checkpoint) -> str:
        name = self._store.set_aside(found).name
        logger.warning("%s is set aside as %s", found.path.name, name)
        return name

    def save(
        self,
        step: int,
        pieces: Sequence[Piece],
        progress: Mapping[str, JsonValue],
        kept: Collection[int] = (),
    ) -> None:
        """Save the pieces' values of this moment; returns after one copy to host memory.

        Waits first for a save still in flight. With `asynchronous: false`, waits for this one, too.

        Args:
            kept: steps whose checkpoints this one does not supersede.

        Raises:
            SaveFailed: with `on_error: stop`, on all ranks, when the save before (or this one) has failed.
        """
        if self._epoch is None:
            raise RuntimeError("load_newest must be called before the first save")
        asked = time.monotonic()
        progress = json_object(progress)
        self._join()
        self._kept = frozenset(kept)
        decision = self._agreement.decide(step, lambda steps: self._open_save(steps))
        self._learn(decision["previous"])
        self._stop_if_asked()
        self._undecided = True
        if "outcome" in decision:
            self._record(_outcome(decision["outcome"]))
        else:
            self._begin(step, decision["save_id"], pieces, progress, asked)
            if not self._options.asynchronous:
                self.wait()
        self._stop_if_asked()

    def poll(self) -> list[SaveOutcome]:
        """Outcomes that are known and were not returned before. Waits for nothing.

        Rank 0 learns of an outcome at once, the others at the next `save` or `wait`.
        """
        if self._thread is not None and not self._thread.is_alive():
            self._join()
        unread, self._unread = self._unread, []
        return unread

    def wait(self) -> SaveOutcome | None:
        """Wait until the last save is committed or has failed; its outcome, or None without a save."""
        self._join()
        self._learn(self._agreement.decide(None, lambda _: self._last and asdict(self._last)))
        return self._last

    def _open_save(self, steps: Sequence[int]) -> dict[str, Any]:
        """Rank 0: the outcome of the save before, and how to go about this one."""
        decision: dict[str, Any] = {"previous": self._last and asdict(self._last)}
        step = steps[0]
        if len(set(steps)) > 1:
            raise ValueError(f"the ranks ask to save different steps: {sorted(set(steps))}")
        if self._must_stop():
            return decision
        assert self._epoch is not None
        try:
            self._store.refuse_stale(self._epoch)  # a successor's folders are not to be touched
            present = self._store.find(step)
            if present is not None and present.state == "committed":
                return {**decision, "outcome": asdict(SaveOutcome(step, "present"))}
            if present is not None:
                self._set_aside(present)
            save_id = uuid.uuid4().hex
            self._store.begin(step, save_id)
        except (OSError, StaleWriter) as error:
            return {**decision, "outcome": asdict(SaveOutcome(step, "failed", describe(error)))}
        return {**decision, "save_id": save_id}

    def _begin(
        self,
        step: int,
        save_id: str,
        pieces: Sequence[Piece],
        progress: Mapping[str, JsonValue],
        asked: float,
    ) -> None:
        assert self._epoch is not None
        request = SaveRequest(
            self._store,
            step,
            save_id,
            self._epoch,
            self._agreement.rank,
            self._agreement.world_size,
            progress,
            self._description,
            self._timeout_seconds,
        )
        failure: Exception | None = None
        try:
            self._prepare(pieces)
            assert self._image is not None
            self._image.copy_from(pieces)
        except Exception as error:  # goes through the protocol: the other ranks wait for this rank's part
            failure = error
        work = partial(self._finish, request, self._image, failure, asked)
        # Not a daemon: the interpreter waits for it before it exits.
        self._thread = threading.Thread(target=work, name=f"save step {step}", daemon=False)
        self._thread.start()

    def _finish(
        self,
        request: SaveRequest,
        image: HostImage | None,
        failure: Exception | None,
        asked: float,
    ) -> None:
        """The background thread: everything after the copy."""
        try:
            if failure is not None or image is None:
                raise CheckpointError(f"the values cannot be copied: {failure}")
            spoiled = image.not_finite()
            if spoiled:
                raise CheckpointError(f"{spoiled[0]} is not finite any more")
            write_part(request, image, self._tensors)
            if request.rank == 0:
                self._result = self._commit(request, asked)
        except Exception as error:
            reason = describe(error)
            if request.rank == 0:
                self._result = SaveOutcome(request.step, "failed", reason, seconds=time.monotonic() - asked)
            self._give_up(request, reason)

    def _commit(self, request: SaveRequest, asked: float) -> SaveOutcome:
        manifest = commit_parts(request)
        removed: list[str] = []
        problem = ""
        try:
            options = self._options
            removed = self._store.prune(request.epoch, options.keep_last, options.keep_every, self._kept)
        except (OSError, CheckpointError) as error:
            problem = f"committed, but older checkpoints could not be removed: {describe(error)}"
        seconds = time.monotonic() - asked
        return SaveOutcome(request.step, "committed", problem, manifest.byte_count, seconds, tuple(removed))

    def _give_up(self, request: SaveRequest, reason: str) -> None:
        """Leave nothing behind: rank 0 removes the folder, the others tell it to."""
        try:
            if request.rank == 0:
                self._store.abandon(request.step, request.save_id)
            else:
                report_failure(request, reason)
        except OSError as error:
            logger.warning("step %d: after a failed save (%s): %s", request.step, reason, describe(error))

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            if self._result is not None:
                self._record(self._result)
                self._result = None

    def _learn(self, outcome: dict[str, Any] | None) -> None:
        """Other ranks: what rank 0 says about the save whose outcome is not known here."""
        if self._undecided and outcome is not None:
            self._record(_outcome(outcome))

    def _record(self, outcome: SaveOutcome) -> None:
        self._undecided = False
        self._last = outcome
        self._unread.append(outcome)
        if outcome.state == "failed" and self._agreement.rank == 0:
            logger.error("saving step %d failed: %s", outcome.step, outcome.reason)

    def _must_stop(self) -> bool:
        return self._options.on_error == "stop" and self._last is not None and self._last.state == "failed"

    def _stop_if_asked(self) -> None:
        if self._last is not None and self._must_stop():
            raise SaveFailed(f"saving step {self._last.step} failed: {self._last.reason}")


def _outcome(fields: Mapping[str, Any]) -> SaveOutcome:
    """As it was before it travelled as JSON."""
    return SaveOutcome(**{**fields, "removed": tuple(fields["removed"])})
