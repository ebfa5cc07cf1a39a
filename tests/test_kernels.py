"""Compiled kernels: each instruction set equals torch, row by row, and nothing else is read or written."""

from __future__ import annotations

import copy
import multiprocessing
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toys import rows_stand_alone

from bioxfer.backbones import kernels as module
from bioxfer.backbones.compact import load_compact, random_backbone
from bioxfer.backbones.kernels import HEAD_WIDTHS, INSTRUCTIONS, ROWS, Product, Scratch, load_kernels
from bioxfer.backbones.packing import pack_tokens
from bioxfer.errors import UsageError

pytestmark = pytest.mark.skipif(
    module._open_library() is None and shutil.which("g++") is None, reason="no C++ compiler here"
)

# Lengths around every block and vector of the kernels, and one of a single token.
LENGTHS = (1, 2, 7, 15, 16, 17, 31, 32, 33, 127, 128, 129, 255, 256, 257, 300)
# bf16 keeps 8 bits: inputs are the same for both, results are rounded once, softmax weights once more.
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 2e-2}
TYPES = list(TOLERANCE)


@pytest.fixture(params=INSTRUCTIONS)
def kernels(request, monkeypatch):
    monkeypatch.setenv("BIOXFER_KERNELS", request.param)
    found = load_kernels()
    assert found is not None, "there is a C++ compiler, but bioxfer was installed without its kernels"
    if found.instructions != request.param:
        pytest.skip(f"this processor has no {request.param}")
    return found


def _pack(lengths, *, multiple=ROWS):
    return pack_tokens([torch.zeros(n, dtype=torch.uint8) for n in lengths], multiple=multiple)


def _turn(length, width):
    angles = torch.outer(torch.arange(length), 10000.0 ** (-torch.arange(0, width, 2) / width))
    return angles.cos(), angles.sin()


def _attention(qkv, bias, turn, lengths, heads):
    """The definition, in float64."""
    x, results = qkv.double() + bias.double(), []
    for part in torch.split(x[: sum(lengths)], list(lengths)):
        q, k, v = part.view(len(part), 3, heads, -1).unbind(1)
        if turn is not None:
            cos, sin = (table[: len(part)].double().repeat(1, 2).unsqueeze(1) for table in turn)
            q, k = (t * cos + torch.cat((-t.chunk(2, -1)[1], t.chunk(2, -1)[0]), -1) * sin for t in (q, k))
        weights = torch.softmax(torch.einsum("qhk,thk->hqt", q, k) * q.shape[-1] ** -0.5, dim=-1)
        results.append((weights @ v.transpose(0, 1)).transpose(0, 1).flatten(1))
    return torch.cat(results)


