"""Adapt a backbone to labelled proteins: low-rank changes to its matrices (LoRA).

The objective is ``sum_i weight_i * mean loss_i`` over parts, such as a source and a target table. Every part
has a linear head on pooled vectors; heads start fitted to the frozen backbone, since gradients that come
through random heads distort what it knows (Kumar et al., ICLR 2022, arXiv:2202.10054). Gradients reach the
changes ``A`` and ``B`` and the heads alone (Hu et al., ICLR 2022, arXiv:2106.09685). The heads are
scaffolding: what is kept is the `Adapter`.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bioxfer.backbones import is_backbone_name, resolve_precision
from bioxfer.backbones.adapters import Adapter, BaseModel, load_adapter, read_base
from bioxfer.backbones.kernels import ROWS
from bioxfer.backbones.packing import AdaptedLinear, pack_tokens
from bioxfer.checkpoints import read_checkpoint, restoring, write_checkpoint
from bioxfer.draws import CROP, Draw, Draws, Part, check_parts, crop_at_random
from bioxfer.errors import UsageError
from bioxfer.pooling import parse_pool, pool_residues
from bioxfer.solvers import train_setting

__all__ = ["CROP", "Adapter", "Part", "Progress", "adapt", "load_adapter"]

log = logging.getLogger("bioxfer")

SCALE = 2.0  # alpha of twice the rank, as is usual
RATE = 5e-4  # at 1e-3 the loss of a small backbone leaps in the first steps
WEIGHT_DECAY = 0.01
WARMUP = 0.1  # share of the steps in which the rate rises
HEAD_PROTEINS = 1000  # of each part, for the heads to start from
HEAD_PENALTY = 0.1  # times |W|^2/2 beside the mean loss; without it heads drift off where they started

Progress = Callable[[int, Mapping[str, float], float | None], object]
"""Called after each epoch with its number, each part's mean loss in it, and the loss on held-out proteins.

