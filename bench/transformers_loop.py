"""Contender: transformers' LlamaForCausalLM in a plain training loop, with SDPA and fused AdamW.

Weights, gradients and moments are all in the workload's precision: the fastest a plain loop does.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench.workload import BETAS, CLIP, EPSILON, LEARNING_RATE, WEIGHT_DECAY, Workload, batch, measure


def main() -> None:
    workload = Workload.from_command_line()
    torch.set_num_threads(workload.threads)
    model = build(workload)
    optimizer = torch.optim.AdamW(
        model.parameters(), LEARNING_RATE, betas=BETAS, eps=EPSILON, weight_decay=WEIGHT_DECAY, fused=True
    )
    tokens = batch(workload)
    rows = workload.micro_batch_size
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step() -> float:
        total = 0.0
        for part, labels in zip(inputs.split(rows), targets.split(rows)):
            loss = model(input_ids=part, labels=part, shift_labels=labels, use_cache=False).loss
            loss = loss * (len(part) / len(inputs))
            loss.backward()
            total += float(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    measure(workload, step)


def build(workload: Workload) -> LlamaForCausalLM:
    model = workload.model
    config = LlamaConfig(
        vocab_size=workload.vocabulary_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.ffn_size_or_default,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads_or_default,
        head_dim=model.head_size_or_default,
        tie_word_embeddings=model.tie_embeddings_or_default,
        max_position_embeddings=workload.sequence_length,
        rms_norm_eps=model.norm_epsilon,
        attn_implementation="sdpa",  # pyright: ignore[reportCallIssue]
    )
    torch.manual_seed(0)
    built = LlamaForCausalLM(config)
    built.to(dtype=torch.bfloat16 if workload.precision == "bf16" else torch.float32)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return built.train()


if __name__ == "__main__":
    main()
