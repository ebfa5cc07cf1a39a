"""Train an embedded backbone: masked residues, and source tasks beside them.

The objective is ``L = L_mlm + λ · Σ L_source``, with one λ for sources that label
residues and a smaller one for those that label proteins. Every batch is a pack of
crops from the corpus, masked and predicted, and, at a chosen share, of proteins
from labelled source tables, which answer for every table that knows them.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bioxfer.backbones import resolve_precision
from bioxfer.backbones.compact import BOS, EOS, CompactBlock, CompactConfig, CompactModel, save_compact
from bioxfer.checkpoints import read_checkpoint, restoring, write_checkpoint
from bioxfer.corpus import (
    IGNORED,
    Batch,
    Corpus,
    CropSampler,
    SourceTable,
    count_residues,
    mask_all,
    name_source,
    read_source,
    read_test_proteins,
)
from bioxfer.errors import InputError, UsageError
from bioxfer.genes import Translation
from bioxfer.pooling import POOLS, pool_residues

__all__ = ["PretrainOptions", "learning_rate_at", "masked_perplexity", "pretrain"]

log = logging.getLogger("bioxfer")

CHANGEABLE = (
    "minutes",
    "steps",
    "learning_rate",
    "lam",
    "lam_proteins",
    "source_share",
    "source_weights",
    "compiled",
)
"""Options that may be others when training goes on from a checkpoint; the card tells each stage."""

_SORT = "a pretraining"  # of checkpoint
MASKED = "mlm"  # what the card's history calls the loss on masked residues


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainOptions:
    """How to train; every field is written to the card.

    Attributes
    ----------
    width, layers, attention, window : int, int, tuple of int or None, int
        Shape, see `CompactConfig`. ``None`` stands for those of the blocks 3 and 5 that there are.
    minutes : float or None
        Training time; the learning-rate schedule follows the clock. Exactly one
        of `minutes` and `steps` is given.
    steps : int or None
        Number of optimiser steps; the schedule follows the steps.
    batch_tokens : int
        Tokens of one step.
    crop, long_crop, long_share : int, int, float
        Crops are `crop` tokens long at most, a share of them `long_crop`.
    learning_rate : float
        Peak, reached after the first 2% and then falling to zero in a straight line.
    weight_decay : float
        Decoupled, on matrices.
    optimizer : {"muon", "adamw"}
        What moves the matrices inside the blocks; the rest is AdamW's.
    mask_share : float
        Share of residues that are asked for.
    lam : float
        Weight λ of the source tasks that label residues.
    lam_proteins : float
        Weight of those that label proteins. A step holds thousands of labelled residues but only a few
        labelled proteins, whose gradient is that much noisier.
    source_share : float
        Share of the tokens that come from source tables.
    source_weights : tuple of float
        Factor on each source's share of those, in the sources' order; all 1 if empty.
    source_mask_share : float
        Share of the residues of source proteins that are asked for.
    compiled : bool
        Whether to compile the blocks, for which torch needs a C++ compiler.
    seed : int
        Of everything random.
    """

    width: int = 256
    layers: int = 6
    attention: tuple[int, ...] | None = None
    window: int = 1022
    minutes: float | None = None
    steps: int | None = None
    batch_tokens: int = 8192
    crop: int = 256
    long_crop: int = 1024
    long_share: float = 0.1
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    optimizer: str = "muon"
    mask_share: float = 0.15
    lam: float = 1.0
    lam_proteins: float = 0.2
    source_share: float = 0.85
    source_weights: tuple[float, ...] = ()
    source_mask_share: float = 0.0
    compiled: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise UsageError("give either minutes or steps, and not both")
        if (self.minutes is not None and self.minutes <= 0) or (self.steps is not None and self.steps < 1):
            raise UsageError(f"minutes {self.minutes} and steps {self.steps}: the one given must be above 0")
        if self.batch_tokens < 512:
            raise UsageError(f"batch_tokens is {self.batch_tokens}; a step needs 512 at least")
        for value in (self.lam, self.lam_proteins):
            if value < 0 or not math.isfinite(value):
                raise UsageError(f"λ is {value}; it must be a finite number that is not negative")
        if self.optimizer not in ("muon", "adamw"):
            raise UsageError(f"optimizer is {self.optimizer!r}; choose 'muon' or 'adamw'")
        if self.width % 64 or self.width <= 0 or self.layers < 1:
            raise UsageError(
                f"width {self.width} must be a multiple of 64, and layers {self.layers} at least 1"
            )
        if self.attention is None:  # written out, for the card to tell what was built
            object.__setattr__(self, "attention", tuple(n for n in (3, 5) if n <= self.layers))
        if strange := [n for n in self.attention or () if not 1 <= n <= self.layers]:
            raise UsageError(
                f"attention names block {strange[0]} of {self.layers}; name blocks from 1 to {self.layers}"
            )


class _Trunk(nn.Module):
    """The backbone with one linear read-out per source output.

    Classes of residues are read from their own vectors, classes and numbers of proteins from their
    `POOLS` joined, which is what a head may read later.
    """

    def __init__(self, model: CompactModel, sources: Sequence[SourceTable]) -> None:
        super().__init__()
        self.model = model
        self.kinds = [source.kind for source in sources]
        width = model.config.width
        self.read_outs = nn.ModuleList(
            nn.ModuleList(
                nn.Linear(width if source.kind == "residues" else width * len(POOLS), count)
                for count in source.classes
            )
            for source in sources
        )
        for parameter in self.read_outs.parameters():
            nn.init.zeros_(parameter)

    def losses(self, batch: Batch) -> dict[int, Tensor]:
        """Losses of one batch: -1 is the masked residues, others by source number."""
        (hidden,) = self.model(batch.pack)
        found = {}
        if len(batch.answers):
            found[-1] = F.cross_entropy(self.model.lm_head(hidden[batch.asked]).float(), batch.answers)
        for source, (places, classes) in batch.residue_targets.items():
            if len(classes):
                logits = self._outputs(source)[0](hidden[places]).float()
                found[source] = F.cross_entropy(logits, classes)
        pooled = _pool_segments(hidden, batch) if batch.protein_targets else {}
        for source, (members, table) in batch.protein_targets.items():
            vectors = torch.stack([pooled[place] for place in members.tolist()])
            parts = [
                _protein_loss(output(vectors).float(), table[:, column], self.kinds[source])
                for column, output in enumerate(self._outputs(source))
                if bool((table[:, column] != IGNORED).any())
            ]
            if parts:
                found[source] = torch.stack(parts).mean()
        return found

    def _outputs(self, source: int) -> nn.ModuleList:
        outputs = self.read_outs[source]
        assert isinstance(outputs, nn.ModuleList)
        return outputs


def _protein_loss(outputs: Tensor, targets: Tensor, kind: str) -> Tensor:
    if kind == "number":
        return 0.5 * F.huber_loss(outputs[:, 0], targets)
    return F.cross_entropy(outputs, targets)


def _pool_segments(hidden: Tensor, batch: Batch) -> dict[int, Tensor]:
    """Vectors of the sequences that a source asks about, every pooling joined, by their place in the pack.

    Residues alone are pooled. A crop that lacks the start of its protein has no token before the first
    residue; ``cls`` is the vector of its first residue then.
    """
    wanted = sorted({place for members, _ in batch.protein_targets.values() for place in members.tolist()})
    parts = torch.split(hidden, list(batch.pack.lengths))
    tokens = torch.split(batch.pack.tokens, list(batch.pack.lengths))
    pooled = {}
    for place in wanted:
        first, last = int(tokens[place][0] == BOS), len(tokens[place]) - int(tokens[place][-1] == EOS)
        residues = parts[place][first:last]
        pooled[place] = torch.cat([pool_residues(residues, parts[place][0], pool) for pool in POOLS])
    return pooled


def masked_perplexity(
    model: CompactModel,
    proteins: Corpus,
    *,
    reference: Corpus | None = None,
    batch_tokens: int = 16_384,
    mask_share: float = 0.15,
    seed: int = 1,
) -> dict[str, float]:
    """Perplexity on masked residues, beside two models that know no context.

    Everything asked for is hidden; nothing is left to copy.

    Parameters
    ----------
    model : CompactModel
        The model to judge.
    proteins : Corpus
        Held-out proteins; each is seen up to the model's window.
    reference : Corpus, optional
        Where the baselines count residues and residue pairs; none are given without it.
    batch_tokens : int, optional
        Tokens of one pass.
    mask_share : float, optional
        Share of residues asked for.
    seed : int, optional
        Of the mask; the same seed asks for the same residues.

    Returns
    -------
    dict
        ``perplexity``, ``accuracy``, ``residues_asked`` and, with `reference`,
        ``unigram`` and ``previous_residue`` perplexities at the same places.

    Raises
    ------
    InputError
        If the mask asks for no residue.
    """
    masked = partial(
        mask_all, proteins, limit=model.config.window + 2, room=batch_tokens, share=mask_share, seed=seed
    )
    _check_asked(masked(), f"{len(proteins)} proteins")
    total, right, count = 0.0, 0, 0
    single, double = 0.0, 0.0
    if reference is not None:
        log_single, log_double = count_residues(reference)
    training = model.training
    model.eval()
    for crops, batch in masked():
        with torch.inference_mode(), _autocast():
            (hidden,) = model(batch.pack)
            logits = model.lm_head(hidden[batch.asked]).float()
        total += float(F.cross_entropy(logits, batch.answers, reduction="sum"))
        right += int((logits.argmax(1) == batch.answers).sum())
        count += len(batch.answers)
        if reference is not None:
            clear = np.concatenate([crops[i] for i in batch.pack.order])
            asked, answers = batch.asked.numpy(), batch.answers.numpy()
            single -= float(log_single[answers].sum())
            double -= float(log_double[clear[asked - 1], answers].sum())
    model.train(training)
    scores = {
        "perplexity": math.exp(total / count),
        "accuracy": right / count,
        "residues_asked": float(count),
    }
    if reference is not None:
        scores |= {"unigram": math.exp(single / count), "previous_residue": math.exp(double / count)}
    return scores


def _check_asked(masked: Iterator[tuple[Any, Batch]], what: str) -> None:
    if not any(len(batch.answers) for _, batch in masked):
        raise InputError(f"{what}: the mask asks for no residue; give more proteins, or longer ones")


def _autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=resolve_precision("auto", device="cpu") == "bf16")


def _optimizers(trunk: _Trunk, options: PretrainOptions) -> list[torch.optim.Optimizer]:
    matrices, others, plain = [], [], []
    for name, parameter in trunk.named_parameters():
        inside = "blocks" in name and parameter.ndim == 2 and "neighbours" not in name
        if inside and options.optimizer == "muon":
            matrices.append(parameter)
        elif parameter.ndim == 2:
            others.append(parameter)
        else:
            plain.append(parameter)
    groups = [
        {"params": others, "weight_decay": options.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.98), eps=1e-8)
    ]
    if matrices:
        found.append(
            torch.optim.Muon(
                matrices,
                lr=options.learning_rate,
                weight_decay=options.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return found


def learning_rate_at(progress: float, *, warmup: float = 0.02) -> float:
    """Factor on the peak learning rate when ``progress`` (0 to 1) of the training is done."""
    if progress < warmup:
        return max(progress, 1e-3 * warmup) / warmup
    return max(0.0, (1.0 - progress) / (1.0 - warmup))


def pretrain(
    corpus: Sequence[str | Path],
    out: str | Path,
    *,
    options: PretrainOptions,
    translation: Translation | None = None,
    valid: str | Path | None = None,
    sources: Sequence[str | Path] = (),
    exclude: Sequence[str | Path] = (),
    licence: str = "not stated",
    checkpoint: str | Path | None = None,
    checkpoint_minutes: float = 5.0,
    report_every: int = 100,
    progress: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Train a compact backbone and write its weights with their card.

    Parameters
    ----------
    corpus, translation
        Files for `Corpus.read`, and how nucleotides in them and in `valid` become proteins.
    out : path
        Weights to write, ``.safetensors``.
    options : PretrainOptions
        How to train.
    valid : path, optional
        Held-out proteins for the perplexity.
    sources : sequence of path
        Tables for `read_source`.
    exclude : sequence of path
        Tables of test proteins, see `read_test_proteins`; source rows that resemble one are left out.
    licence : str, optional
        Of corpus and sources, for the card.
    checkpoint : path, optional
        State to write now and then, and to go on from if it is there.
    checkpoint_minutes : float, optional
        Minutes between checkpoints.
    report_every : int, optional
        Steps between lines of progress in the log.
    progress : callable, optional
        Called with the number of steps done, after each.

    Returns
    -------
    dict
        The card.
    """
    if options.source_weights and len(options.source_weights) != len(sources):
        raise UsageError(
            f"{len(options.source_weights)} weights for {len(sources)} sources; give one for each, or none"
        )
    _check_names([name_source(path) for path in sources])
    proteins = Corpus.read(corpus, translation)
    if not len(proteins):
        raise InputError(
            f"{', '.join(map(str, corpus))}: no sequence to learn from; give a FASTA with proteins"
        )
    held_out = Corpus.read([valid], translation) if valid is not None else None
    if held_out is not None and not len(held_out.tokens):
        raise InputError(f"{valid}: no sequence to validate on; give a file with proteins or leave it out")
    if held_out is not None:
        _check_asked(mask_all(held_out, limit=options.window + 2), str(valid))
    unlike = [sequence for path in exclude for sequence in read_test_proteins(path)]
    tables = [read_source(path, unlike=unlike) for path in sources]
    torch.manual_seed(options.seed)
    model = CompactModel(
        CompactConfig(
            width=options.width,
            layers=options.layers,
            attention=options.attention or (),
            window=options.window,
        )
    )
    trunk = _Trunk(model, tables)
    optimizers = _optimizers(trunk, options)
    sampler = CropSampler(
        proteins,
        tables,
        batch_tokens=options.batch_tokens,
        crop=options.crop,
        long_crop=options.long_crop,
        long_share=options.long_share,
        source_share=options.source_share,
        mask_share=options.mask_share,
        source_mask_share=options.source_mask_share,
        seed=options.seed,
        weights=options.source_weights or None,
    )
    data = {
        "corpus": [len(proteins), len(proteins.tokens), proteins.sha256],
        "sources": [[table.name, len(table.proteins), *table.classes, table.sha256] for table in tables],
    }
    names = {-1: MASKED} | {number: table.name for number, table in enumerate(tables)}
    weights = {-1: 1.0} | {
        number: options.lam if table.kind == "residues" else options.lam_proteins
        for number, table in enumerate(tables)
    }

    step, spent, tokens = 0, 0.0, 0
    stages = [{"from_step": 0, **asdict(options)}]
    history: list[dict[str, float]] = []
    means: dict[str, float] = {}
    if checkpoint is not None and Path(checkpoint).exists():
        place = Path(checkpoint)
        with restoring(place):
            state = _restore(place, trunk, optimizers, sampler, options, data)
            step, spent, tokens = state["counts"]
            stages, history, means = state["stages"], state["history"], state["means"]
        log.info("going on from step %d of %s", step, checkpoint)
    last, saved = time.monotonic(), spent

    def keep(path: Path) -> None:
        state = {
            "counts": (step, spent, tokens),
            "cursors": sampler.cursors,
            "given": sampler.given,
            "stages": stages,
            "history": history,
            "means": means,
            "data": data,
        }
        write_checkpoint(path, state, _state(trunk, optimizers), sort=_SORT)

    trunk.train()
    if options.compiled:
        for block in model.blocks:
            assert isinstance(block, CompactBlock)
            block.compile_parts()
    while True:
        done = step / options.steps if options.steps else spent / (60 * (options.minutes or 1))
        if done >= 1:
            break
        batch = sampler.batch(step)
        with _autocast():
            losses = trunk.losses(batch)
        if losses:  # a batch of unknown residues alone asks for nothing
            loss = torch.stack([weights[number] * value for number, value in losses.items()]).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(trunk.parameters(), 1.0)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = options.learning_rate * learning_rate_at(done)
                optimizer.step()
                optimizer.zero_grad()
        step += 1
        tokens += len(batch.pack.tokens)
        now = time.monotonic()
        spent, last = spent + now - last, now
        for key, value in losses.items():
            means[names[key]] = 0.98 * means.get(names[key], value.item()) + 0.02 * value.item()
        if step % report_every == 0:
            shown = "  ".join(f"{name} {value:.3f}" for name, value in sorted(means.items()))
            log.info("step %d  %.1f min  %.0f tokens/s  %s", step, spent / 60, tokens / spent, shown)
            history.append({"step": step, "minutes": round(spent / 60, 2), **means})
        if checkpoint is not None and spent - saved > 60 * checkpoint_minutes:
            saved = spent
            keep(Path(checkpoint))
        if progress is not None:
            progress(step)
    if checkpoint is not None:
        keep(Path(checkpoint))

    card: dict[str, Any] = {
        "objective": "masked residues" + (" + λ · source tasks" if tables else ""),
        "corpus": {
            "files": [Path(p).name for p in corpus],
            "sequences": len(proteins),
            "residues": len(proteins.tokens),
        },
        "sources": {t.name: {"proteins": len(t.proteins), "classes": list(t.classes)} for t in tables},
        "excluded_like": [Path(p).name for p in exclude],
        "licence": licence,
        "stages": stages,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": step,
        "tokens": tokens,
        "minutes": round(spent / 60, 1),
        "torch": torch.__version__,
        "history": history[:: max(1, len(history) // 50)],
    }
    if held_out is not None:
        card["validation"] = masked_perplexity(model, held_out, reference=proteins)
    save_compact(model, out, card=card)
    return card


def _check_names(names: Sequence[str]) -> None:
    """Refuse names that two losses would share in the card."""
    for name, count in Counter([MASKED, *names]).items():
        if count > 1:
            others = "the loss on masked residues" if name == MASKED else "another source"
            raise UsageError(f"a source and {others} are both called {name!r}; rename the source's file")


def _state(trunk: _Trunk, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    tensors = {f"trunk.{name}": tensor for name, tensor in trunk.state_dict().items()}
    for number, optimizer in enumerate(optimizers):
        for place, state in optimizer.state_dict()["state"].items():
            for key, value in state.items():
                tensors[f"optimizer.{number}.{place}.{key}"] = torch.as_tensor(value)
    return tensors


def _restore(
    path: Path,
    trunk: _Trunk,
    optimizers: Sequence[torch.optim.Optimizer],
    sampler: CropSampler,
    options: PretrainOptions,
    data: dict[str, Any],
) -> dict[str, Any]:
    """Go back to what a checkpoint holds, and return what it tells beside."""
    state, tensors = read_checkpoint(path, sort=_SORT)
    if state.get("data") != data:
        raise UsageError(
            f"{path}: the checkpoint was made with another corpus or other sources, or these have changed "
            f"since ({state.get('data')}); give the same or another checkpoint"
        )
    stages: list[dict[str, Any]] = state["stages"]
    before, now = stages[-1], json.loads(json.dumps(asdict(options)))
    changed = [name for name in now if before.get(name) != now[name]]
    if fixed := [name for name in changed if name not in CHANGEABLE]:
        raise UsageError(
            f"{path}: the checkpoint was made with other options ({', '.join(fixed)}); "
            "give the same options or another checkpoint"
        )
    trunk.load_state_dict({n[len("trunk.") :]: t for n, t in tensors.items() if n.startswith("trunk.")})
    for number, optimizer in enumerate(optimizers):
        whole = optimizer.state_dict()
        for name, tensor in tensors.items():
            if name.startswith(f"optimizer.{number}."):
                _, _, place, key = name.split(".")
                whole["state"].setdefault(int(place), {})[key] = tensor
        optimizer.load_state_dict(whole)
    _check_told(state, len(sampler.pools))
    sampler.cursors = list(state["cursors"])
    if not {"source_share", "source_weights"} & set(changed):  # else the shares are counted anew
        sampler.given = list(state["given"])
    if changed:
        stages.append({"from_step": state["counts"][0], **now})
    return state


def _check_told(state: dict[str, Any], pools: int) -> None:
    """Raise where what a checkpoint tells beside its tensors is not what training goes on to count with."""
    step, spent, tokens = state["counts"]
    cursors, given, history = state["cursors"], state["given"], state["history"]
    if [len(cursors), len(given)] != [pools, pools] or not isinstance(history, list):
        raise ValueError("it counts other things")
    if not all(isinstance(count, int) and 0 <= count < 2**63 for count in (step, tokens, *cursors, *given)):
        raise ValueError("its counts are none")
    losses = [*state["means"].values(), *(number for told in history for number in told.values())]
    sum(map(math.isnan, losses))  # which raises for what is no number, or too large for one
    if not 0 <= spent < math.inf:
        raise ValueError(f"it took {spent} seconds")