Epoch 0 is the frozen backbone, of which no part's loss is told.
"""


def adapt(
    backbone: str | os.PathLike[str],
    parts: Sequence[Part],
    *,
    dev: Part | None = None,
    rank: int = 8,
    scale: float = SCALE,
    epochs: int = 5,
    patience: int = 2,
    rate: float = RATE,
    batch_tokens: int = 4096,
    pool: str = "mean+max",
    precision: str = "auto",
    device: str = "cpu",
    offline: bool = False,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_minutes: float = 5.0,
    progress: Progress | None = None,
) -> Adapter:
    """Train low-rank changes to the matrices of a backbone.

    Proteins are drawn from the parts in proportion to their weights, each part in an order of its own that
    shows all before it shows one again; the mean loss of a batch is then the weighted sum. An epoch draws as
    many as all parts hold. Proteins longer than `CROP` residues are cropped at random. The pooled vector of
    the last layer is what heads read.

    Parameters
    ----------
    backbone : str or path
        Name or weights file, as for `bioxfer.backbones.load_backbone`.
    parts : sequence of Part
        What to learn from.
    dev : Part, optional
        Held-out proteins of one of the parts. The changes of the epoch with the least loss on them are kept,
        and training stops after `patience` epochs without a new least one. Epoch 0 is the frozen backbone, so
        changes that help nowhere are kept as zeros. Without `dev` those of the last epoch are kept. Of each
        protein the backbone's window is seen, from its start.
    rank : int, optional
        Of the changes, 1 to the width of the backbone.
    scale : float, optional
        Factor on ``B A``.
    epochs : int, optional
        At most.
    patience : int, optional
        See `dev`.
    rate : float, optional
        Peak learning rate of AdamW; it rises over the first tenth of the steps and falls to zero in a
        straight line.
    batch_tokens : int, optional
        Tokens of one step, unless one protein alone has more.
    pool : str, optional
        How residues are pooled, see `bioxfer.pooling.POOLS`.
    precision : {"fp32", "bf16", "auto"}, optional
        Type of the frozen matrices; changes, heads and optimiser are float32 at any.
    device : str, optional
        Where to train.
    offline : bool, optional
        Open no socket.
    seed : int, optional
        Of order, crops and A. On one machine with as many threads the same seed gives the same bytes.
    checkpoint : path, optional
        State to write now and then and after each epoch, and to go on from if it is there; the result is the
        same bytes.
    checkpoint_minutes : float, optional
        Minutes between checkpoints inside an epoch.
    progress : callable, optional
        See `Progress`; the loss on held-out proteins is None without `dev`.

    Returns
    -------
    Adapter
        With a card of how it was trained.

    Raises
    ------
    UsageError
        An option is out of range, or the checkpoint is of another training.
    InputError, LabelError
        A part holds no protein, or as many targets do not fit.
    WeightsError
        Backbone or checkpoint cannot be used.
    """
    options: dict[str, Any] = {
        "rank": rank,
        "scale": float(scale),
        "epochs": epochs,
        "patience": patience,
        "rate": rate,
        "batch_tokens": batch_tokens,
        "pool": pool,
        "precision": resolve_precision(precision, device=device),
        "seed": seed,
    }
    _check_options(options)
    check_parts(parts, dev)
    base = read_base(backbone, offline=offline)
    training = _Training(base, parts, dev, options, device=device)
    place = None if checkpoint is None else Path(checkpoint)
    training.run(checkpoint=place, checkpoint_minutes=checkpoint_minutes, progress=progress)
    return Adapter(
        base=base.source if is_backbone_name(base.source) else os.path.abspath(base.source),
        base_fingerprint=base.fingerprint,
        scale=float(scale),
        matrices=training.best,
        card=training.card(),
    )


class _Trunk(nn.Module):
    """The backbone with its changes, and a linear head on standardised pooled vectors for each part."""

    mean: Tensor
    spread: Tensor

    def __init__(
        self, base: BaseModel, parts: Sequence[Part], options: Mapping[str, Any], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.base = base
        self.pools = parse_pool(options["pool"])
        base.round_matrices(options["precision"])
        base.attach(_start(base, options["rank"], generator), scale=options["scale"])
        self.model = base.model
        width = base.dim * len(self.pools)
        # without first weights, since to draw them moves the global random state
        self.heads = nn.ModuleList(
            nn.utils.skip_init(nn.Linear, width, part.task.n_outputs)  # type: ignore[no-untyped-call]
            for part in parts
        )
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))

    def changes(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Copy A and B of each layer, on the processor."""
        return {
            name: (layer.a.detach().cpu().clone(), layer.b.detach().cpu().clone())
            for name, layer in self.base.linear_layers().items()
            if isinstance(layer, AdaptedLinear)
        }

    def vectors(self, sequences: Sequence[str], *, device: torch.device) -> Tensor:
        """Pooled vectors of the last layer, ``(N, F)`` float32."""
        pack = pack_tokens([self.base.tokenize(s) for s in sequences], device=device, multiple=ROWS)
        (hidden,) = self.model(pack, layers=[self.base.n_layers])
        return torch.stack(
            [
                torch.cat([pool_residues(states[1:-1], states[0], pool) for pool in self.pools])
                for states in pack.unpack(hidden)
            ]
        )

    def forward(self, vectors: Tensor, number: int) -> Tensor:
        """Return outputs ``(N, C)`` of one part's head for ``vectors: (N, F)``."""
        outputs: Tensor = self.heads[number]((vectors - self.mean) / self.spread)
        return outputs

    def penalty(self, number: int) -> Tensor:
        """Return what a head's weights cost beside its loss, as when the head was fitted."""
        weight = self.heads[number].weight
        assert isinstance(weight, Tensor)
        return 0.5 * HEAD_PENALTY * weight.square().sum()


