"""TRL's own code for advantages and losses, called with numbers in place of a model, prompts and rewards.

The trainers are real objects that were never set up: they have what the called method reads, and answers,
rewards and log-probabilities are given in place of generated ones.
"""

import inspect
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from trl import GRPOTrainer, RLOOTrainer

LENGTH = 6
"""Tokens of the longest answer."""


def _bare(trainer: type[Any], **attributes: Any) -> Any:
    made = object.__new__(trainer)
    model: Any = torch.nn.Linear(1, 1)
    model.is_gradient_checkpointing = False
    vars(made).update(
        accelerator=Accelerator(cpu=True),
        model=model,
        ref_model=model,
        args=SimpleNamespace(
            report_to=[],
            per_device_train_batch_size=64,
            gradient_checkpointing_kwargs=None,
            delta=None,
            use_bias_correction_kl=False,
            steps_per_generation=1,
            gradient_accumulation_steps=1,
        ),
        aux_loss_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        **attributes,
    )
    return made


def _scoring(trainer: type[Any], rewards_N: Tensor, learned_NS: Tensor, size: int, **attributes: Any) -> Any:
    """One whose answers, of the lengths of `learned_NS`, have these rewards."""
    lengths = learned_NS.sum(1).tolist()
    answers = [[1] * length for length in lengths]
    made = _bare(
        trainer,
        _tokenizer=SimpleNamespace(pad_token_id=0),
        pad_to_multiple_of=None,
        mask_truncated_completions=False,
        num_generations=size,
        num_iterations=1,
        reward_funcs=[None],
        reward_weights=torch.ones(1),
        reward_func_names=["given"],
        environment_factories=None,
        environments=None,
        tools=None,
        use_vllm=False,
        log_multimodal=False,
        _pending_extra_logs={},
        _pending_metrics={},
        _logs=defaultdict(lambda: defaultdict(list), prompt=[], completion=[], advantages=[]),
        **attributes,
    )
    made._calculate_rewards = lambda *_: rewards_N[:, None].clone()
    return made, answers


def _advantages(trainer: Any, prompts: int) -> Tensor:
    return trainer._generate_and_score_completions([{"prompt": "x"}] * prompts)["advantages"]


def grpo_advantages(rewards_N: Tensor, learned_NS: Tensor, size: int, scale: str) -> Tensor:
    """[N], of groups of `size` neighbours."""
    trainer, answers = _scoring(
        GRPOTrainer,
        rewards_N,
        learned_NS,
        size,
        beta=0.0,
        scale_rewards=scale,
        multi_objective_aggregation="sum_then_normalize",
    )
    prompts = [[1]] * len(answers)
    trainer._generate = lambda _: (prompts, answers, None, [""] * len(answers), None, {}, None, None)
    return _advantages(trainer, len(answers))


def rloo_advantages(
    rewards_N: Tensor, learned_NS: Tensor, size: int, beta: float, old_NS: Tensor, reference_NS: Tensor
) -> Tensor:
    """[N], of groups of `size` neighbours, the divergence from the reference taken from the rewards."""
    trainer, answers = _scoring(
        RLOOTrainer,
        rewards_N,
        learned_NS,
        size,
        beta=beta,
        reward_clip_range=None,
        normalize_advantages=False,
    )
    trainer._generate = lambda _: ([[1]] * len(answers), answers, [""] * len(answers))
    told = iter((old_NS, reference_NS))
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (next(told), None, None)
    return _advantages(trainer, len(answers))


def _inputs(learned_NS: Tensor) -> dict[str, Tensor]:
    prompt_NS = torch.ones(len(learned_NS), 1, dtype=torch.int64)
    return {
        "prompt_ids": prompt_NS,
        "prompt_mask": prompt_NS,
        "completion_ids": torch.ones_like(learned_NS, dtype=torch.int64),
        "completion_mask": learned_NS.long(),
    }


def grpo_loss(
    policy_NS: Tensor,
    entropy_NS: Tensor,
    learned_NS: Tensor,
    signals: dict[str, Tensor],
    loss_type: str,
    ratio: str,
    clip: float,
    clip_high: float,
    **options: Any,
) -> Tensor:
    """A scalar.

    Args:
        signals: by TRL's names.
        options: `beta`, `delta`, `weighted` (the divergence by the ratio), `entropy`, `longest`.
    """
    trainer = _bare(
        GRPOTrainer,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=ratio,
        beta=options.get("beta", 0.0),
        loss_type=loss_type,
        epsilon_low=clip,
        epsilon_high=clip_high,
        use_vllm="importance_sampling_ratio" in signals,
        vllm_importance_sampling_correction=True,
        current_gradient_accumulation_steps=1,
        max_completion_length=options.get("longest", LENGTH),
        _entropy_bonus_enabled="entropy" in options,
        entropy_coef=options.get("entropy", 0.0),
        use_adaptive_entropy=False,
    )
    trainer.args.delta = options.get("delta")
    trainer.args.use_bias_correction_kl = options.get("weighted", False)
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (policy_NS, entropy_NS, None)
    inputs = {**_inputs(learned_NS), **signals, "num_items_in_batch": learned_NS.sum()}
    return inspect.unwrap(trainer._compute_loss)(trainer.model, inputs)


def rloo_loss(
    policy_NS: Tensor,
    learned_NS: Tensor,
    old_NS: Tensor,
    advantages_N: Tensor,
    clip: float,
    clip_high: float,
) -> Tensor:
    """A scalar."""
    trainer = _bare(RLOOTrainer, epsilon_low=clip, epsilon_high=clip_high, beta=0.0)
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (policy_NS, policy_NS.detach(), None)
    signals = {"old_logps": (old_NS * learned_NS).sum(1), "advantages": advantages_N}
    return inspect.unwrap(trainer._compute_loss)(trainer.model, {**_inputs(learned_NS), **signals})