def _difference(found, expected):
    return float((found.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("width", HEAD_WIDTHS)
@pytest.mark.parametrize("rotated", [True, False])
def test_attention_is_softmax_over_each_sequence(kernels, width, dtype, rotated):
    torch.manual_seed(width)
    heads, pack = 3, _pack(LENGTHS)
    rows = len(pack.tokens)
    qkv, bias = torch.randn(rows, 3 * heads * width).to(dtype), torch.randn(3 * heads * width)
    turn = _turn(max(LENGTHS), width) if rotated else None
    out = torch.full((rows, heads * width), 7.0, dtype=dtype)
    kernels.attend(qkv, bias, turn, pack, heads=heads, out=out)
    real = sum(LENGTHS)
    assert _difference(out[:real], _attention(qkv, bias, turn, LENGTHS, heads)) < TOLERANCE[dtype]
    assert bool((out[real:] == 7).all())


@pytest.mark.parametrize("dtype", TYPES)
def test_attention_holds_for_logits_that_would_overflow_and_for_one_key_that_takes_all(kernels, dtype):
    width, pack = 16, _pack((40, 300))
    qkv = torch.randn(len(pack.tokens), 3 * width).to(dtype)
    qkv[:, : 2 * width] *= 40  # logits of some thousands
    out = torch.empty(len(pack.tokens), width, dtype=dtype)
    kernels.attend(qkv, torch.zeros(3 * width), None, pack, heads=1, out=out)
    expected = _attention(qkv, torch.zeros(3 * width), None, (40, 300), 1)
    # Rounding of logits of 1e4 shifts weights by 1e4 times the precision.
    assert _difference(out[:340], expected) < (2e-3 if dtype == torch.float32 else 0.2)
    assert bool(torch.isfinite(out[:340]).all())


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_sequence_and_is_not_hidden(kernels, dtype, bad):
    width, pack = 16, _pack((40, 40))
    qkv = torch.randn(len(pack.tokens), 3 * width).to(dtype)
    qkv[5, width + 3] = bad
    out = torch.empty(len(pack.tokens), width, dtype=dtype)
    kernels.attend(qkv, torch.zeros(3 * width), None, pack, heads=1, out=out)
    assert not bool(torch.isfinite(out[:40]).all())
    assert bool(torch.isfinite(out[40:80]).all())


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("width", [3, 8, 20, 320, 1280])
def test_norm_of_a_sum(kernels, width, dtype):
    torch.manual_seed(width)
    x, change = torch.randn(37, width) * 3 + 1, torch.randn(37, width).to(dtype)
    bias, norm = torch.randn(width), nn.LayerNorm(width)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    total = x.double() + change.double() + bias.double()
    expected = F.layer_norm(total, (width,), norm.weight.double(), norm.bias.double(), norm.eps)
    out = kernels.add_norm(x, change, bias, norm, torch.empty(37, width, dtype=dtype))
    assert _difference(out, expected) < TOLERANCE[dtype]
    assert _difference(x, total) < 1e-6
    before = x.clone()
    again = kernels.add_norm(x, None, None, norm, torch.empty(37, width))
    assert torch.equal(x, before)
    assert _difference(again, expected) < 3e-6


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("width", [5, 16, 1280])
def test_gelu_is_the_exact_one(kernels, width, dtype):
    x = torch.cat([torch.linspace(-12, 12, 4 * width), torch.tensor([0.0, -0.0, 1e30, -1e30] * width)])
    x, bias = x.view(-1, width).to(dtype), torch.randn(width)
    expected = F.gelu(x.double() + bias.double())
    found = kernels.gelu_(x.clone(), bias).double()
    # The polynomial's own error, and the rounding of the result.
    limit = 4e-7 if dtype == torch.float32 else 2e-5
    spacing = 2.0**-23 if dtype == torch.float32 else 2.0**-8
    assert bool(((found - expected).abs() <= limit + spacing * expected.abs()).all())
    broken = kernels.gelu_(torch.full((1, width), float("nan"), dtype=dtype), bias)
    assert bool(torch.isnan(broken).all())


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("activate", [True, False])
def test_convolution_stays_inside_each_sequence(kernels, dtype, activate):
    torch.manual_seed(0)
    lengths, width, taps = (1, 3, 4, 9, 40), 32, 9
    pack = _pack(lengths)
    x, weight = torch.randn(len(pack.tokens), width).to(dtype), torch.randn(taps, width)
    parts = []
    for part in torch.split(x[: sum(lengths)].double(), list(lengths)):
        mixed = F.conv1d(part.t()[None], weight.double().t().unsqueeze(1), padding=4, groups=width)[0].t()
        parts.append(F.gelu(part + mixed) if activate else part + mixed)
    out = kernels.convolve(x, weight, pack, activate=activate, out=torch.empty_like(x))
    assert _difference(out[: sum(lengths)], torch.cat(parts)) < TOLERANCE[dtype]


@pytest.mark.parametrize("shape", [(64, 32, 32), (128, 320, 960), (192, 1056, 96)])
def test_products_are_as_exact_as_those_of_float32(kernels, shape):
    torch.manual_seed(0)
    rows, deep, wide = shape
    # Magnitudes far apart, as outlier channels of trained models are.
    x = torch.randn(rows, deep) * torch.logspace(-3, 3, deep)
    weight = torch.randn(wide, deep)
    expected = x.double() @ weight.double().t()
    out = Product(weight, kernels)(x, out=torch.full((rows, wide), float("nan")))
    error, usual = ((each - expected).pow(2).mean().sqrt() for each in (out, x @ weight.t()))
    assert error <= 2 * usual
    assert _difference(out, expected) < 1e-6
    x[3] = float("nan")
    out = Product(weight, kernels)(x, out=out)
    assert bool(torch.isnan(out[3]).all())
    assert bool(torch.isfinite(out[4:]).all())


def test_only_matrices_that_fit_are_packed():
    kernels = load_kernels()
    fast = kernels.instructions == "amx"
    assert Product(torch.randn(64, 32), kernels).is_packed is fast
    assert not Product(torch.randn(64, 33), kernels).is_packed
    assert not Product(torch.randn(48, 32), kernels).is_packed
    assert not Product(torch.randn(64, 32).bfloat16(), kernels).is_packed
    if fast:
        with pytest.raises(ValueError, match="33 rows are no multiple of 32"):
            kernels.multiply(torch.zeros(33, 32), kernels.pack(torch.zeros(32, 32)), torch.zeros(33, 32))


@pytest.mark.parametrize("name", ["off", *INSTRUCTIONS])
def test_the_embedded_backbone_is_the_same_without_kernels(monkeypatch, name):
    proteins = ["MKTAYIAKQRQISFVKSHFSRQ", "M", "ACDEFGHIKLMNPQRSTVWYXBZUO" * 30]
    monkeypatch.setenv("BIOXFER_KERNELS", "off")
    backbone = load_compact()
    layers = range(backbone.n_layers + 1)
    expected = backbone.represent(proteins, layers=layers)
    monkeypatch.setenv("BIOXFER_KERNELS", name)
    for a, b in zip(load_compact().represent(proteins, layers=layers), expected, strict=True):
        assert a.residues.shape == b.residues.shape
        assert _difference(a.residues, b.residues.double()) < 1e-5
        assert _difference(a.cls, b.cls.double()) < 1e-5


@pytest.mark.parametrize("name", ["off", *INSTRUCTIONS])
def test_bf16_of_the_embedded_backbone_keeps_its_cosine(monkeypatch, name):
    proteins = ["MKTAYIAKQRQISFVKSHFSRQ", "ACDEFGHIKLMNPQRSTVWY" * 20]
    exact = load_compact().represent(proteins, layers=[6])
    monkeypatch.setenv("BIOXFER_KERNELS", name)
    fast = load_compact(precision="bf16").represent(proteins, layers=[6])
    for a, b in zip(fast, exact, strict=True):
        assert float(torch.cosine_similarity(a.residues.mean(1), b.residues.mean(1))) > 0.9999


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=12), st.integers(0, 2**32 - 1))
def test_fp32_of_a_protein_is_the_same_bits_in_any_company(lengths, seed):
    """So neither order, batch size nor a cache that knows some of the proteins shows in the output."""
    exact = load_kernels().instructions == "amx" or rows_stand_alone()
    rng = np.random.default_rng(seed)
    proteins = ["".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), size=n)) for n in lengths]
    backbone = _toy()
    together = backbone.represent(proteins, layers=[2])
    for protein, one in zip(proteins, together, strict=True):
        alone = backbone.represent([protein], layers=[2])[0].residues
        assert torch.equal(alone, one.residues) if exact else _difference(alone, one.residues.double()) < 1e-5