def _start(base: BaseModel, rank: int, generator: torch.Generator) -> dict[str, tuple[Tensor, Tensor]]:
    """Draw A as nn.Linear does, and give B zeros, so that at first nothing changes."""
    layers = base.linear_layers()
    most = min(min(layer.weight.shape) for layer in layers.values())
    if not 1 <= rank <= most:
        raise UsageError(f"rank {rank} is out of range for {base.name}; choose 1 to {most}")
    start = {}
    for name, layer in layers.items():
        bound = layer.in_features**-0.5
        a = torch.empty(rank, layer.in_features).uniform_(-bound, bound, generator=generator)
        start[name] = (a, torch.zeros(layer.out_features, rank))
    return start


class _Training:
    """All that changes while a backbone is adapted, and goes into a checkpoint."""

    def __init__(
        self,
        base: BaseModel,
        parts: Sequence[Part],
        dev: Part | None,
        options: Mapping[str, Any],
        *,
        device: str,
    ) -> None:
        self.base, self.parts, self.dev, self.options = base, parts, dev, options
        self.device = torch.device(device)
        self.generator = torch.Generator().manual_seed(options["seed"])
        self.trunk = _Trunk(base, parts, options, self.generator).to(self.device)
        self.draws = Draws(parts, self.generator)
        self.targets = [part.as_tensor().to(self.device) for part in parts]
        self.history: list[dict[str, Any]] = []
        self.best = self.trunk.changes()
        self.best_epoch = 0
        self.begin_epoch()
        trained = [p for p in self.trunk.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=options["rate"], weight_decay=WEIGHT_DECAY)

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.history) - 1

    def begin_epoch(self) -> None:
        """Set the counts of the next epoch to nothing, and note where its draws begin."""
        self.batches = 0
        self.sums, self.counts = [0.0] * len(self.parts), [0] * len(self.parts)
        self.drawn_from = self.draws.state()

    def run(self, *, checkpoint: Path | None, checkpoint_minutes: float, progress: Progress | None) -> None:
        """Train to the end, from the checkpoint if it is there."""
        if checkpoint is not None and checkpoint.exists():
            with restoring(checkpoint):
                self.restore(checkpoint)
            log.info("going on after epoch %d and %d steps of %s", self.epoch, self.batches, checkpoint)
        else:
            self.start_heads()
            self.history.append({"epoch": 0, "losses": {}, "dev": self.dev_loss()})
            self.begin_epoch()
            if checkpoint is not None:
                self.save(checkpoint)
            if progress is not None:
                progress(0, {}, self.history[0]["dev"])
        saved = time.monotonic()
        while self.epoch < self.options["epochs"] and not self.has_stalled():
            batches = self.draws.epoch(batch_tokens=self.options["batch_tokens"])
            for batch in batches[self.batches :]:
                self.learn(batch, done=self.epoch + (self.batches + 0.5) / len(batches))
                self.batches += 1
                if checkpoint is not None and time.monotonic() - saved > 60 * checkpoint_minutes:
                    self.save(checkpoint)
                    saved = time.monotonic()
            # a part of small weight may have been drawn from not once
            losses = {
                part.name: total / count
                for part, total, count in zip(self.parts, self.sums, self.counts, strict=True)
                if count
            }
            held_out = self.dev_loss()
            self.begin_epoch()
            if held_out is None or held_out < min(entry["dev"] for entry in self.history):
                self.best, self.best_epoch = self.trunk.changes(), self.epoch + 1
            self.history.append({"epoch": self.epoch + 1, "losses": losses, "dev": held_out})
            if checkpoint is not None:
                self.save(checkpoint)
            if progress is not None:
                progress(self.epoch, losses, held_out)

    def has_stalled(self) -> bool:
        """Tell whether the last `patience` epochs all failed to find a new least loss."""
        return self.dev is not None and self.epoch - self.best_epoch >= self.options["patience"]

    @torch.no_grad()
    def start_heads(self) -> None:
        """Fit the heads to the frozen backbone."""
        tables = []
        for part, targets in zip(self.parts, self.targets, strict=True):
            chosen = torch.randperm(len(part.sequences), generator=self.generator)[:HEAD_PROTEINS]
            crops = [crop_at_random(part.sequences[n], self.generator) for n in chosen.tolist()]
            tables.append((self.embed(crops), targets[chosen]))
        every = torch.cat([vectors for vectors, _ in tables])
        spread, mean = torch.std_mean(every, dim=0, correction=0)
        self.trunk.mean.copy_(mean)
        self.trunk.spread.copy_(torch.where(spread > 1e-6, spread, 1.0))
        for number, ((vectors, targets), part) in enumerate(zip(tables, self.parts, strict=True)):
            standard = ((vectors - self.trunk.mean) / self.trunk.spread).cpu().numpy()
            setting = {"penalty": HEAD_PENALTY}
            with torch.enable_grad():
                fitted = train_setting("linear", standard, targets.cpu().numpy(), part.task, 0, setting)
            for name, parameter in self.trunk.heads[number].named_parameters():
                parameter.copy_(torch.from_numpy(fitted[name]))

    @torch.no_grad()
    def embed(self, sequences: Sequence[str]) -> Tensor:
        """Pooled vectors of any number of proteins, ``(N, F)``."""
        order = sorted(range(len(sequences)), key=lambda n: len(sequences[n]))
        found: list[Tensor] = [torch.empty(0)] * len(sequences)
        while order:
            batch, room = [order.pop()], self.options["batch_tokens"]
            while order and (len(batch) + 1) * (len(sequences[batch[0]]) + 2) <= room:
                batch.append(order.pop())
            vectors = self.trunk.vectors([sequences[n] for n in batch], device=self.device)
            for place, vector in zip(batch, vectors, strict=True):
                found[place] = vector
        return torch.stack(found)

    def dev_loss(self) -> float | None:
        """Return the mean loss on held-out proteins, None without any."""
        if (dev := self.dev) is None:
            return None
        number = [part.name for part in self.parts].index(dev.name)
        vectors = self.embed([sequence[: self.base.window] for sequence in dev.sequences])
        with torch.no_grad():
            outputs = self.trunk(vectors, number)
            loss = float(dev.task.loss(outputs, dev.as_tensor().to(self.device)))
        return self.checked(loss, "the loss on held-out proteins")

    def learn(self, batch: Sequence[Draw], *, done: float) -> None:
        """Take one step when so many epochs are done."""
        vectors = self.trunk.vectors([drawn.residues for drawn in batch], device=self.device)
        total = torch.zeros((), device=self.device)
        for number in sorted({drawn.part for drawn in batch}):
            members = [i for i, drawn in enumerate(batch) if drawn.part == number]
            targets = self.targets[number][[batch[i].protein for i in members]]
            loss = self.parts[number].task.loss(self.trunk(vectors[members], number), targets)
            total = total + len(members) * (loss + self.trunk.penalty(number))
            self.sums[number] += len(members) * loss.item()
            self.counts[number] += len(members)
        # parts are drawn in proportion to their weights, so the mean over proteins weighs them so
        total = total * (sum(part.weight for part in self.parts) / len(batch))
        self.checked(total.item(), "the loss")
        self.optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.optimizer.param_groups[0]["params"], 1.0)
        share = done / self.options["epochs"]
        for group in self.optimizer.param_groups:
            group["lr"] = self.options["rate"] * min(share / WARMUP, (1.0 - share) / (1.0 - WARMUP))
        self.optimizer.step()

    def checked(self, loss: float, what: str) -> float:
        """Return a loss that is a number, and refuse one that is none."""
        if not math.isfinite(loss):
            raise UsageError(
                f"{what} became {loss} after epoch {self.epoch}; give a rate below {self.options['rate']}"
            )
        return loss

    def card(self) -> dict[str, Any]:
        """How the changes were trained, as JSON values."""
        return {
            "method": "LoRA: low-rank changes to all linear layers of all blocks",
            "base": self.base.name,
            "base_fingerprint": self.base.fingerprint,
            **self.options,
            "crop": CROP,
            "parts": [
                {
                    "name": part.name,
                    "task": part.task.name,
                    "weight": part.weight,
                    "proteins": len(part.sequences),
                    "cropped": sum(len(sequence) > CROP for sequence in part.sequences),
                    "sha256": part.sha256(),
                }
                for part in self.parts
            ],
            "dev": None if self.dev is None else {"name": self.dev.name, "proteins": len(self.dev.sequences)},
            "history": copy.deepcopy(self.history),
            "best_epoch": self.best_epoch,
            "trained": sum(a.numel() + b.numel() for a, b in self.best.values()),
            "torch": torch.__version__,
        }

    def identity(self) -> dict[str, Any]:
        """Return what must be the same for a checkpoint to be gone on from."""
        return {
            "base": self.base.fingerprint,
            "options": dict(self.options),
            "parts": [[part.name, part.weight, part.sha256()] for part in self.parts],
            "dev": None if self.dev is None else [self.dev.name, self.dev.sha256()],
        }

    def _own(self) -> dict[str, Tensor]:
        """Every tensor of the trunk that is not the base's."""
        names = [name for name, p in self.trunk.named_parameters() if p.requires_grad]
        state = self.trunk.state_dict()
        return {name: state[name] for name in [*names, "mean", "spread"]}

    def save(self, path: Path) -> None:
        """Write the checkpoint; it appears whole or not at all."""
        tensors = {f"trunk.{name}": tensor for name, tensor in self._own().items()}
        for place, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{place}.{key}": torch.as_tensor(value) for key, value in state.items()}
        tensors |= {f"best.{layer}.a": a for layer, (a, _) in self.best.items()}
        tensors |= {f"best.{layer}.b": b for layer, (_, b) in self.best.items()}
        tensors |= {f"draws.{name}": tensor for name, tensor in self.drawn_from.items()}
        state = {
            "identity": self.identity(),
            "history": self.history,
            "best_epoch": self.best_epoch,
            "batches": self.batches,
            "sums": self.sums,
            "counts": self.counts,
        }
        write_checkpoint(path, state, tensors, sort="an adaptation")

    def restore(self, path: Path) -> None:
        """Go back to what a checkpoint holds."""
        state, tensors = read_checkpoint(path, sort="an adaptation")
        identity = state["identity"]
        own = json.loads(json.dumps(self.identity()))
        if changed := [key for key in own if identity.get(key) != own[key]]:
            raise UsageError(
                f"{path}: the checkpoint was made with another {' and other '.join(changed)}; "
                f"give the same, or another checkpoint"
            )
        with torch.no_grad():
            for name, tensor in self._own().items():
                tensor.copy_(tensors[f"trunk.{name}"])
        whole = self.optimizer.state_dict()
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, place, key = name.split(".")
                whole["state"].setdefault(int(place), {})[key] = tensor
        self.optimizer.load_state_dict(whole)
        self.best = {
            layer: (tensors[f"best.{layer}.a"], tensors[f"best.{layer}.b"]) for layer in self.trunk.changes()
        }
        self.draws.restore({n[len("draws.") :]: t for n, t in tensors.items() if n.startswith("draws.")})
        self.begin_epoch()
        self.batches, self.sums, self.counts = state["batches"], state["sums"], state["counts"]
        self.history, self.best_epoch = state["history"], state["best_epoch"]


def _check_options(options: Mapping[str, Any]) -> None:
    if options["precision"] == "fp16":
        raise UsageError("precision fp16 cannot train, as small gradients vanish in it; choose bf16 or fp32")
    for name in ("epochs", "patience"):
        if options[name] < 1:
            raise UsageError(f"{name} is {options[name]}; give 1 or more")
    for name in ("rate", "scale"):
        if not 0 < options[name] < math.inf:
            raise UsageError(f"{name} is {options[name]}; give a finite number above 0")
    if options["batch_tokens"] < CROP + 2:
        raise UsageError(f"batch_tokens is {options['batch_tokens']}; a step needs {CROP + 2} at least")
