"""The engine: distinct sequences in, pooled vectors out.

Sequences are looked up in the cache, sorted by length, laid into batches of so
many tokens, run, pooled in float32, and kept in the cache batch by batch.

Batches are laid out before the cache is asked, and those that it knows nothing
of are run as they are. A run that was killed thus meets the very batches again
that were not yet done, and its results are those of an uninterrupted run, bit
for bit.

Proteins longer than the backbone's window are seen through overlapping windows
(`bioxfer.windows`), which share batches with other proteins where they fit.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bioxfer.backbones import Backbone, Representation
from bioxfer.cache import EmbeddingCache, cache_key
from bioxfer.errors import ModelError
from bioxfer.pooling import pool_residues
from bioxfer.windows import stitch_windows, window_starts
from bioxfer.workers import side_by_side

__all__ = ["BATCH_TOKENS", "GPU_BATCH_TOKENS", "Engine", "Outcome", "Vector", "on_gpu"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
Vector = npt.NDArray[np.float32]

BATCH_TOKENS = 2048
"""Tokens of one batch on a processor core: the fastest of 512 to 8192 for most shapes and precisions."""

GPU_BATCH_TOKENS = 32768
"""Tokens of one batch on a GPU, which a small batch leaves idle."""

_NO_MEMORY = "failed: out of memory, even alone in its batch"
_FRAME = 2  # tokens that stand before and after the residues


@dataclass(slots=True)
class Outcome:
    """Result of one distinct sequence.

    Attributes
    ----------
    pooled : dict of str to ndarray, or None
        ``(D,)`` float32 for each pooling; None if the sequence failed.
    residues : ndarray or None
        ``(L, D)`` float32, where it was asked for.
    message : str
        Why it failed, or why it was computed again; empty as a rule.
    """

    pooled: dict[str, Vector] | None = None
    residues: Vector | None = None
    message: str = ""


@dataclass(slots=True)
class Engine:
    """Represents distinct sequences; knows nothing of records.

    Attributes
    ----------
    backbone : Backbone
        Put into evaluation mode if it is a torch module.
    layer : int
        From 0 to ``backbone.n_layers``.
    pools : tuple of str
        Single poolings, each of `bioxfer.pooling.POOLS`.
    per_residue : bool
        Whether to keep the ``(L, D)`` matrices.
    overlap : int
        Residues that neighbouring windows share at least.
    batch_tokens : int
        Tokens run at once.
    cache : EmbeddingCache or None
        Where to look first, and to keep each batch.
    fp32 : callable or None
        Gives the same backbone in float32.
    """

    backbone: Backbone
    layer: int
    pools: tuple[str, ...]
    per_residue: bool
    overlap: int
    batch_tokens: int
    cache: EmbeddingCache | None
    fp32: Callable[[], Backbone] | None
    _twin: Backbone | None = field(default=None, init=False)
    _loading: threading.Lock = field(default_factory=threading.Lock, init=False)

    def solve(self, sequences: Iterable[str], *, done: Callable[[Iterable[str]], None]) -> dict[str, Outcome]:
        """Find or compute the outcome of each sequence.

        Parameters
        ----------
        sequences : iterable of str
            Clean residues, none of them empty.
        done : callable
            Told which sequences are settled: those of the cache, then batch by batch.

        Raises
        ------
        ModelError
            If the backbone does not give one representation for each residue.
        OutputError
            If the cache cannot be written.
        """
        ordered = sorted(set(sequences), key=lambda residues: (len(residues), residues))
        outcomes = self._look_up(ordered)
        done(outcomes)
        untouched, torn = [], []
        for batch in _batches(ordered, self._cost, self.batch_tokens):
            missing = [residues for residues in batch if residues not in outcomes]
            if len(missing) == len(batch):
                untouched.append(batch)
            else:
                torn += missing
        batches = [*_batches(torn, self._cost, self.batch_tokens), *untouched]
        for found in self._run_all(batches):
            self._keep(found)
            outcomes.update(found)
            done(found)
        return outcomes

    def _run_all(self, batches: Sequence[Sequence[str]]) -> Iterator[dict[str, Outcome]]:
        """Compute batches in order: side by side where the backbone allows it, else one by one.

        A batch on each core is faster than each batch on all cores, which wait for one another
        after every product (8M shape, two cores: 1.2 times in fp32, 1.3 times in bf16).
        """
        # A GPU's two prepare and collect in turns, so that it has always something to do.
        workers = min(2 if on_gpu(self.backbone) else torch.get_num_threads(), len(batches))
        if workers <= 1 or not getattr(self.backbone, "concurrent", False):
            yield from map(self._run, batches)
            return
        cramped = []
        for found in side_by_side(self._run, batches, workers=workers):
            # Whose memory did not suffice beside another batch gets all of it in the end.
            cramped += [residues for residues, outcome in found.items() if outcome.message == _NO_MEMORY]
            yield {residues: o for residues, o in found.items() if o.message != _NO_MEMORY}
        for residues in cramped:
            yield self._run([residues])

    def starts(self, residues: str) -> tuple[int, ...]:
        """First residue of each window that the protein is seen through."""
        return window_starts(len(residues), self.backbone.window, self.overlap)

    def _fragments(self, residues: str) -> list[str]:
        return [residues[start : start + self.backbone.window] for start in self.starts(residues)]

    def _cost(self, residues: str) -> int:
        return sum(map(_tokens, self._fragments(residues)))

    def _keys(self, residues: str) -> dict[str, bytes]:
        """Cache key of each pooling, and of ``residues`` if it is wanted."""
        windowed = len(residues) > self.backbone.window
        # What fits into the window is the same under every policy.
        policy = f"windows of {self.backbone.window}, overlap {self.overlap}" if windowed else "whole"
        return {
            name: cache_key(
                residues,
                fingerprint=self.backbone.fingerprint,
                precision=self.backbone.precision,
                layer=self.layer,
                policy=policy,
                name=name,
            )
            for name in (*self.pools, *(("residues",) if self.per_residue else ()))
        }

    def _look_up(self, sequences: Sequence[str]) -> dict[str, Outcome]:
        if self.cache is None:
            return {}
        keys = {residues: self._keys(residues) for residues in sequences}
        values = self.cache.get_many(key for named in keys.values() for key in named.values())
        found = {}
        for residues, named in keys.items():
            if all(key in values for key in named.values()):
                arrays = {name: values[key] for name, key in named.items()}
                matrix = arrays.pop("residues", None)
                found[residues] = Outcome(pooled=arrays, residues=matrix)
        return found

    def _keep(self, found: dict[str, Outcome]) -> None:
        """Cache a batch in one transaction."""
        if self.cache is None:
            return
        values = {}
        for residues, outcome in found.items():
            # An outcome with a message is computed anew each time, so that the row says so each time.
            if outcome.pooled is None or outcome.message:
                continue
            for name, key in self._keys(residues).items():
                value = outcome.residues if name == "residues" else outcome.pooled[name]
                assert value is not None
                values[key] = value
        self.cache.put_many(values)

    def _run(self, batch: Sequence[str]) -> dict[str, Outcome]:
        """Compute a batch of whole proteins, in turns if one of them alone exceeds its tokens."""
        fragments = [self._fragments(residues) for residues in batch]
        parts: list[Representation | None] = []
        for some in _batches(chain.from_iterable(fragments), _tokens, self.batch_tokens):
            parts += _represent(self.backbone, some, self.layer)
        rest = iter(parts)
        of_each = [list(islice(rest, len(windows))) for windows in fragments]
        found = zip(batch, self._finish(batch, of_each), strict=True)
        return {r: self._try_alone(r) if outcome is None else outcome for r, outcome in found}

    def _try_alone(self, residues: str) -> Outcome:
        """Represent one protein again, in float32 and without neighbours."""
        backbone = self._full_precision()
        if backbone is None:
            return Outcome(message=f"failed: not finite in {self.backbone.precision}; try precision fp32")
        parts: list[Representation | None] = []
        for fragment in self._fragments(residues):
            parts += _represent(backbone, [fragment], self.layer)
        (outcome,) = self._finish([residues], [parts])
        if outcome is None:
            return Outcome(message="failed: the representation is not finite, not even alone and in fp32")
        if outcome.pooled is not None:
            outcome.message = "computed again, alone and in fp32, as the first result was not finite"
        return outcome

    def _finish(
        self, batch: Sequence[str], parts: Sequence[Sequence[Representation | None]]
    ) -> list[Outcome | None]:
        """Stitch and pool on the device, and bring all vectors over in one go.

        Gives None for a protein of which anything is not finite.
        """
        matrices = [self._pool(residues, each) for residues, each in zip(batch, parts, strict=True)]
        done = [pooled for pooled in matrices if pooled is not None]
        try:
            vectors = iter(_to_numpy(torch.stack([vectors for vectors, _, _ in done])) if done else ())
            limits = iter(_to_numpy(torch.stack([limits for _, limits, _ in done])) if done else ())
        except (MemoryError, RuntimeError) as error:
            if not _means_out_of_memory(error):
                raise
            return [Outcome(message=_NO_MEMORY) for _ in batch]
        outcomes: list[Outcome | None] = []
        for pooled in matrices:
            if pooled is None:
                outcomes.append(Outcome(message=_NO_MEMORY))
            elif not np.isfinite(next(limits)).all():
                next(vectors)
                outcomes.append(None)
            else:
                # Copies, as a view would keep the whole batch in memory.
                named = dict(zip(self.pools, map(np.array, next(vectors)), strict=True))
                outcomes.append(Outcome(pooled=named, residues=pooled[2]))
        return outcomes

    def _pool(
        self, residues: str, parts: Sequence[Representation | None]
    ) -> tuple[Tensor, Tensor, Vector | None] | None:
        """Give vectors ``(P, D)``, least and greatest numbers ``(4,)`` and, if wanted, the matrix ``(L, D)``.

        None if memory did not suffice for the protein.
        """
        whole = [part for part in parts if part is not None]
        if len(whole) < len(parts):
            return None
        try:
            if len(whole) == 1:
                matrix, cls = whole[0].residues[0].float(), whole[0].cls[0].float()
            else:
                matrix = stitch_windows([part.residues[0] for part in whole], self.starts(residues))
                cls = torch.stack([part.cls[0].float() for part in whole]).mean(0)
            # Both are NaN where anything is, and one pass finds them.
            limits = torch.stack([*torch.aminmax(matrix), *torch.aminmax(cls)])
            pooled = [pool_residues(matrix, cls, name) for name in self.pools]
            vectors = torch.stack(pooled) if pooled else matrix.new_empty(0, len(cls))
            return vectors, limits, _to_numpy(matrix) if self.per_residue else None
        except (MemoryError, RuntimeError) as error:
            if not _means_out_of_memory(error):
                raise
            return None

    def _full_precision(self) -> Backbone | None:
        """Give the backbone in float32, loaded at most once."""
        if self.backbone.precision == "fp32":
            return self.backbone
        with self._loading:
            if self._twin is None and self.fp32 is not None:
                self._twin = self.fp32()
        return self._twin


def on_gpu(backbone: Backbone) -> bool:
    """Tell whether a backbone runs on a CUDA device; one that does not say where runs on the processor."""
    return torch.device(getattr(backbone, "device", "cpu")).type == "cuda"


def _tokens(fragment: str) -> int:
    return len(fragment) + _FRAME


def _batches(items: Iterable[T], cost: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """Cut a series into runs that cost at most so much; what costs more stands alone."""
    batch: list[T] = []
    total = 0
    for item in items:
        price = cost(item)
        if batch and total + price > most:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += price
    if batch:
        yield batch


def _represent(backbone: Backbone, fragments: Sequence[str], layer: int) -> list[Representation | None]:
    """Run one batch, in halves if memory runs out; None for what does not fit alone either."""
    if isinstance(backbone, nn.Module):
        backbone.eval()
    try:
        with torch.inference_mode():
            found = backbone.represent(fragments, layers=[layer])
    except (MemoryError, RuntimeError) as error:
        if not _means_out_of_memory(error):
            raise
    else:
        for fragment, part in zip(fragments, found, strict=True):
            if part.residues.shape[1] != len(fragment):
                raise ModelError(
                    f"{backbone.name} gave {part.residues.shape[1]} representations for {len(fragment)} "
                    "residues; a backbone must give one each"
                )
        return list(found)
    # Out of the handler: the traceback would keep the failed batch's tensors alive.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(fragments) == 1:
        return [None]
    half = len(fragments) // 2
    logger.warning("out of memory with a batch of %d; trying it in halves", len(fragments))
    return _represent(backbone, fragments[:half], layer) + _represent(backbone, fragments[half:], layer)


def _means_out_of_memory(error: Exception) -> bool:
    """Tell a lack of memory from a bug; torch has no exception of its own for a CPU's."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)
    return "DefaultCPUAllocator" in text and "memory" in text


def _to_numpy(x: Tensor) -> Vector:
    """Copy, as a slice would keep its whole batch in memory."""
    return np.array(x.to("cpu", torch.float32).numpy())
