"""Compiled kernels for what the matrix products leave over, on a processor.

Norms, GELU, attention and the convolution over neighbours are bound by memory
or by ``exp``, so each is one pass in C++ (``kernels.cpp``): bias, rotation and
softmax of attention together, the residual sum with the norm after it. They
are built when bioxfer is installed where a C++ compiler is at hand; without
them the backbones compute with torch alone, to the same numbers and slower.
On processors other than those with AVX2 or AVX-512 they are used only if asked
for, since nobody has measured them there.

In float32 a protein's result does not depend on its batch, bit for bit, with AMX
and wherever a row of torch's float32 product is the same in any company, as from
`ROWS` rows on with AVX-512; elsewhere (AVX2) it does not to 1e-5 relative.

The environment variable ``BIOXFER_KERNELS`` chooses: ``off``, or the highest
instruction set to use, one of `INSTRUCTIONS`.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import sysconfig
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bioxfer.backbones.packing import Pack
from bioxfer.errors import UsageError

__all__ = [
    "INSTRUCTIONS",
    "ROWS",
    "FastLinear",
    "Kernels",
    "Product",
    "Scratch",
    "inspect_builds",
    "load_kernels",
]

INSTRUCTIONS = ("plain", "avx2", "avx512", "amx")
"""Instruction sets that the kernels are compiled for, each better than the one before."""

HEAD_WIDTHS = (8, 16, 24, 32, 64, 128)

ROWS = 64
"""Packs are filled up to a multiple of so many tokens. On AVX-512 a row of a float32 product is the
same from 16 rows on, whatever else is multiplied (measured with torch 2.13); and oneDNN keeps code for
each number of rows that it meets in bfloat16, a megabyte or so, which a few numbers keep flat."""

_VERSION = 1  # of the functions in kernels.cpp
_STALE = "was built of another version of kernels.cpp; install bioxfer again"
_SHARED_FROM = 2**15  # numbers from which a kernel is worth sharing among threads

log = logging.getLogger("bioxfer")


class Scratch(threading.local):
    """Tensors that a thread uses again for each block and batch.

    A fresh tensor of some megabytes costs a page fault for every 4 KiB of it.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[str, torch.dtype], Tensor] = {}

    def __reduce__(self) -> tuple[type[Scratch], tuple[()]]:
        return Scratch, ()  # a copied or pickled model has room of its own

    def take(self, name: str, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        """Give an uninitialised ``(rows, width)`` tensor; the next one of the name overwrites it."""
        kept = self._kept.get((name, dtype))
        if kept is None or kept.numel() < rows * width:
            self._kept.pop((name, dtype), None)
            self._kept[name, dtype] = kept = torch.empty(rows * width, dtype=dtype)
        return kept[: rows * width].view(rows, width)


class Kernels:
    """The compiled functions, with every shape checked.

    Made by `load_kernels`. Tensors are contiguous, on the processor, and in
    float32 unless ``M`` stands beside them: the type of the matrices, float32
    or bfloat16. Work is shared among as many threads as torch uses.

    Parameters
    ----------
    library : ctypes.CDLL
        What was compiled.
    instructions : str
        One of `INSTRUCTIONS`.
    """

    def __init__(self, library: ctypes.CDLL, *, instructions: str) -> None:
        self.instructions = instructions
        self._isa = INSTRUCTIONS.index(instructions)
        self._library = library

    def __reduce__(self) -> tuple[Callable[[str], Kernels], tuple[str]]:
        return _load_exactly, (self.instructions,)  # for copies, and for processes of the same machine

    def add_norm(
        self, x: Tensor, change: Tensor | None, bias: Tensor | None, norm: nn.LayerNorm, out: Tensor
    ) -> Tensor:
        """Add ``change + bias`` to ``x`` in place, and write the layer norm of the sum.

        Parameters
        ----------
        x : Tensor
            Residual stream, ``(T, D)``.
        change : Tensor or None
            ``(T, D)``, M; None to norm ``x`` as it is.
        bias : Tensor or None
            ``(D,)``, there if ``change`` is.
        norm : LayerNorm
            With weight and bias.
        out : Tensor
            ``(T, D)``, float32 or bfloat16; is returned.
        """
        rows, width = x.shape
        _check(x, (rows, width), torch.float32)
        _check(out, (rows, width))
        if change is not None:
            assert bias is not None
            _check(change, (rows, width))
            _check(bias, (width,), torch.float32)
        _check(norm.weight, (width,), torch.float32)
        _check(norm.bias, (width,), torch.float32)

        def run(first: int, last: int) -> None:
            self._library.bx_norm(
                self._isa,
                change is not None and _is_half(change),
                _is_half(out),
                _at(x, first),
                None if change is None else _at(change, first),
                None if bias is None else bias.data_ptr(),
                norm.weight.data_ptr(),
                norm.bias.data_ptr(),
                _at(out, first),
                last - first,
                width,
                norm.eps,
            )

        _share(run, rows, worth=x.numel() >= _SHARED_FROM)
        return out

    def gelu_(self, x: Tensor, bias: Tensor) -> Tensor:
        """Replace ``x: (T, F)``, M, by the exact GELU of ``x + bias``."""
        rows, width = x.shape
        _check(x, (rows, width))
        _check(bias, (width,), torch.float32)

        def run(first: int, last: int) -> None:
            self._library.bx_gelu(self._isa, _is_half(x), _at(x, first), bias.data_ptr(), last - first, width)

        _share(run, rows, worth=x.numel() >= _SHARED_FROM)
        return x

    def convolve(self, x: Tensor, weight: Tensor, pack: Pack, *, activate: bool, out: Tensor) -> Tensor:
        """Add to each token a weighted sum of those around it in its own sequence.

        Parameters
        ----------
        x : Tensor
            ``(T, D)``, M, where ``D`` is a multiple of 16.
        weight : Tensor
            ``(taps, D)``, an odd number of taps.
        pack : Pack
            Whose tokens these are.
        activate : bool
            Whether a GELU follows.
        out : Tensor
            ``(T, D)``, M; is returned. The rows that fill up the pack stay as they were.
        """
        rows, width = x.shape
        taps = weight.shape[0]
        _check(x, (len(pack.tokens), width))
        _check(out, (rows, width), x.dtype)
        _check(weight, (taps, width), torch.float32)
        if width % 16 or taps % 2 == 0 or x.data_ptr() == out.data_ptr():
            raise ValueError(f"a convolution of {taps} taps over {width} channels does not fit the kernel")

        def run(first: int, last: int) -> None:
            self._library.bx_convolve(
                self._isa,
                _is_half(x),
                x.data_ptr(),
                weight.data_ptr(),
                pack.starts[first:].data_ptr(),
                last - first,
                width,
                taps,
                activate,
                out.data_ptr(),
            )

        _share(run, len(pack.lengths), worth=x.numel() >= _SHARED_FROM)
        return out

    def attend(
        self,
        qkv: Tensor,
        bias: Tensor,
        turn: tuple[Tensor, Tensor] | None,
        pack: Pack,
        *,
        heads: int,
        out: Tensor,
    ) -> Tensor:
        """Softmax attention of every sequence over itself.

        Parameters
        ----------
        qkv : Tensor
            Queries, keys and values of packed tokens, ``(T, 3 * H * K)``, M.
        bias : Tensor
            To be added to them, ``(3 * H * K,)``.
        turn : tuple of Tensor, or None
            Cosines and sines by which queries and keys are rotated, ``(P, K / 2)``
            each, for every place in a sequence.
        pack : Pack
            Whose tokens these are.
        heads : int
            Number of heads ``H``; `fits` says whether their width will do.
        out : Tensor
            ``(T, H * K)``, M; is returned. The rows that fill up the pack stay as they were.
        """
        width = qkv.shape[1] // 3 // heads
        _check(qkv, (len(pack.tokens), 3 * heads * width))
        _check(out, (len(pack.tokens), heads * width), qkv.dtype)
        _check(bias, (3 * heads * width,), torch.float32)
        if not self.fits(width):
            raise ValueError(f"heads of width {width} do not fit the kernel")
        for table in turn or ():
            _check(table, (table.shape[0], width // 2), torch.float32)
            if table.shape[0] < max(pack.lengths):
                raise ValueError(f"rotations for {table.shape[0]} places, but {max(pack.lengths)} tokens")
        cosines, sines = (None, None) if turn is None else (table.data_ptr() for table in turn)

        def run(first: int, last: int) -> None:
            done = self._library.bx_attend(
                self._isa,
                _is_half(qkv),
                qkv.data_ptr(),
                bias.data_ptr(),
                cosines,
                sines,
                pack.starts.data_ptr(),
                len(pack.lengths),
                heads,
                first,
                last,
                width,
                width**-0.5,
                out.data_ptr(),
            )
            if done != 0:
                raise MemoryError("no memory for the keys and values of one head")

        _share(run, heads, worth=qkv.numel() >= _SHARED_FROM)
        return out

    def pack(self, weight: Tensor) -> Tensor | None:
        """Split a float32 matrix for `multiply`.

        Parameters
        ----------
        weight : Tensor
            ``(E, D)`` float32.

        Returns
        -------
        Tensor or None
            ``(3, E, D)`` numbers of 16 bits in an order of their own; None where
            torch's product is the faster one, or nothing fits.
        """
        if self.instructions != "amx" or weight.dtype != torch.float32:
            return None
        if weight.shape[0] % 32 or weight.shape[1] % 32:
            return None
        weight = weight.contiguous()
        packed = torch.empty((3, *weight.shape), dtype=torch.int16)
        self._library.bx_pack(weight.data_ptr(), *weight.shape, packed.data_ptr())
        return packed

    def multiply(self, x: Tensor, packed: Tensor, out: Tensor) -> Tensor:
        """Multiply in the precision of float32 on the tile unit, which knows bfloat16 only.

        Every number is split into three of 8 bits; six of their nine products
        reach the 24 bits of float32 (Henry et al. 2019, arXiv:1904.06376). That is
        1.5 to 1.8 times as fast as float32 itself, and no less exact: root mean
        square error 1.4e-7 against 3.2e-7 of torch's product (D = 320).

        Parameters
        ----------
        x : Tensor
            ``(T, D)`` float32, where ``T`` is a multiple of 32.
        packed : Tensor
            What `pack` made of a matrix ``(E, D)``.
        out : Tensor
            ``(T, E)`` float32; is returned.
        """
        rows, (_, wide, deep) = x.shape[0], packed.shape
        _check(x, (rows, deep), torch.float32)
        _check(out, (rows, wide), torch.float32)
        if rows % 32:
            raise ValueError(f"{rows} rows are no multiple of 32")

        def run(first: int, last: int) -> None:
            done = self._library.bx_product(
                _at(x, 32 * first), packed.data_ptr(), _at(out, 32 * first), 32 * (last - first), deep, wide
            )
            if done != 0:
                raise MemoryError("no memory for a part of a product")

        _share(run, rows // 32, worth=x.numel() >= _SHARED_FROM)
        return out

    @staticmethod
    def fits(width: int) -> bool:
        """Tell whether heads of this width can be attended."""
        return width in HEAD_WIDTHS


class Product:
    """A matrix in the form that multiplies fastest; what follows adds the bias.

    Parameters
    ----------
    weight : Tensor
        ``(E, D)``, M; may not change any more.
    kernels : Kernels
        What there is to multiply with.

    Attributes
    ----------
    width : int
        Width ``E`` of the result.
    dtype : torch.dtype
        Of arguments and results.
    is_packed : bool
        Whether the weights were copied, so that the given ones are needed no more.
    """

    def __init__(self, weight: Tensor, kernels: Kernels) -> None:
        self.width = weight.shape[0]
        self.dtype = weight.dtype
        self._kernels = kernels
        packed = kernels.pack(weight)
        self.is_packed = packed is not None
        self._weight = weight.t() if packed is None else packed

    def __call__(self, x: Tensor, *, out: Tensor) -> Tensor:
        """Multiply ``x: (T, D)``, where ``T`` is a multiple of `ROWS`, into ``out: (T, E)``."""
        if self.is_packed:
            return self._kernels.multiply(x, self._weight, out)
        return torch.mm(x, self._weight, out=out)


class FastLinear(nn.Module):
    """A linear layer without bias, by the fastest product there is once its weights are final.

    Parameters
    ----------
    width, result : int
        From ``D`` to ``E``.
    """

    def __init__(self, width: int, result: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(result, width), requires_grad=False)
        self._product: Product | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of arguments and results."""
        return self.weight.dtype

    def use(self, kernels: Kernels) -> None:
        """Multiply with these from now on; of weights that are packed for it only the packed form stays."""
        self._product = Product(self.weight, kernels)
        if self._product.is_packed:
            self.weight = nn.Parameter(self.weight.new_empty(0), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply ``x: (T, D)``; with kernels ``T`` is a multiple of `ROWS`."""
        if self._product is None:
            return F.linear(x, self.weight)
        return self._product(x.contiguous(), out=x.new_empty(len(x), self._product.width))


def load_kernels(*, device: torch.device | str = "cpu") -> Kernels | None:
    """Load the compiled kernels.

    Parameters
    ----------
    device : torch.device or str, optional
        Where the backbone is to run.

    Returns
    -------
    Kernels or None
        None where they were not built, are switched off, or where the device is another one.

    Raises
    ------
    UsageError
        If ``BIOXFER_KERNELS`` holds a word that is none of its choices.
    """
    if torch.device(device).type != "cpu":
        return None
    return _load(os.environ.get("BIOXFER_KERNELS", ""))


@functools.cache
def _load(wanted: str) -> Kernels | None:
    if wanted not in ("", "off", *INSTRUCTIONS):
        raise UsageError(
            f"BIOXFER_KERNELS is {wanted!r}; choose off, {', '.join(INSTRUCTIONS)}, or leave it out"
        )
    if wanted == "off":
        return None
    library = _open_library()
    if library is None:
        return None
    best = library.bx_isa()
    pointer, flag, number = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    library.bx_norm.argtypes = [flag] * 3 + [pointer] * 6 + [number] * 2 + [ctypes.c_float]
    library.bx_gelu.argtypes = [flag] * 2 + [pointer] * 2 + [number] * 2
    library.bx_convolve.argtypes = [flag] * 2 + [pointer] * 3 + [number] * 3 + [flag, pointer]
    library.bx_attend.argtypes = [flag] * 2 + [pointer] * 5 + [number] * 5 + [ctypes.c_float, pointer]
    library.bx_pack.argtypes = [pointer, number, number, pointer]
    library.bx_product.argtypes = [pointer] * 3 + [number] * 3
    for function in (library.bx_norm, library.bx_gelu, library.bx_convolve, library.bx_pack):
        function.restype = None
    if wanted:
        best = min(best, INSTRUCTIONS.index(wanted))
    elif best == 0:
        log.debug("no kernels for this processor that are known to be faster than torch")
        return None
    return Kernels(library, instructions=INSTRUCTIONS[best])


def inspect_builds() -> list[tuple[Path, str]]:
    """List the files that were built, each with why it cannot be used; that is empty where it can.

    An editable installation may hold older builds, and those of other versions of Python.
    """
    folder, suffix = Path(__file__).parent, sysconfig.get_config_var("EXT_SUFFIX")
    own = folder / f"_kernels{suffix}"
    found = []
    for path in [own, *sorted(set(folder.glob("_kernels*.so")) - {own})]:
        reason = ""
        try:
            if ctypes.CDLL(str(path)).bx_version() != _VERSION:
                reason = _STALE
        except (OSError, AttributeError) as error:
            reason = f"cannot be loaded: {error}"
        if path.exists():
            found.append((path, reason))
    return found


def _open_library() -> ctypes.CDLL | None:
    """Open what was built of this very source."""
    for path, reason in inspect_builds():
        if not reason:
            return ctypes.CDLL(str(path))
        log.log(logging.WARNING if reason == _STALE else logging.DEBUG, "%s %s", path, reason)
    return None


def _load_exactly(instructions: str) -> Kernels:
    found = _load(instructions)
    if found is None or found.instructions != instructions:
        raise UsageError(
            f"a backbone prepared for {instructions} came to a processor without it; load it here"
        )
    return found


def _check(x: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> None:
    """Refuse a tensor that the compiled code would misread."""
    dtypes = (torch.float32, torch.bfloat16) if dtype is None else (dtype,)
    if x.shape != shape or x.dtype not in dtypes or x.device.type != "cpu" or not x.is_contiguous():
        raise ValueError(
            f"a kernel takes contiguous {shape} on the processor, "
            f"not {tuple(x.shape)} {x.dtype} on {x.device}"
        )


def _is_half(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16


def _at(x: Tensor, row: int) -> int:
    return x.data_ptr() + row * x.stride(0) * x.element_size()


def _share(run: Callable[[int, int], None], count: int, *, worth: bool) -> None:
    """Run ``run(first, last)`` over ``range(count)``, shared among torch's number of threads."""
    threads = min(torch.get_num_threads(), count)
    if threads <= 1 or not worth:
        run(0, count)
        return
    edges = [count * part // threads for part in range(threads + 1)]
    others = [_pool().submit(run, *edges[part : part + 2]) for part in range(1, threads)]
    try:
        run(*edges[:2])
    finally:
        wait(others)  # also after an interruption, since they still read and write these tensors
    for other in others:
        other.result()


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="bioxfer-kernel")


if hasattr(os, "register_at_fork"):  # a forked child has the pool but none of its threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