def _toy(cache=[]):  # noqa: B006
    if not cache:
        cache.append(random_backbone(width=128, layers=2, seed=1))
    return cache[0]


def test_threads_do_not_show_in_the_result():
    proteins = ["ACDEFGHIKLMNPQRSTVWY" * n for n in (1, 7, 30)]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = _toy().represent(proteins, layers=[0, 1, 2])
        torch.set_num_threads(3)
        shared = _toy().represent(proteins, layers=[0, 1, 2])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a.residues, b.residues) for a, b in zip(alone, shared, strict=True))


def test_a_forked_child_computes_too():
    context = multiprocessing.get_context("fork")
    theirs, ours = context.Pipe(duplex=False)

    def child():
        x = torch.linspace(-3, 3, 2**15).view(-1, 64)  # no more: torch's own threads do not survive a fork
        ours.send(load_kernels().gelu_(x, torch.zeros(64)).double().sum().item())

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        module._share(lambda first, last: None, 8, worth=True)  # so that there is a pool to inherit
        process = context.Process(target=child)
        process.start()
        process.join(60)
    finally:
        torch.set_num_threads(threads)
    assert process.exitcode == 0
    assert theirs.recv() == pytest.approx(
        float(F.gelu(torch.linspace(-3, 3, 2**15).double()).sum()), rel=1e-6
    )


