"""Labelled proteins of several tasks, and the order in which training sees them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bioxfer.errors import InputError, LabelError, UsageError
from bioxfer.tasks import Task

__all__ = ["CROP", "Draw", "Draws", "Part", "check_parts", "crop_at_random"]

CROP = 512
"""Residues of a protein that one step sees; of a longer one a random stretch, another one each time."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Labelled proteins of one task.

    Attributes
    ----------
    sequences : sequence of str
        N proteins, clean upper-case residues.
    targets : ndarray (N, ...)
        Labels as `task.encode` gives them.
    task : Task
        Whose loss is minimised.
    weight : float
        Of its mean loss in the objective.
    name : str
        For messages, progress and card; that of held-out proteins is the part's whose head judges them.
    """

    sequences: Sequence[str]
    targets: npt.NDArray[Any]
    task: Task
    weight: float = 1.0
    name: str = "target"

    def as_tensor(self) -> Tensor:
        """Give the targets in the type that the task's loss takes."""
        whole = self.targets.dtype.kind == "i"
        return torch.from_numpy(np.array(self.targets, dtype=np.int64 if whole else np.float32))

    def sha256(self) -> str:
        """Hash proteins, targets and task, in 64 hex digits."""
        found = hashlib.sha256(json.dumps([self.task.to_dict(), list(self.sequences)]).encode())
        found.update(np.ascontiguousarray(self.targets).tobytes())
        return found.hexdigest()


class Draw(NamedTuple):
    """A stretch of one protein: its part's number, its own number there, and its residues."""

    part: int
    protein: int
    residues: str


class Draws:
    """Draw proteins from parts in proportion to their weights.

    Each part has an order of its own, which shows every protein before it shows one again.

    Parameters
    ----------
    parts : sequence of Part
        Where to draw from.
    generator : torch.Generator
        Chance of order and crops.
    """

    def __init__(self, parts: Sequence[Part], generator: torch.Generator) -> None:
        self.parts = parts
        self.generator = generator
        total = sum(part.weight for part in parts)
        self.shares = [part.weight / total for part in parts]
        self.credit = torch.zeros(len(parts), dtype=torch.float64)
        self.orders = [torch.empty(0, dtype=torch.int64) for _ in parts]

    def state(self) -> dict[str, Tensor]:
        """Return all that the next draws depend on, beside the parts."""
        orders = {f"order.{number}": order for number, order in enumerate(self.orders)}
        return {"generator": self.generator.get_state(), "credit": self.credit.clone(), **orders}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go back to what `state` returned."""
        self.generator.set_state(state["generator"])
        self.credit = state["credit"].clone()
        self.orders = [state[f"order.{number}"] for number in range(len(self.parts))]

    def epoch(self, *, batch_tokens: int) -> list[list[Draw]]:
        """Draw as many proteins as all parts hold.

        Parameters
        ----------
        batch_tokens : int
            Tokens of a batch, start and end of each protein included, unless one protein alone has more.
        """
        batches: list[list[Draw]] = []
        room = 0
        for _ in range(sum(len(part.sequences) for part in self.parts)):
            drawn = self.draw()
            room -= len(drawn.residues) + 2
            if room < 0:
                batches.append([])
                room = batch_tokens - len(drawn.residues) - 2
            batches[-1].append(drawn)
        return batches

    def draw(self) -> Draw:
        """Draw one protein."""
        self.credit += torch.tensor(self.shares, dtype=torch.float64)
        number = int(self.credit.argmax())
        self.credit[number] -= 1.0
        part = self.parts[number]
        if not len(self.orders[number]):
            self.orders[number] = torch.randperm(len(part.sequences), generator=self.generator)
        protein, self.orders[number] = int(self.orders[number][0]), self.orders[number][1:]
        return Draw(number, protein, crop_at_random(part.sequences[protein], self.generator))


def crop_at_random(sequence: str, generator: torch.Generator) -> str:
    """Give a random stretch of `CROP` residues, or all of a shorter protein."""
    if (idle := len(sequence) - CROP) <= 0:
        return sequence
    start = int(torch.randint(idle + 1, (1,), generator=generator))
    return sequence[start : start + CROP]


def check_parts(parts: Sequence[Part], dev: Part | None) -> None:
    """Refuse parts that cannot be learned from.

    Parameters
    ----------
    parts : sequence of Part
        What to learn from.
    dev : Part or None
        Held-out proteins of one of them.

    Raises
    ------
    UsageError
        Names or weights do not work.
    InputError
        A part holds no protein or an empty one.
    LabelError
        Proteins and targets differ in number.
    """
    names = [part.name for part in parts]
    if not parts or len(set(names)) < len(names):
        raise UsageError(f"parts are called {names}; give one at least, each with a name of its own")
    if dev is not None and dev.name not in names:
        raise UsageError(f"held-out proteins belong to {dev.name!r}, which is none of {names}; name a part")
    for part in (*parts, *([] if dev is None else [dev])):
        if not part.sequences or not all(part.sequences):
            raise InputError(f"part {part.name!r} has no protein, or an empty one; leave that out")
        if len(part.sequences) != len(part.targets):
            raise LabelError(
                f"part {part.name!r} has {len(part.sequences)} proteins and {len(part.targets)} targets; "
                f"give one target for each"
            )
        if not 0 < part.weight < math.inf:
            raise UsageError(f"the weight of part {part.name!r} is {part.weight}; give one above 0")
