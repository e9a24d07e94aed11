"""What all tasks that train one model have in common: the world, the engine, its checkpoints, its loop.

A task gives what is its own: the objective, the data, and what is done to the model before it is trained.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from llmscale.checkpoint.agreement import Agreement
from llmscale.checkpoint.base import Base
from llmscale.checkpoint.begin import begin_from
from llmscale.checkpoint.checkpointer import Checkpointer
from llmscale.checkpoint.manifest import Manifest
from llmscale.checkpoint.tuned import tuning_problems
from llmscale.config.problems import Problem
from llmscale.config.schema import CheckpointSection, Config
from llmscale.control.exit_codes import EXIT_SAVED
from llmscale.data.checks import resolved_vocabulary_size
from llmscale.data.loader import BatchSource
from llmscale.data.tokenizer import tokenizer_hash
from llmscale.engine.engine import Engine
from llmscale.engine.reference import Reference
from llmscale.engine.trained import trained_parameters
from llmscale.model.build import DTYPES
from llmscale.model.tensors import not_begun_from, vocabulary_tensors
from llmscale.objectives.objective import Objective
from llmscale.parallel.cores import use_cores
from llmscale.parallel.distributed import connect, disconnect
from llmscale.parallel.environment import RankEnvironment
from llmscale.parallel.layout import Layout
from llmscale.parallel.world import World
from llmscale.plan.flops import flops_per_token
from llmscale.plan.parameters import model_parameters
from llmscale.run.export_head import LABELLED, described_head
from llmscale.run.prepare_model import Preparation, find_start
from llmscale.runtime.hooks import Hooks, RunStart
from llmscale.runtime.meter import Meter, peak_flops
from llmscale.runtime.preempt import StopAsked
from llmscale.runtime.profiling.hook import ProfileHook
from llmscale.runtime.standard_hooks import standard_hooks
from llmscale.train.best import Best
from llmscale.train.loop import Position, TrainingLoop
from llmscale.train.samples import Prompting, SampleWriter
from llmscale.train.validation import Validator


@dataclass(frozen=True)
class Recipe:
    """What a task gives."""

    config: Config
    """With everything filled in that only the data tells."""
    objective: Objective
    training: BatchSource
    validation: BatchSource | None = None
    forgetting: BatchSource | None = None
    """Text of the corpora that `data.forgetting` names."""
    prompting: Prompting | None = None
    """How the model is asked for the texts of `train.generate`; None: by plain text."""
    reference: Callable[[Engine], Reference] | None = None
    """The model that preferences are compared with, where the data does not tell what it gives."""


Cook = Callable[[Config, World, Base | None], contextlib.AbstractContextManager[Recipe]]
"""Opens what a task reads; called on every rank, once the ranks are connected, with the weights that the run
started from where anything needs them."""


def train(config: Config, environment: RankEnvironment, cook: Cook) -> int:
    """Train on this rank; returns 0 when the run is complete, 75 when it was asked to stop and has saved."""
    use_cores(environment, config.cluster.threads, config.cluster.numa_binding)
    device = connect(environment, config.cluster.backend)
    world = World(Layout.of(config.parallel, environment.world_size), device)
    checkpoints = _checkpoint_options(config, environment)
    agreement = Agreement(world.rank, world.layout.world_size, world.control_group)
    start = find_start(config, checkpoints, agreement)
    try:
        with cook(config, world, start) as recipe:
            complete = _train(recipe, checkpoints, start, world)
    except StopAsked:
        complete = False
    disconnect()
    return 0 if complete else EXIT_SAVED


def _train(recipe: Recipe, checkpoints: CheckpointSection, start: Base | None, world: World) -> bool:
    config = recipe.config
    vocabulary_size = resolved_vocabulary_size(config)
    agreement = Agreement(world.rank, world.layout.world_size, world.control_group)
    preparation = Preparation(config, agreement, start)
    engine = Engine(config, world, vocabulary_size, recipe.objective, preparation)
    if recipe.reference is not None:
        engine.reference = recipe.reference(engine)
    description = description_of(config, world) | preparation.description
    checkpointer = Checkpointer(
        config.run_folder / "checkpoints",
        world.rank,
        world.layout.world_size,
        checkpoints,
        world.control_group,
        description,
    )
    progress = _restore(preparation, engine, checkpointer, description)
    position = Position.of(progress) if progress else Position()
    writer = SampleWriter.of(config, recipe.prompting)
    validator = Validator(config, engine, recipe.validation, recipe.forgetting, writer)
    validator.restore(progress)
    loop = TrainingLoop(
        config,
        engine,
        recipe.training,
        validator,
        checkpointer,
        _hooks(config, engine),
        _meter(config, world, vocabulary_size),
        position,
        Best.of(progress),
        _start(config, engine, position, vocabulary_size),
    )
    return loop.run()


def _checkpoint_options(config: Config, environment: RankEnvironment) -> CheckpointSection:
    """`resume: never` is for the first start only: ranks that the agent starts again go on from what this
    run has saved since."""
    if environment.restart_count and config.checkpoint.resume == "never":
        return config.checkpoint.model_copy(update={"resume": "auto"})
    return config.checkpoint


def description_of(config: Config, world: World) -> dict[str, JsonValue]:
    """What a checkpoint says about the run that made it."""
    tokenizer = config.tokenizer.path
    described: dict[str, JsonValue] = {
        "layout": dict(world.layout.describe()),
        "zero_stage": config.zero.stage,
        "precision": config.train.precision,
        "model": config.model.model_dump(mode="json"),
        "tokenizer_hash": None if tokenizer is None else tokenizer_hash(tokenizer),
    }
    return described | described_head(config)


def _restore(
    preparation: Preparation,
    engine: Engine,
    checkpointer: Checkpointer,
    description: Mapping[str, JsonValue],
) -> Mapping[str, JsonValue]:
    """Go on from the run's newest checkpoint, and return its progress; without one begin, from
    `train.init_from` if that is set."""
    config = preparation.config

    def accept(manifest: Manifest) -> list[Problem]:
        found = manifest.description
        problems = [
            Problem(key, str(description.get(key)), f"is {found[key]} in {manifest.step}'s checkpoint")
            for key in ("model", "tokenizer_hash", LABELLED)
            if key in found and found[key] != description.get(key)
        ]
        return [*problems, *tuning_problems(config.peft, preparation.base, found)]

    loaded = checkpointer.load_newest(engine.pieces_to_load(), accept)
    if loaded is not None:
        engine.after_load(loaded.progress)
        return loaded.progress
    if config.train.init_from is not None and preparation.base is None:
        may_grow = vocabulary_tensors(config.model)
        without = not_begun_from(config.model, config.outputs)
        source = config.train.init_from if preparation.start is None else preparation.start.path
        begin_from(source, engine.weight_pieces(), preparation.agreement, may_grow, without)
        engine.after_load({"step": 0, "optimizer_steps": 0})
    return {}


def _hooks(config: Config, engine: Engine) -> Hooks:
    """A profile is of the first rank of each pipeline stage: those beside it do the same."""
    place, rank = engine.world.coordinates, engine.world.rank
    found = standard_hooks(config, config.run_folder, rank)
    steps = config.train.profiled_steps
    if steps is not None and place.tensor == place.context == place.data == 0:
        models = [chunk.config for chunk in engine.chunks]
        found.hooks.append(
            ProfileHook(config.run_folder, steps, rank, place.pipeline, models, found.on_phase)
        )
    return found


def _meter(config: Config, world: World, vocabulary_size: int) -> Meter:
    peak = peak_flops(world.device, DTYPES[config.train.precision])
    flops = flops_per_token(config.model, config.train.sequence_length, vocabulary_size, config.outputs)
    return Meter(flops, peak and peak * world.layout.world_size, world.device)


def _start(config: Config, engine: Engine, position: Position, vocabulary_size: int) -> RunStart:
    world = engine.world
    own = [engine.declarations[name] for name in engine.parameters]
    facts: dict[str, object] = {"layout": world.layout.describe(), "device": str(world.device)}
    if config.peft.method != "none":
        facts |= {"peft": config.peft.method, "trained_parameters": trained_parameters(own, world)}
    return RunStart(
        step=position.step,
        steps=config.train.last_step,
        samples=position.samples,
        tokens=position.tokens,
        world_size=world.layout.world_size,
        parameters=model_parameters(
            config.model, vocabulary_size, config.train.sequence_length, config.outputs
        ).total,
        facts=facts,
    )