def test_tensors_that_would_be_misread_are_refused():
    kernels, norm = load_kernels(), nn.LayerNorm(8)
    x = torch.zeros(4, 8)
    for wrong in (torch.zeros(4, 7), torch.zeros(8, 4).t(), torch.zeros(4, 8, dtype=torch.float64)):
        with pytest.raises(ValueError, match="a kernel takes contiguous"):
            kernels.add_norm(x, None, None, norm, wrong)
    pack = _pack((4,), multiple=1)
    with pytest.raises(ValueError, match="heads of width 10 do not fit"):
        kernels.attend(torch.zeros(4, 30), torch.zeros(30), None, pack, heads=1, out=torch.zeros(4, 10))
    with pytest.raises(ValueError, match="rotations for 2 places"):
        kernels.attend(torch.zeros(4, 24), torch.zeros(24), _turn(2, 8), pack, heads=1, out=torch.zeros(4, 8))
    with pytest.raises(ValueError, match="does not fit"):
        kernels.convolve(torch.zeros(4, 8), torch.zeros(3, 8), pack, activate=False, out=torch.zeros(4, 8))
    with pytest.raises(ValueError, match="a kernel takes"):  # fewer rows than the pack has tokens
        kernels.attend(torch.zeros(3, 24), torch.zeros(24), None, pack, heads=1, out=torch.zeros(3, 8))


def test_room_is_used_again_and_never_shared_by_copies():
    scratch = Scratch()
    first = scratch.take("h", 10, 4, torch.float32)
    assert scratch.take("h", 5, 8, torch.float32).data_ptr() == first.data_ptr()
    assert scratch.take("h", 10, 4, torch.bfloat16).data_ptr() != first.data_ptr()
    assert scratch.take("h", 11, 4, torch.float32).shape == (11, 4)
    assert copy.deepcopy(scratch).take("h", 10, 4, torch.float32).data_ptr() != first.data_ptr()


def test_a_copied_backbone_computes_the_same():
    backbone = _toy()
    again = copy.deepcopy(backbone)
    (a,), (b,) = (each.represent(["ACDEFGHIKL"], layers=[2]) for each in (backbone, again))
    assert torch.equal(a.residues, b.residues)


def test_what_was_prepared_for_another_processor_is_refused(monkeypatch):
    restore, arguments = load_kernels().__reduce__()
    assert restore(*arguments).instructions == load_kernels().instructions
    monkeypatch.setattr(module, "_load", lambda wanted: None)
    with pytest.raises(UsageError, match="came to a processor without it"):
        restore(*arguments)


def test_a_word_that_is_no_instruction_set_is_refused(monkeypatch):
    monkeypatch.setenv("BIOXFER_KERNELS", "mmx")
    with pytest.raises(UsageError, match=r"BIOXFER_KERNELS is 'mmx'; choose off, plain, avx2"):
        load_kernels()


def test_other_devices_and_installs_without_a_compiler_have_none(monkeypatch, tmp_path):
    assert load_kernels(device="meta") is None
    monkeypatch.setattr(module, "__file__", str(tmp_path / "kernels.py"))
    assert module._open_library() is None
    tmp_path.joinpath("_kernels.so").write_bytes(b"no library")
    assert module._open_library() is None


def test_a_build_of_another_source_is_not_called(monkeypatch, caplog):
    monkeypatch.setattr(module, "_VERSION", -1)
    assert module._open_library() is None
    assert "built of another version" in caplog.text


