"""The embedded backbone: a small protein language model that ships with bioxfer.

Every block convolves over neighbours, channel by channel, as ConvNeXt does (Liu
et al. 2022, arXiv:2201.03545); some attend to the whole protein afterwards, with
ESM-2's rotary positions and pre-norm residual stream (Lin et al. 2023,
doi:10.1126/science.ade2574). Convolutions learn local patterns from far fewer
proteins than attention does; two attending blocks among six were better than
none and better than all (benchmarks/pretraining_log.md). Attention heads are 64
wide, since narrow heads spend their time in ``exp``.

`bioxfer.pretrain` trains the same `CompactModel` that runs here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bioxfer.backbones import Representation, matrix_dtype, resolve_precision
from bioxfer.backbones.compact_shape import HEAD_WIDTH, CompactConfig, parse_config
from bioxfer.backbones.kernels import ROWS, Kernels, Product, Scratch, load_kernels
from bioxfer.backbones.packing import Pack, attend, pack_tokens, project, rotary_tables, rotate
from bioxfer.backbones.weights import fingerprint, sort_metadata
from bioxfer.cache import shelter_compiler
from bioxfer.errors import WeightsError
from bioxfer.metadata import parse_metadata

__all__ = [
    "BOS",
    "COMPACT_WEIGHTS",
    "EOS",
    "MASK",
    "RESIDUES",
    "CompactBackbone",
    "CompactConfig",
    "CompactModel",
    "load_compact",
    "random_backbone",
    "read_card",
    "read_compact",
    "save_compact",
    "tokenize",
]

COMPACT_WEIGHTS = Path(__file__).parent.parent / "weights" / "compact.safetensors"
"""The weights inside the package."""

RESIDUES = "ACDEFGHIKLMNPQRSTVWYXBZUO"
BOS, EOS, MASK = len(RESIDUES), len(RESIDUES) + 1, len(RESIDUES) + 2
VOCABULARY = len(RESIDUES) + 3

FORMAT = "bioxfer-compact-2"

Groups = tuple[tuple[int, int, int], ...]

_TOKEN_OF_BYTE = np.full(256, RESIDUES.index("X"), dtype=np.uint8)
_TOKEN_OF_BYTE[np.frombuffer(RESIDUES.encode(), dtype=np.uint8)] = np.arange(len(RESIDUES))


def tokenize(residues: str | bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Turn residues into token numbers, one each; what is no residue becomes ``X``.

    Parameters
    ----------
    residues : str or bytes
        Upper-case one-letter residues, ``L`` of them.

    Returns
    -------
    ndarray
        ``(L,)`` uint8.
    """
    raw = residues.encode("ascii", "replace") if isinstance(residues, str) else residues
    return _TOKEN_OF_BYTE[np.frombuffer(raw, dtype=np.uint8)]


@dataclass(frozen=True, slots=True)
class _Layout:
    """What blocks need to know of a pack: its groups, and for each token its place and rotation."""

    groups: Groups
    before: Tensor  # (T,) tokens of the same sequence that stand before
    after: Tensor  # (T,) and after
    cos: Tensor
    sin: Tensor


