"""Contender: transformers' model in a plain training loop, with SDPA and fused AdamW.

Weights, gradients and moments are all in the workload's precision: the fastest a plain loop does.
"""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from bench.workload import BETAS, CLIP, EPSILON, LEARNING_RATE, WEIGHT_DECAY, Workload, batch, measure
from llmscale.model.huggingface import hugging_face_config


def main() -> None:
    workload = Workload.from_command_line()
    torch.set_num_threads(workload.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build(workload, device)
    optimizer = torch.optim.AdamW(
        model.parameters(), LEARNING_RATE, betas=BETAS, eps=EPSILON, weight_decay=WEIGHT_DECAY, fused=True
    )
    tokens = batch(workload).to(device)
    rows = workload.micro_batch_size
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step() -> float:
        total = torch.zeros((), device=device)
        for part, labels in zip(inputs.split(rows), targets.split(rows)):
            loss = model(input_ids=part, labels=part, shift_labels=labels, use_cache=False).loss
            loss = loss * (len(part) / len(inputs))
            loss.backward()
            total += loss.detach()  # no number yet: a GPU would be waited for in each microbatch
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(total)

    measure(workload, step)


def build(workload: Workload, device: str = "cpu") -> PreTrainedModel:
    tree = hugging_face_config(workload.model, workload.vocabulary_size, workload.sequence_length)
    config = AutoConfig.for_model(**tree, attn_implementation="sdpa")
    torch.manual_seed(0)
    with torch.device(device):
        built = AutoModelForCausalLM.from_config(config)
    built.to(dtype=torch.bfloat16 if workload.precision == "bf16" else torch.float32)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return built.train()


if __name__ == "__main__":
    main()
