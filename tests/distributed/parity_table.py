"""Prints how far every layout lies from one rank, as the table of docs/parallelism.md.

OMP_NUM_THREADS=1 python -m tests.distributed.parity_table
"""

from tests.distributed.parity import Run, largest_difference, parity_config, train
from tests.distributed.test_layout_parity import LAYOUTS, MODELS, is_possible

COLUMNS = ("llama", "llama-tied")


def main() -> None:
    for precision in ("fp32", "fp64"):
        print(f"\n{precision}, largest relative difference over 20 steps\n")
        print("| layout | model | loss | gradient norm | gradient, step 1 | weight, step 20 |")
        print("|---|---|---|---|---|---|")
        for model in COLUMNS:
            reference = train(parity_config(**MODELS[model], precision=precision))
            for layout in LAYOUTS:
                if is_possible(layout, precision):
                    run = train(parity_config(**MODELS[model], **LAYOUTS[layout], precision=precision))
                    figures = " | ".join(f"{figure:.1e}" for figure in differences(run, reference))
                    print(f"| {layout} | {model} | {figures} |", flush=True)


def differences(run: Run, reference: Run) -> list[float]:
    """Of losses, gradient norms, gradients and weights."""
    scalars = [
        max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))
        for ours, theirs in ((run.losses, reference.losses), (run.grad_norms, reference.grad_norms))
    ]
    tensors = [
        max(largest_difference(ours[name], theirs[name]) for name in theirs)
        for ours, theirs in ((run.gradients, reference.gradients), (run.weights, reference.weights))
    ]
    return scalars + tensors


if __name__ == "__main__":
    main()
