"""Deep verification: a checkpoint's fingerprint computed again, from its weights alone, under any layout."""

from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from pydantic import JsonValue

from llmscale.checkpoint.errors import CheckpointError
from llmscale.checkpoint.manifest import JsonObject, Manifest
from llmscale.checkpoint.tuned import PEFT
from llmscale.config.checks import check_config
from llmscale.config.load import with_overrides
from llmscale.config.problems import InputError
from llmscale.config.schema import Config
from llmscale.engine.fingerprint import KEY, SEED, TOLERANCES, Fingerprint, take_fingerprint
from llmscale.engine.schedule import ScheduledChunk
from llmscale.objectives.table import objective_of
from llmscale.parallel.distributed import disconnect
from llmscale.parallel.environment import RankEnvironment
from llmscale.run.export_head import config_of_head
from llmscale.run.loaded_model import load_model
from llmscale.run.rank_team import RankTeam, answer, answer_errors
from llmscale.runtime.rank_variables import prepare_environment
from llmscale.runtime.ranks import start_server


@dataclass(frozen=True)
class DeepCheck:
    """A checkpoint, what it says of itself, and the layout to compute under."""

    folder: Path
    config: Config
    stored: Fingerprint

    def faults(self) -> list[str]:
        """Figures that differ by more than rounding; for a checkpoint whose bytes are sound.

        Raises:
            InputError, CheckpointError: it cannot be loaded. RanksFailed: a rank has ended.
        """
        found = self._compute()
        if found is None:
            return ["its fingerprint is not finite any more"]
        allowed = TOLERANCES[self.config.train.precision]
        return [
            f"its weights give another {name} than when it was saved: {apart:.1e} apart, where rounding "
            f"explains {allowed:.0e}"
            for name, apart in self.stored.differences(found).items()
            if apart > allowed
        ]

    def _compute(self) -> Fingerprint | None:
        ranks = self.config.world_size
        prepare_environment(ranks, self.config.cluster.threads)
        if ranks == 1:
            try:
                return fingerprint_on_rank(self, RankEnvironment())
            finally:
                disconnect()
        start_server([__name__])
        with RankTeam.opened(ranks, serve, self) as team:
            return team.expect("fingerprint")


def plan_check(
    folder: Path, manifest: Manifest, overrides: Sequence[str], own_layout: bool
) -> DeepCheck | str:
    """How to check the checkpoint in `folder`, or why there is nothing to compare.

    Args:
        overrides: `parallel.tensor=2` and the like; without them one process.
        own_layout: begin from tensor and pipeline ranks of the layout that wrote it.

    Raises:
        InputError: the layout does not fit the model.
    """
    stored = _stored(manifest.progress)
    if isinstance(stored, str):
        return stored
    description = manifest.description
    config = Config.model_validate(
        {
            "model": description["model"],
            "train": {"precision": description["precision"], "sequence_length": stored.sequence_length},
            "parallel": _parallel(description["layout"]) if own_layout else {},
            PEFT: description.get(PEFT, {}),
            **config_of_head(description),
        }
    )
    config = with_overrides(config, overrides)
    parallel = config.parallel
    cluster = config.cluster.model_copy(
        update={"processes_per_node": parallel.tensor * parallel.pipeline * parallel.context}
    )
    config = config.model_copy(update={"cluster": cluster})
    problems = [problem for problem in check_config(config) if problem.key.startswith("parallel.")]
    if problems:
        raise InputError(problems)
    return DeepCheck(folder, config, stored)


def _stored(progress: JsonObject) -> Fingerprint | str:
    found = progress.get(KEY)
    if not isinstance(found, dict):
        return "it has no fingerprint to compare with"
    if found.get("seed") != SEED:
        return "its fingerprint was made by another version's rules"
    try:
        return Fingerprint(**found)  # pyright: ignore[reportArgumentType]
    except TypeError:
        return "its fingerprint lacks figures"


def _parallel(layout: JsonValue) -> dict[str, JsonValue]:
    """The section of the config; replicas hold the same weights, one is enough."""
    assert isinstance(layout, dict)
    return {key: value for key, value in layout.items() if key != "data"}


def fingerprint_on_rank(check: DeepCheck, environment: RankEnvironment) -> Fingerprint | None:
    """This rank's part in loading the weights and computing; the same on every rank."""
    stored = check.stored
    chunks, world = load_model(check.config, stored.vocabulary_size, environment, check.folder)
    return take_fingerprint(
        [ScheduledChunk(chunk, chunk) for chunk in chunks],
        world,
        objective_of(check.config),
        stored.vocabulary_size,
        stored.sequence_length,
        check.config.peft.placeholders,
    )


def serve(check: DeepCheck, orders: Connection) -> int:
    """One rank of several: compute, and answer."""
    try:
        found = fingerprint_on_rank(check, RankEnvironment.from_variables())
    except (InputError, CheckpointError) as error:
        return answer_errors(orders, error)
    answer(orders, "fingerprint", found)
    return 0
