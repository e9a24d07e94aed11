"""Decisions that all ranks share: one rank decides, and an error on one rank is an error on all.

Used in the foreground only. Values travel as JSON, never as pickles.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from llmscale.checkpoint.errors import CheckpointError, DamagedCheckpoint
from llmscale.config.problems import InputError, Problem


@dataclass(frozen=True)
class Agreement:
    rank: int
    world_size: int
    group: dist.ProcessGroup | None
    """Gloo group over all ranks; None where there is one rank."""

    def __post_init__(self) -> None:
        if self.world_size > 1 and self.group is None:
            raise ValueError("several ranks need a process group to agree")

    def decide(self, mine: Any, rule: Callable[[list[Any]], Any]) -> Any:
        """`rule` sees every rank's JSON value, by rank, on rank 0; all ranks get what it returns.

        Raises:
            InputError: the rule raised it; on all ranks.
            CheckpointError: the rule raised something else; on all ranks.
        """
        answer: dict[str, Any] = {}
        values = self._gather(mine)
        if self.rank == 0:
            try:
                answer = {"result": rule(values)}
            except InputError as error:
                answer = {"problems": [[one.key, str(one.value), one.message] for one in error.problems]}
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
        answer = self._broadcast(answer)
        if "problems" in answer:
            raise InputError([Problem(*problem) for problem in answer["problems"]])
        if "error" in answer:
            raise CheckpointError(answer["error"])
        return answer["result"]

    def attempt(self, work: Callable[[], Sequence[str]]) -> list[str]:
        """Each rank does its work; all get all ranks' faults (what it returned, or the damage it met).

        Raises:
            CheckpointError: another exception on any rank, on all ranks.
        """
        faults: list[str] = []
        error = None
        try:
            faults = list(work())
        except DamagedCheckpoint as damage:
            faults = [str(damage)]
        except Exception as failure:
            error = f"rank {self.rank}: {type(failure).__name__}: {failure}"
        everyone = self.decide({"faults": faults, "error": error}, lambda values: values)
        errors = [one["error"] for one in everyone if one["error"]]
        if errors:
            raise CheckpointError("; ".join(errors))
        return list(dict.fromkeys(fault for one in everyone for fault in one["faults"]))

    def require(self, work: Callable[[], object]) -> None:
        """All ranks do it, or all raise.

        Raises:
            CheckpointError: it went wrong on some rank.
        """

        def without_faults() -> list[str]:
            work()
            return []

        faults = self.attempt(without_faults)
        if faults:
            raise DamagedCheckpoint("; ".join(faults))

    def _gather(self, mine: Any) -> list[Any]:
        """All ranks' values on rank 0, nothing elsewhere."""
        if self.world_size == 1:
            return [_from_tensor(_to_tensor(mine))]
        data = _to_tensor(mine)
        sizes = [torch.zeros(1, dtype=torch.int64, device="cpu") for _ in range(self.world_size)]
        dist.all_gather(sizes, torch.tensor([data.numel()], device="cpu"), group=self.group)
        longest = max(int(size) for size in sizes)
        padded = torch.zeros(longest, dtype=torch.uint8, device="cpu")
        padded[: data.numel()] = data
        received = [torch.empty_like(padded) for _ in sizes] if self.rank == 0 else None
        dist.gather(padded, received, group=self.group, group_dst=0)
        return [_from_tensor(data[: int(size)]) for data, size in zip(received or [], sizes)]

    def _broadcast(self, value: Any) -> Any:
        if self.world_size == 1:
            return _from_tensor(_to_tensor(value))
        data = _to_tensor(value)
        size = torch.tensor([data.numel()], device="cpu")
        dist.broadcast(size, group=self.group, group_src=0)
        if self.rank != 0:
            data = torch.empty(int(size), dtype=torch.uint8, device="cpu")
        dist.broadcast(data, group=self.group, group_src=0)
        return _from_tensor(data)


def _to_tensor(value: Any) -> torch.Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _from_tensor(data: torch.Tensor) -> Any:
    return json.loads(data.numpy().tobytes())
