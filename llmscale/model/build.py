"""From a config to this rank's model chunks, with their initial weights."""

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig

from llmscale.config.schema import ModelSection, TrainSection
from llmscale.model.families.family import Family
from llmscale.model.families.table import family as family_named
from llmscale.model.head import ScoreHead
from llmscale.model.initialize import initialize
from llmscale.model.language_model import LanguageModel
from llmscale.model.rotary import RotaryTable
from llmscale.model.spec import block_spec
from llmscale.parallel.world import World
from llmscale.plan.parameters import padded_vocabulary_size

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}


def build_model(
    model: ModelSection,
    train: TrainSection,
    vocabulary_size: int,
    world: World,
    outputs: int | None = None,
) -> list[LanguageModel]:
    """This rank's chunks in order (one without interleaving), initialised, on the world's device.

    `world` must be active.

    Args:
        outputs: scores of a head in place of the output layer; None for a model that writes.
    """
    built = build_chunks(model, train, vocabulary_size, world, outputs)
    for chunk in built:
        initialize(chunk, train.seed)
    return built


def build_chunks(
    model: ModelSection,
    train: TrainSection,
    vocabulary_size: int,
    world: World,
    outputs: int | None = None,
) -> list[LanguageModel]:
    """As `build_model`, with weights of no meaning: for a model whose weights are loaded."""
    family = family_named(model.family)
    config = megatron_config(model, train, family, world)
    return [
        _build_chunk(model, train, family, config, vocabulary_size, world, chunk, outputs)
        for chunk in range(world.layout.interleave)
    ]


def megatron_config(
    model: ModelSection, train: TrainSection, family: Family, world: World
) -> TransformerConfig:
    layout = world.layout
    recompute_all = train.recompute == "full"
    on_gpu = world.device.type == "cuda"
    return TransformerConfig(
        num_layers=model.layers,
        hidden_size=model.hidden_size,
        num_attention_heads=model.heads,
        num_query_groups=model.kv_heads_or_default,
        kv_channels=model.head_size_or_default,
        ffn_hidden_size=model.ffn_size_or_default,
        gated_linear_unit=family.gated,
        activation_func=F.silu if family.gated else F.gelu,
        normalization="LayerNorm" if family.layer_norm else "RMSNorm",
        layernorm_epsilon=model.norm_epsilon,
        add_bias_linear=family.biases,
        add_qkv_bias=family.biases,
        hidden_dropout=model.dropout,
        attention_dropout=model.dropout,
        params_dtype=DTYPES[train.precision],
        pipeline_dtype=DTYPES[train.precision],
        bf16=train.precision == "bf16",
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=layout.interleave if layout.interleave > 1 else None,
        context_parallel_size=layout.context,
        sequence_parallel=layout.sequence,
        # Weights come from `initialize`; "cpu" only says where the empty tensors are made.
        use_cpu_initialization=not on_gpu,
        perform_initialization=False,
        # Batched point-to-point gives wrong gradients over gloo, without an error.
        batch_p2p_comm=on_gpu,
        gradient_accumulation_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        # The engine divides by the tokens of the whole batch; the schedule must not divide again.
        calculate_per_token_loss=True,
        deallocate_pipeline_outputs=True,
        recompute_granularity="full"
        if recompute_all
        else ("selective" if train.recompute == "selective" else None),
        recompute_method="uniform" if recompute_all else None,
        recompute_num_layers=1 if recompute_all else None,
    )


def _build_chunk(
    model: ModelSection,
    train: TrainSection,
    family: Family,
    config: TransformerConfig,
    vocabulary_size: int,
    world: World,
    chunk: int,
    outputs: int | None,
) -> LanguageModel:
    layout = world.layout
    positions = model.max_positions or train.sequence_length
    rotary = None
    if family.rotary:
        rotary = RotaryTable(
            model.head_size_or_default, positions, model.rope_base, model.rope_scaling, world.device
        )
    built = LanguageModel(
        model=model,
        family=family,
        world=world,
        vocabulary_size=vocabulary_size,
        rotary=rotary,
        config=config,
        transformer_layer_spec=block_spec(
            model, family, config, world, model.layers // layout.pipeline // layout.interleave
        ),
        vocab_size=padded_vocabulary_size(vocabulary_size, layout.tensor),
        max_sequence_length=positions,
        pre_process=world.is_first_stage and chunk == 0,
        post_process=world.is_last_stage and chunk == layout.interleave - 1,
        share_embeddings_and_output_weights=model.tie_embeddings_or_default,
        position_embedding_type="none" if family.rotary else "learned_absolute",
        pg_collection=world.groups,
        vp_stage=chunk if layout.interleave > 1 else None,
    )
    if outputs is not None:
        built.share_embeddings_and_output_weights = False
        if built.post_process:
            del built.output_layer
            built.score = ScoreHead(
                model.hidden_size,
                outputs,
                DTYPES[train.precision],
                world.tensor_group,
                layout.sequence and layout.tensor > 1,
            )
    return built.to(device=world.device, dtype=DTYPES[train.precision])