def test_interrupted_work_is_waited_for(monkeypatch):
    done = []

    def run(first, last):
        if first == 0:
            raise KeyboardInterrupt
        time.sleep(0.2)
        done.append(first)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(KeyboardInterrupt):
        module._share(run, 2, worth=True)
    assert done == [1]


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_no_kernel_reads_or_writes_past_its_tensors(tmp_path):
    """Once more under the address sanitiser, with tensors that end where their memory ends."""
    source = module.__file__.replace("kernels.py", "kernels.cpp")
    library = tmp_path / "_kernels.so"
    build = ["g++", "-std=c++17", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
             "-w", "-fPIC", "-shared", source, "-o", str(library)]  # fmt: skip
    if not Path(source).is_file():
        pytest.skip("installed without the source of the kernels")
    trivial = tmp_path / "trivial.cpp"
    trivial.write_text("int one() { return 1; }")
    if subprocess.run([*build[:-3], str(trivial), "-o", str(library)], check=False).returncode:
        pytest.skip("this g++ has no sanitisers")
    subprocess.run(build, check=True)
    found = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    script = tmp_path / "try.py"
    script.write_text(_SANITISED)
    done = subprocess.run(
        [sys.executable, str(script), str(library)],
        capture_output=True,
        text=True,
        env={"LD_PRELOAD": found.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "clean"


# ctypes alone, since torch under the sanitiser takes minutes to load.
_SANITISED = """
import ctypes, itertools, random, sys
library = ctypes.CDLL(sys.argv[1])
best = library.bx_isa()
P, I, N, R = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
library.bx_norm.argtypes = [I] * 3 + [P] * 6 + [N] * 2 + [R]
library.bx_gelu.argtypes = [I] * 2 + [P] * 2 + [N] * 2
library.bx_convolve.argtypes = [I] * 2 + [P] * 3 + [N] * 3 + [I, P]
library.bx_attend.argtypes = [I] * 2 + [P] * 5 + [N] * 5 + [R, P]
library.bx_pack.argtypes, library.bx_product.argtypes = [P, N, N, P], [P] * 3 + [N] * 3
libc = ctypes.CDLL(None)

libc.mmap.restype, libc.mmap.argtypes = P, [P, ctypes.c_size_t, I, I, I, ctypes.c_long]
libc.munmap.argtypes = libc.mprotect.argtypes = [P, ctypes.c_size_t]
libc.mprotect.argtypes = [P, ctypes.c_size_t, I]
PAGE, sizes = 4096, {}

def room(count, half):
    # Up to a page that may not be touched, as the sanitiser does not see what tiles load and store.
    size = count * (2 if half else 4)
    whole = -(-size // PAGE) * PAGE
    base = libc.mmap(None, whole + PAGE, 3, 0x22, -1, 0)
    libc.mprotect(base + whole, PAGE, 0)
    place = base + whole - size
    ctypes.memset(place, 0x3C, size)  # 0.0115 as float32 and 0.0115 as bf16
    sizes[place] = base, whole + PAGE
    return place

def free(place):
    libc.munmap(*sizes.pop(place))

for isa, half in itertools.product(range(best + 1), (0, 1)):
    for lengths in ((1,), (17, 33), (130, 16, 3), (260,)):
        rows, starts = sum(lengths), [0]
        for length in lengths:
            starts.append(starts[-1] + length)
        edges = (ctypes.c_int64 * len(starts))(*starts)
        for width in (8, 16, 24, 32, 64, 128):
            heads = 2
            qkv, out = room(rows * 3 * heads * width, half), room(rows * heads * width, half)
            bias, turn = room(3 * heads * width, 0), room(max(lengths) * width // 2, 0)
            for a, b in ((0, 2), (1, 2)):
                assert library.bx_attend(isa, half, qkv, bias, turn, turn, edges, len(lengths), heads, a, b,
                                         width, 0.25, out) == 0
            for each in (qkv, out, bias, turn):
                free(each)
        if isa == 3 and not half:
            height = (rows + 31) // 32 * 32
            for k, n in ((32, 32), (544, 96)):
                x, y, w, packed = room(height * k, 0), room(height * n, 0), room(n * k, 0), room(3 * n * k, 1)
                library.bx_pack(w, n, k, packed)
                assert library.bx_product(x, packed, y, height, k, n) == 0
                for each in (x, y, w, packed):
                    free(each)
        for width in (16, 48):
            x, out, weight = room(rows * width, half), room(rows * width, half), room(9 * width, 0)
            library.bx_convolve(isa, half, x, weight, edges, len(lengths), width, 9, 1, out)
            for each in (x, out, weight):
                free(each)
    for width in (1, 7, 16, 37):
        x, change, out = room(5 * width, 0), room(5 * width, half), room(5 * width, half)
        one = room(width, 0)
        library.bx_norm(isa, half, half, x, change, one, one, one, out, 5, width, 1e-5)
        library.bx_norm(isa, 0, half, x, None, None, one, one, out, 5, width, 1e-5)
        library.bx_gelu(isa, half, change, one, 5, width)
        for each in (x, change, out, one):
            free(each)
print("clean")
"""
