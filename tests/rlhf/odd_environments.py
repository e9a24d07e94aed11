"""Environments that go wrong, for tests."""

import os
import time
from collections.abc import Mapping
from typing import Any


class Obedient:
    """Does what it is told, and says so."""

    def reset(self, record: Mapping[str, Any]) -> list[dict[str, str]]:
        if record.get("bad"):
            raise ValueError("a bad record")
        self.said = 0
        return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Begin."}]

    def step(self, completion: str) -> tuple[list[dict[str, str]], Any, bool]:
        self.said += 1
        if completion == "hang":
            time.sleep(1000)
        if completion == "die":
            os._exit(1)
        if completion == "odd":
            return [{"role": "user", "content": "?"}], "a lot", False
        if completion == "silent":
            return [], 0.0, False
        if completion == "wait":
            time.sleep(0.5)
        if completion == "end":
            return [], 1.0, True
        return [{"role": "user", "content": f"That was {completion!r}, number {self.said}."}], 0.25, False


class WithoutStep:
    def reset(self, record: Mapping[str, Any]) -> list[dict[str, str]]:
        return []
