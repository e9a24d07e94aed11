"""Runs with PEFT: small models and adapters, and what our ranks and the peft library compute with them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import peft
import torch
import torch.distributed
import transformers
from torch import Tensor

from llmscale.checkpoint.agreement import Agreement
from llmscale.config.load import read_resolved
from llmscale.config.schema import Config, ParallelSection
from llmscale.data.train_tokenizer import train_tokenizer
from llmscale.engine.generate import Generator
from llmscale.engine.sampling import SamplingOptions
from llmscale.model.build import build_chunks
from llmscale.model.language_model import LanguageModel
from llmscale.parallel.layout import Layout
from llmscale.parallel.world import World
from llmscale.run.export import plan_export
from llmscale.run.generate import TextGenerator
from llmscale.run.loaded_model import fill_model
from tests.distributed.trainings import Place

TP2 = ("parallel.tensor=2", "cluster.processes_per_node=2")
PP2 = ("parallel.pipeline=2", "cluster.processes_per_node=2")
ZERO3 = ("zero.stage=3", "cluster.processes_per_node=2")
MODELS = {"llama": ("model.kv_heads=2",), "gpt2": ("model.family=gpt2",)}
TARGETS = {"llama": ("q_proj", "v_proj", "down_proj"), "gpt2": ("c_attn", "mlp.c_proj")}
POSITIONS, VIRTUAL, VOCABULARY, NEW_TOKENS = 48, 5, 1000, 6
PROMPTS = ([5, 17, 400], [999, 3, 77, 12, 250, 31, 8])
LAYOUTS: dict[str, ParallelSection] = {
    "tensor 2": ParallelSection(tensor=2),
    "pipeline 2": ParallelSection(pipeline=2),
}


def of_model(family: str) -> tuple[str, ...]:
    return (*MODELS[family], f"model.max_positions={POSITIONS}")


def of_method(method: str, base: Path, family: str = "llama") -> tuple[str, ...]:
    """Overrides that tune the model in `base`, hard enough for a mistake to show."""
    own = {
        "lora": ("peft.rank=4", f"peft.target_modules=[{', '.join(TARGETS[family])}]"),
        "dora": ("peft.rank=4",),
        "prefix_tuning": (f"peft.virtual_tokens={VIRTUAL}",),
        "prompt_tuning": (f"peft.virtual_tokens={VIRTUAL}",),
        "p_tuning": (f"peft.virtual_tokens={VIRTUAL}",),
        "freeze": ("peft.train=['*norm*']",),
    }
    return (f"train.init_from={base}", f"peft.method={method}", "optimizer.lr=0.05", *own.get(method, ()))


def of_texts(place: Place) -> tuple[str, ...]:
    """Overrides for data that has beginnings, where tokens can be put: made-up questions and answers."""
    folder, numbers = place.folder / "texts", range(40)
    if not folder.exists():
        records = [{"prompt": f"what is {n}", "completion": f"{n} is {n * n}"} for n in numbers]
        folder.mkdir()
        (folder / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        texts = [f"{record['prompt']}? {record['completion']}" for record in records]
        train_tokenizer(texts, folder / "tokenizer", 360, "bpe", threads=1)
    return ("task=sft", f"tokenizer={folder / 'tokenizer'}", f"data.train=[{folder / 'train.jsonl'}]")


def export(run: Path, out: Path, merge: bool = False, base: Path | None = None) -> Path:
    plan_export(str(run), run.parent, None, "fp32", merge, base).write(out, 10**9, lambda _: None)
    return out


def newest_base(place: Place, name: str, family: str, *overrides: str) -> Path:
    return place.uninterrupted(name, *of_model(family), "train.steps=2", *overrides).folder


def tokens_BS() -> Tensor:
    return torch.randint(VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(3))


@dataclass(frozen=True)
class Said:
    """What a model says: logits [B, S, V] of fixed tokens, and what it goes on with after some prompts."""

    logits: Tensor
    texts: list[list[int]]


def said_rank(_rank: int, runs: Sequence[Path], layout: str, base: Path | None = None) -> dict[Path, Said]:
    """Of each run under a layout, by the last rank's word; elsewhere nothing. `base` is where theirs is."""
    found: dict[Path, Said] = {}
    for run in runs:
        config = read_resolved(run / "config.yaml").model_copy(update={"parallel": LAYOUTS[layout]})
        world = World(Layout.of(config.parallel, 2), torch.device("cpu"))
        with world.active(), torch.no_grad():
            chunks = build_chunks(config.model, config.train, VOCABULARY, world)
            fill_model(chunks, run, config, Agreement(world.rank, 2, world.control_group), base)
            logits_SBV = _forward(chunks[0].eval(), world, config)
        generator = TextGenerator(Generator(chunks, world), config.peft.placeholders)
        texts = generator.generate(PROMPTS, SamplingOptions(NEW_TOKENS, 0.0))
        if logits_SBV is not None:
            found[run] = Said(logits_SBV.transpose(0, 1).clone(), texts)
    return found


def _forward(chunk: LanguageModel, world: World, config: Config) -> Tensor | None:
    """Through the stages one after the other; logits of what is no placeholder."""
    virtual = config.peft.placeholders
    own = tokens_BS()
    tokens = torch.cat(((-1 - torch.arange(virtual)).expand(len(own), -1), own), dim=1)
    positions_BS = torch.arange(tokens.shape[1]).expand_as(tokens)
    if not world.is_first_stage:
        hidden = torch.empty(tokens.shape[1], len(tokens), chunk.config.hidden_size)
        torch.distributed.recv(hidden, 0)
        chunk.set_input_tensor(hidden)
    hidden = chunk.hidden_states(tokens, positions_BS)
    if not world.is_last_stage:
        torch.distributed.send(hidden.contiguous(), 1)
        return None
    logits_SBV = chunk.gathered_logits(hidden)
    return None if logits_SBV is None else logits_SBV[virtual:]


class Peer:
    """A folder with a model, and perhaps one with an adapter, as the libraries load them."""

    def __init__(self, folder: Path, adapter: Path | None = None) -> None:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        self.model = (model if adapter is None else peft.PeftModel.from_pretrained(model, adapter)).eval()

    @torch.no_grad()
    def logits(self, tokens: Tensor) -> Tensor:
        return self.model(tokens).logits[:, -tokens.shape[1] :]

    def likeliest(self, texts: Sequence[Sequence[int]]) -> list[list[int]]:
        """What it would have gone on with at each place of the texts that follow the prompts."""
        found = []
        for prompt, text in zip(PROMPTS, texts):
            logits_SV = self.logits(torch.tensor([[*prompt, *text[:-1]]]))[0]
            found.append(logits_SV[len(prompt) - 1 :].argmax(-1).tolist())
        return found