class CompactBlock(nn.Module):
    """One pre-norm block: a convolution over neighbours, attention in some, and a feed-forward part."""

    def __init__(self, config: CompactConfig, *, attends: bool) -> None:
        super().__init__()
        width = config.width
        self.norm_mix = nn.LayerNorm(width)
        self.products: dict[str, Product] = {}
        self._attend = _attend
        self.neighbours = nn.Parameter(torch.zeros(config.kernel, width))
        self.qkv = nn.Linear(width, 3 * width) if attends else None
        self.out = nn.Linear(width, width)
        self.norm_feedforward = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, layout: _Layout) -> Tensor:
        """Transform packed tokens ``x: (T, D)``."""
        h = self.norm_mix(x).to(layout.cos.dtype)
        h = _convolve(h, self.neighbours.to(h.dtype), layout)
        if self.qkv is None:
            mixed = F.gelu(h)
        else:
            heads = (-1, 3, x.shape[-1] // HEAD_WIDTH, HEAD_WIDTH)
            q, k, v = project(h, self.qkv).view(heads).unbind(1)
            q, k = rotate(q, layout.cos, layout.sin), rotate(k, layout.cos, layout.sin)
            mixed = self._attend(q, k, v, layout).flatten(1)
        x = x + project(mixed, self.out)
        h = self.norm_feedforward(x).to(layout.cos.dtype)
        return x + project(F.gelu(project(h, self.up)), self.down)

    def compile_parts(self) -> None:
        """Compile this block for training, but for its attention.

        The groups of a pack differ from pack to pack, and compiled code would be made anew for each.
        """
        # Here and not as a decorator, which would load torch's compiler, for a second, with every command.
        shelter_compiler()
        self._attend = torch.compiler.disable(_attend)  # type: ignore[no-untyped-call]
        self.compile()

    def run(
        self,
        x: Tensor,
        change: Tensor | None,
        bias: Tensor | None,
        pack: Pack,
        turn: tuple[Tensor, Tensor],
        *,
        kernels: Kernels,
        scratch: Scratch,
    ) -> tuple[Tensor, Tensor]:
        """Do what `forward` does, with compiled kernels; parameters and result as `EsmBlock.run` has them."""
        (rows, width), products = x.shape, self.products

        def product(h: Tensor, name: str, room: str) -> Tensor:
            layer = products[name]
            return layer(h, out=scratch.take(room, rows, layer.width, h.dtype))

        h, mixed = (scratch.take(name, rows, width, products["out"].dtype) for name in ("h", "mixed"))
        kernels.add_norm(x, change, bias, self.norm_mix, h)
        kernels.convolve(h, self.neighbours, pack, activate=self.qkv is None, out=mixed)
        if self.qkv is not None:
            qkv = product(mixed, "qkv", "wide")
            kernels.attend(qkv, self.qkv.bias, turn, pack, heads=width // HEAD_WIDTH, out=mixed)
        change = product(mixed, "out", "change")
        kernels.add_norm(x, change, self.out.bias, self.norm_feedforward, h)
        wide = kernels.gelu_(product(h, "up", "wide"), self.up.bias)
        return product(wide, "down", "change"), self.down.bias


def _attend(q: Tensor, k: Tensor, v: Tensor, layout: _Layout) -> Tensor:
    return attend(q, k, v, layout.groups, scale=HEAD_WIDTH**-0.5)


def _convolve(h: Tensor, weight: Tensor, layout: _Layout) -> Tensor:
    """Add to each token of ``h: (T, D)`` a weighted sum of those around it in its own sequence."""
    if torch.compiler.is_compiling():
        return _all_taps(h, weight, layout)
    return cast(Tensor, _Neighbours.apply(h, weight, layout.groups))  # type: ignore[no-untyped-call]


def _all_taps(h: Tensor, weight: Tensor, layout: _Layout) -> Tensor:
    """Do what `_Neighbours` does in a form that compiles to one pass, the same for every pack."""
    reach = weight.shape[0] // 2
    wide = F.pad(h, (0, 0, reach, reach))
    total = h
    for tap in range(weight.shape[0]):
        shift = tap - reach
        inside = layout.before >= -shift if shift < 0 else layout.after >= shift
        total = total + wide[tap : tap + len(h)] * inside.unsqueeze(1) * weight[tap]
    return total


class _Neighbours(torch.autograd.Function):
    """Add to each token a weighted sum of the tokens around it in its own sequence.

    Written out with its gradient, since autograd's for slices fills a whole
    tensor with zeros for each tap and each group.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, groups: Groups) -> Tensor:
        ctx.save_for_backward(h, weight)
        ctx.groups = groups
        total = h.clone()
        for tap, here, there in _taps(groups, weight.shape[0]):
            here(total).addcmul_(there(h), weight[tap])
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        h, weight = ctx.saved_tensors
        (gradient,) = gradients
        to_h = gradient.clone()
        to_weight = torch.zeros_like(weight, dtype=torch.float32)
        for tap, here, there in _taps(ctx.groups, weight.shape[0]):
            there(to_h).addcmul_(here(gradient), weight[tap])
            if ctx.needs_input_grad[1]:
                to_weight[tap] += (here(gradient) * there(h)).sum((0, 1), dtype=torch.float32)
        return to_h, to_weight.to(weight.dtype), None


def _taps(
    groups: Groups, kernel: int
) -> Iterator[tuple[int, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]]:
    """For each group and tap, views of the tokens that receive and of those that give."""
    for start, count, length in groups:
        for tap in range(kernel):
            shift = tap - kernel // 2
            if abs(shift) < length:

                def view(
                    x: Tensor,
                    *,
                    first: int,
                    last: int,
                    start: int = start,
                    count: int = count,
                    length: int = length,
                ) -> Tensor:
                    return x[start : start + count * length].view(count, length, -1)[:, first:last]

                here = partial(view, first=max(0, -shift), last=length - max(0, shift))
                there = partial(view, first=max(0, shift), last=length - max(0, -shift))
                yield tap, here, there


class CompactModel(nn.Module):
    """The transformer of the embedded backbone, for training and for inference.

    Parameters
    ----------
    config : CompactConfig
        Shape of the model.
    """

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(VOCABULARY, config.width)
        self.blocks = nn.ModuleList(
            CompactBlock(config, attends=number in config.attention) for number in range(1, config.layers + 1)
        )
        self.norm = nn.LayerNorm(config.width)
        self.lm_head = nn.Linear(config.width, VOCABULARY)
        self._scratch = Scratch()
        self._initialise()

    def _initialise(self) -> None:
        # GPT-2's scheme: 0.02 everywhere, and the writers into the residual stream
        # shrunk with depth so that its variance does not grow (Radford et al. 2019).
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.embedding.weight, std=0.5)
        nn.init.normal_(self.lm_head.weight, std=0.02)
        shrink = (2 * self.config.layers) ** -0.5
        for block in self.blocks:
            assert isinstance(block, CompactBlock)
            nn.init.normal_(block.neighbours, std=0.1 * self.config.kernel**-0.5)
            for writer in (block.out, block.down):
                with torch.no_grad():
                    writer.weight.mul_(shrink)

    def prepare(self, kernels: Kernels) -> None:
        """Pack the matrices for `run`; they may not change any more."""
        for block in self.blocks:
            assert isinstance(block, CompactBlock)
            for name in ("qkv", "out", "up", "down"):
                if (linear := getattr(block, name)) is not None:
                    block.products[name] = Product(linear.weight, kernels)

    def run(self, pack: Pack, *, layers: Iterable[int], kernels: Kernels) -> list[Tensor]:
        """Hidden states as `forward` gives them, with compiled kernels and without gradients.

        Parameters
        ----------
        pack : Pack
            As for `forward`, filled up to a multiple of `bioxfer.backbones.kernels.ROWS`.
        layers : iterable of int
            Wanted layers.
        kernels : Kernels
            What `prepare` was given.

        Returns
        -------
        list of Tensor
            ``(T, D)`` float32 for each wanted layer.
        """
        wanted, last = list(layers), self.config.layers
        cos, sin = rotary_tables(torch.arange(max(pack.lengths)), HEAD_WIDTH)
        turn = cos[:, 0, : HEAD_WIDTH // 2].contiguous(), sin[:, 0, : HEAD_WIDTH // 2].contiguous()
        x = self.embedding(pack.tokens)
        states = {0: x.clone()} if 0 in wanted else {}
        change: Tensor | None = None
        bias: Tensor | None = None
        for number, block in enumerate(self.blocks[: max(wanted)], start=1):
            assert isinstance(block, CompactBlock)
            change, bias = block.run(x, change, bias, pack, turn, kernels=kernels, scratch=self._scratch)
            if number == last:
                states[number] = kernels.add_norm(x, change, bias, self.norm, torch.empty_like(x))
            elif number in wanted:
                states[number] = x + change + bias
        return [states[number] for number in wanted]

    def _matrix_dtype(self) -> torch.dtype:
        if torch.is_autocast_enabled("cpu"):
            return torch.get_autocast_dtype("cpu")
        return self.lm_head.weight.dtype

    def forward(self, pack: Pack, *, layers: Iterable[int] | None = None) -> list[Tensor]:
        """Hidden states of packed tokens.

        Parameters
        ----------
        pack : Pack
            Tokens, each sequence between its ``BOS`` and ``EOS``.
        layers : iterable of int, optional
            Wanted layers: 0 is the embedding, ``config.layers`` the last block
            after the final norm. Only the last one if not given.

        Returns
        -------
        list of Tensor
            ``(T, D)`` float32 for each wanted layer.
        """
        last = self.config.layers
        wanted = [last] if layers is None else list(layers)
        # Filled up as in inference, for the reason that ROWS gives; the filling is a sequence of its own.
        count = len(pack.tokens)
        idle = -count % ROWS
        tokens, positions = F.pad(pack.tokens, (0, idle)), F.pad(pack.positions, (0, idle))
        groups = (*pack.groups, (count, 1, idle)) if idle else pack.groups
        after = torch.tensor(pack.lengths, device=tokens.device)[pack.segments] - 1 - pack.positions
        cos, sin = (table.to(self._matrix_dtype()) for table in rotary_tables(positions, HEAD_WIDTH))
        layout = _Layout(groups, positions, F.pad(after, (0, idle)), cos, sin)
        x = self.embedding(tokens).float()
        states = {0: x}
        for number, block in enumerate(self.blocks, start=1):
            if number > max(wanted):
                break
            x = block(x, layout)
            states[number] = x if number < last else self.norm(x)
            if number not in wanted:
                del states[number]
        return [states[number][:count] for number in wanted]


class CompactBackbone:
    """The embedded backbone behind the `bioxfer.backbones.Backbone` protocol.

    Parameters
    ----------
    model : CompactModel
        Weights in float32.
    name : str, optional
        Name shown in tables and cards.
    precision : {"fp32", "bf16", "fp16", "auto"}, optional
        ``bf16`` keeps matrices in bfloat16 and residual stream, norms and
        softmax in float32.
    device : str, optional
        Where to run.
    card : dict, optional
        How the weights were made.
    """

    concurrent = True
    """Several threads may call `represent` at once."""

    def __init__(
        self,
        model: CompactModel,
        *,
        name: str = "compact",
        precision: str = "fp32",
        device: str = "cpu",
        card: dict[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.card = card or {}
        self.dim = model.config.width
        self.n_layers = model.config.layers
        self.window = model.config.window
        self.precision = resolve_precision(precision, device=device)
        self.fingerprint = fingerprint(asdict(model.config), model.state_dict())
        self.device = torch.device(device)
        self._model = model.eval().requires_grad_(False).to(self.device)
        for module in self._model.modules():
            if isinstance(module, nn.Linear):
                module.weight.data = module.weight.data.to(matrix_dtype(self.precision))
        self._kernels = load_kernels(device=device)
        if self._kernels is not None:
            self._model.prepare(self._kernels)

    @torch.inference_mode()
    def represent(self, sequences: Sequence[str], *, layers: Sequence[int]) -> list[Representation]:
        """Represent every residue of every sequence.

        Parameters
        ----------
        sequences : sequence of str
            Clean residues; sequence ``i`` has ``L_i`` of them.
        layers : sequence of int
            Wanted layers, 0 to ``n_layers``.

        Returns
        -------
        list of Representation
            In input order; ``residues: (len(layers), L_i, D)`` and
            ``cls: (len(layers), D)``, both float32.
        """
        if not sequences:
            return []
        self._model.eval()
        framed = [torch.from_numpy(_frame(tokenize(s))) for s in sequences]
        pack = pack_tokens(framed, device=self.device, multiple=ROWS)
        if self._kernels is None:
            states = self._model(pack, layers=layers)
        else:
            states = self._model.run(pack, layers=layers, kernels=self._kernels)
        per_layer = [pack.unpack(state) for state in states]
        found = []
        for per_sequence in zip(*per_layer, strict=True):
            both = torch.stack(per_sequence)
            found.append(Representation(residues=both[:, 1:-1], cls=both[:, 0]))
        return found


def _frame(tokens: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.concatenate(([BOS], tokens, [EOS])).astype(np.uint8)


def save_compact(model: CompactModel, path: str | Path, *, card: dict[str, Any]) -> None:
    """Write weights in half precision, with their shape and card beside them.

    Parameters
    ----------
    model : CompactModel
        The trained model.
    path : str or Path
        A ``.safetensors`` file; it appears whole or not at all.
    card : dict
        How the weights were made; kept as JSON in the file's metadata.
    """
    from safetensors.torch import save

    from bioxfer.output import publish

    tensors = {n: t.detach().to("cpu", torch.float16).contiguous() for n, t in model.state_dict().items()}
    metadata = {
        "format": FORMAT,
        "config": json.dumps(asdict(model.config), sort_keys=True),
        "card": json.dumps(card, sort_keys=True),
    }
    with publish(path) as temporary:
        temporary.write_bytes(sort_metadata(save(tensors, metadata=metadata)))


def _read_metadata(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        path.open("rb").close()  # safetensors calls a file that it may not read a missing one
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path}: not a readable safetensors file ({error}); fetch or train the weights again"
        ) from error
    if metadata.get("format") != FORMAT:
        raise WeightsError(
            f"{path}: not weights of a compact backbone of this version; make them with `bioxfer pretrain`"
        )
    return dict(metadata)


def read_card(path: str | Path | None = None) -> dict[str, Any]:
    """Read how compact weights were made.

    Parameters
    ----------
    path : str or Path, optional
        Weights file; the embedded one if not given.
    """
    place = Path(path) if path is not None else COMPACT_WEIGHTS
    try:
        return parse_metadata(_read_metadata(place)["card"])
    except (KeyError, ValueError) as error:
        raise WeightsError(f"{place}: weights without a card ({error}); get or train them anew") from error


def load_compact(
    path: str | Path | None = None, *, precision: str = "fp32", device: str = "cpu"
) -> CompactBackbone:
    """Load a compact backbone.

    Parameters
    ----------
    path : str or Path, optional
        Weights that `save_compact` wrote; the embedded ones if not given.
    precision : {"fp32", "bf16", "fp16", "auto"}, optional
        See `CompactBackbone`.
    device : str, optional
        Where to run.

    Raises
    ------
    WeightsError
        If the file is damaged, foreign or does not fit its stated shape.
    """
    model, card = read_compact(path)
    name = "compact" if path is None else Path(path).stem
    return CompactBackbone(model, name=name, precision=precision, device=device, card=card)


def read_compact(path: str | Path | None = None) -> tuple[CompactModel, dict[str, Any]]:
    """Read the model that `load_compact` runs, in float32, and its card; it raises what that does."""
    from safetensors.torch import load_file

    place = Path(path) if path is not None else COMPACT_WEIGHTS
    metadata = _read_metadata(place)
    try:
        tensors, card = load_file(place), parse_metadata(metadata["card"])
        model = CompactModel(parse_config(parse_metadata(metadata["config"]), tensors))
        model.load_state_dict({n: t.float() for n, t in tensors.items()})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{place}: weights do not fit their stated shape ({error})") from error
    if not all(bool(torch.isfinite(t).all()) for t in model.state_dict().values()):
        raise WeightsError(f"{place}: weights hold numbers that are not finite; fetch them again")
    return model, card


def random_backbone(
    *, width: int = 64, layers: int = 2, seed: int = 0, window: int = 1022, precision: str = "fp32"
) -> CompactBackbone:
    """Build an untrained backbone for tests and speed measurements.

    Parameters
    ----------
    width, layers : int, optional
        Shape of the model.
    seed : int, optional
        The same seed gives the same weights.
    window : int, optional
        Residues seen at once.
    precision : {"fp32", "bf16", "fp16", "auto"}, optional
        See `CompactBackbone`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        attention = tuple(range(2, layers + 1, 2))
        model = CompactModel(CompactConfig(width=width, layers=layers, attention=attention, window=window))
        for block in model.blocks:
            assert isinstance(block, CompactBlock)
            nn.init.normal_(block.neighbours, std=0.2)
    return CompactBackbone(model, name=f"random-{width}x{layers}-{seed}", precision=precision)
