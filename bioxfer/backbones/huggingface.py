"""Models in Hugging Face's layout: a folder with ``config.json``, a tokenizer's file and safetensors.

============  ==============================  =============================================
model_type    models                          computed by
============  ==============================  =============================================
``esm``       ESM-2, ESM-1b, ESM-1v           `bioxfer.backbones.esm`, as fair-esm's files
``t5``        ProtT5, ProstT5, Ankh, Ankh 3   `bioxfer.backbones.t5`
``esmc``      ESM-C                           `bioxfer.backbones.esmc`
============  ==============================  =============================================

The package transformers is not imported, and no code that comes with a model is run: a config that names
some (``auto_map``) is refused, as nobody knows what the model would compute without it. What a config asks
for and these do not do is refused by its name. Weights of any precision are read as float32. Where a folder
comes from, and whether it is what it was, is the matter of `bioxfer.backbones.hub`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from bioxfer.backbones import Backbone, Representation, matrix_dtype, resolve_precision
from bioxfer.backbones.esm import ALPHABET, MASK, PAD, TRAINED_RESIDUES, EsmBackbone, EsmEncoder
from bioxfer.backbones.esmc import EsmcConfig, EsmcEncoder, esmc_names
from bioxfer.backbones.fairesm import build_esm
from bioxfer.backbones.hub import SOURCE, TEXTS, find_folder
from bioxfer.backbones.kernels import ROWS, FastLinear, load_kernels
from bioxfer.backbones.modelfolder import ModelConfig, ModelWeights, weight_files
from bioxfer.backbones.packing import pack_tokens
from bioxfer.backbones.t5 import ACTIVATIONS, T5Config, T5Encoder, t5_names
from bioxfer.backbones.vocabulary import ResidueTokens, find_residues, read_vocabulary
from bioxfer.backbones.weights import WeightsCheck, sha256_of
from bioxfer.backbones.weights import fingerprint as fingerprint_of
from bioxfer.errors import UsageError, WeightsError

__all__ = [
    "Summary",
    "TokenBackbone",
    "describe_folder",
    "load_folder",
    "read_esm_folder",
    "summarize",
    "verify_folder",
]

_MOST_LAYERS = 1000
# The token before the residues that says what is to be done with them: ProstT5's and Ankh 3's for embedding.
_PREFIXES = ("<AA2fold>", "[NLU]")

Encoder = T5Encoder | EsmcEncoder


@dataclass(frozen=True, slots=True)
class Summary:
    """What a folder's ``config.json`` says of the model.

    Attributes
    ----------
    family : str
        ``ESM``, ``T5`` or ``ESM-C``.
    layers, dim, window : int
        As of the backbone.
    parameters : int or None
        Weights of the encoder; None where the files would have to be read for it.
    """

    family: str
    layers: int
    dim: int
    window: int
    parameters: int | None


class TokenBackbone:
    """A T5 encoder or ESM-C behind the `bioxfer.backbones.Backbone` protocol.

    Parameters
    ----------
    encoder : T5Encoder or EsmcEncoder
        The model with its weights, at its precision and on its device.
    tokens : ResidueTokens
        Its vocabulary.
    name : str
        Name shown in tables and cards.
    precision : {"fp32", "bf16", "fp16"}
        Type of the matrices.
    fingerprint : str
        Of the weights in float32.
    window : int
        Residues seen at once.

    Attributes
    ----------
    reads_as_x : str
        Residues that the model is given as ``X``.
    has_start : bool
        Whether a token stands before the first residue; if not, ``cls`` is the vector
        of the end token, and the pooling of that name is refused.
    """

    concurrent = True
    """Several threads may call `represent` at once."""

    def __init__(
        self,
        encoder: Encoder,
        tokens: ResidueTokens,
        *,
        name: str,
        precision: str,
        fingerprint: str,
        window: int,
    ) -> None:
        self.name = name
        self.dim = encoder.config.width
        self.n_layers = encoder.config.layers
        self.window = window
        self.precision = precision
        self.fingerprint = fingerprint
        self.reads_as_x = tokens.as_x
        self.has_start = bool(tokens.before)
        self.device = encoder.embedding.weight.device
        self._encoder, self._tokens = encoder, tokens
        kernels = load_kernels(device=self.device)
        for module in encoder.modules():
            if kernels is not None and isinstance(module, FastLinear):
                module.use(kernels)

    def __repr__(self) -> str:
        return f"<TokenBackbone {self.name}: {self.n_layers} layers of {self.dim}, {self.precision}>"

    @torch.inference_mode()
    def represent(self, sequences: Sequence[str], *, layers: Sequence[int]) -> list[Representation]:
        """Represent every residue of every sequence.

        Parameters
        ----------
        sequences : sequence of str
            Clean upper-case residues; sequence ``i`` has ``L_i`` of them.
        layers : sequence of int
            Wanted layers, 0 to ``n_layers``; the last one stands after the final norm.

        Returns
        -------
        list of Representation
            In input order; ``residues: (len(layers), L_i, D)`` and
            ``cls: (len(layers), D)``, both float32 on the model's device.

        Raises
        ------
        SequenceError
            If a sequence holds what is no residue.
        UsageError
            If there is no such layer.
        """
        for layer in layers:
            if not 0 <= layer <= self.n_layers:
                raise UsageError(f"layer {layer} does not exist; {self.name} has layers 0 to {self.n_layers}")
        tokens = [torch.from_numpy(self._tokens.tokenize(sequence)) for sequence in sequences]
        if not tokens or not layers:
            empty = torch.empty(len(layers), 0, self.dim, device=self.device)
            return [Representation(residues=empty, cls=empty[:, 0]) for _ in tokens if layers]
        pack = pack_tokens(tokens, device=self.device, multiple=ROWS)
        states = torch.stack(self._encoder(pack, layers=layers), dim=1)
        first, last = len(self._tokens.before), len(self._tokens.after)
        found = []
        for state in pack.unpack(states):
            by_layer = state.transpose(0, 1)  # (layers, T_i, D)
            cls = by_layer[:, 0 if self.has_start else -1]
            found.append(Representation(residues=by_layer[:, first : by_layer.shape[1] - last], cls=cls))
        return found


def load_folder(
    folder: str | Path, *, name: str | None = None, precision: str = "fp32", device: str = "cpu"
) -> Backbone:
    """Load a model in Hugging Face's layout.

    Parameters
    ----------
    folder : path
        Holds ``config.json``, a tokenizer's file and weights: safetensors, one file or shards
        with their index, or else ``pytorch_model.bin``, of which tensors alone are read.
    name : str, optional
        Of the backbone; the folder's if not given.
    precision : {"fp32", "bf16", "fp16", "auto"}, optional
        Type of the matrices, see `bioxfer.backbones.resolve_precision`.
    device : str, optional
        Where to run.

    Raises
    ------
    WeightsError
        If a file is missing or damaged, or the model is none that can be computed here.
    """
    folder = Path(folder)
    label = name or folder.resolve().name
    precision = resolve_precision(precision, device=device)
    matrices = matrix_dtype(precision)
    config = ModelConfig.read(folder)
    if config.model_type == "esm":
        esm, fingerprint = read_esm_folder(folder, matrices=matrices)
        return EsmBackbone(esm.to(device), name=label, precision=precision, fingerprint=fingerprint)
    read = _read_t5 if config.model_type == "t5" else _read_esmc
    encoder, tokens, fingerprint, window = read(folder, config, matrices)
    return TokenBackbone(
        encoder.to(device),
        tokens,
        name=label,
        precision=precision,
        fingerprint=fingerprint,
        window=window,
    )


def read_esm_folder(folder: str | Path, *, matrices: torch.dtype = torch.float32) -> tuple[EsmEncoder, str]:
    """Read an ESM-2, ESM-1b or ESM-1v, and its fingerprint: that of the same weights in fair-esm's layout.

    Parameters
    ----------
    folder : path
        As for `load_folder`.
    matrices : torch.dtype, optional
        Type of the matrices.

    Raises
    ------
    UsageError
        If it holds another model.
    WeightsError
        As `load_folder`.
    """
    folder = Path(folder)
    config = ModelConfig.read(folder)
    if config.model_type != "esm":
        raise UsageError(
            f"{folder}: a model of the type {config.model_type} cannot be adapted; take an ESM-2, ESM-1b or "
            "ESM-1v, or the embedded backbone"
        )
    layers, width, ffn, heads = _esm_shape(config)
    rotary = config.text("position_embedding_type", "absolute", among=("rotary", "absolute")) == "rotary"
    vocabulary = read_vocabulary(folder)
    if any(vocabulary.get(token) != number for number, token in enumerate(ALPHABET)):
        raise WeightsError(f"{folder}: its vocabulary is not that of ESM-2; it cannot be loaded")
    weights = ModelWeights.open(
        folder, prefix="esm.", unused=("lm_head.", "contact_head.", "pooler.", "classifier.")
    )
    base = config.number("rope_theta", 10000.0)
    state = _as_fairesm(weights, layers=layers, rotary=rotary, rotary_width=width // heads, rotary_base=base)
    if config.flag("emb_layer_norm_before") != ("emb_layer_norm_before.weight" in state):
        raise WeightsError(f"{folder}: config and weights disagree on emb_layer_norm_before; it is not whole")
    encoder, fingerprint = build_esm(
        state,
        heads=heads,
        token_dropout=config.flag("token_dropout"),
        clear_mask=not rotary,  # as fair-esm does when it loads the older families
        place=str(folder),
        matrices=matrices,
        norm_eps=config.number("layer_norm_eps", 1e-12),
    )
    found = encoder.config
    if (found.layers, found.width, found.ffn_width) != (layers, width, ffn):
        raise WeightsError(
            f"{folder}: config says {layers} layers of {width} and {ffn}, and the weights are {found.layers} "
            f"of {found.width} and {found.ffn_width}; it is not whole"
        )
    return encoder, fingerprint


def verify_folder(wanted: str) -> list[WeightsCheck]:
    """Check config, vocabulary and weights of a model that is on this disk, every shape and value.

    Parameters
    ----------
    wanted : str
        A hub name or a folder.

    Returns
    -------
    list of WeightsCheck
        One for each file, those of weights last.

    Raises
    ------
    UsageError, OfflineError, WeightsError
        As `bioxfer.backbones.load_backbone`.
    """
    _, folder = find_folder(wanted, offline=True)
    load_folder(folder)
    known = (folder / SOURCE).is_file()
    weights = weight_files(folder)
    texts = [folder / name for name in TEXTS if (folder / name).is_file()]
    return [WeightsCheck(path=path, sha256=sha256_of(path), known=known) for path in (*texts, *weights)]


def describe_folder(wanted: str) -> dict[str, object]:
    """Tell what a model that is on this disk is; parameters and errors as those of `verify_folder`."""
    name, folder = find_folder(wanted, offline=True)
    files = [*(folder / text for text in TEXTS), *weight_files(folder)]
    return {
        "name": name or folder.resolve().name,
        "folder": str(folder),
        **asdict(summarize(folder)),
        "files": {path.name: sha256_of(path) for path in files if path.is_file()},
    }


def summarize(folder: str | Path) -> Summary:
    """Read what a folder holds, without its weights.

    Raises
    ------
    WeightsError
        If its config cannot be read, or is of a model that cannot be computed here.
    """
    folder = Path(folder)
    config = ModelConfig.read(folder)
    if config.model_type == "esm":
        layers, width, _, _ = _esm_shape(config)
        learned = (
            config.text("position_embedding_type", "absolute", among=("rotary", "absolute")) == "absolute"
        )
        most = config.count("max_position_embeddings", 1026) - PAD - 1
        window = most - 2 if learned else TRAINED_RESIDUES
        return Summary("ESM", layers, width, window, None)
    with torch.device("meta"):
        if config.model_type == "t5":
            model: Encoder = T5Encoder(_t5_shape(config))
            family, window = "T5", TRAINED_RESIDUES
        else:
            model = EsmcEncoder(_esmc_shape(config))
            family, window = "ESM-C", config.count("max_position_embeddings", 2048) - 2
    parameters = sum(weight.numel() for weight in model.parameters())
    return Summary(family, model.config.layers, model.config.width, window, parameters)


def _esm_shape(config: ModelConfig) -> tuple[int, int, int, int]:
    """Layers, width, width of the feed-forward layer, heads."""
    heads = config.count("num_attention_heads", 12)
    width = config.count("hidden_size", 768)
    if width % heads or width // heads % 2:
        raise WeightsError(
            f"{config.place}: width {width} cannot be shared among {heads} heads; it is damaged"
        )
    if config.values.get("mask_token_id") not in (None, MASK):
        raise config.refusal("mask_token_id")
    layers = config.count("num_hidden_layers", 12, most=_MOST_LAYERS)
    return layers, width, config.count("intermediate_size", 3072), heads


def _as_fairesm(
    weights: ModelWeights, *, layers: int, rotary: bool, rotary_width: int, rotary_base: float
) -> dict[str, Tensor]:
    """Give an ESM's weights the names that fair-esm has for them."""
    # transformers writes the norms' weights as gamma and beta since its version 5, like TensorFlow's BERT.
    kinds = {"weight": ("weight", "gamma"), "bias": ("bias", "beta")}
    parts = {
        "attention.self.query": "self_attn.q_proj",
        "attention.self.key": "self_attn.k_proj",
        "attention.self.value": "self_attn.v_proj",
        "attention.output.dense": "self_attn.out_proj",
        "attention.LayerNorm": "self_attn_layer_norm",
        "intermediate.dense": "fc1",
        "output.dense": "fc2",
        "LayerNorm": "final_layer_norm",
    }
    modules = {"encoder.emb_layer_norm_after": "emb_layer_norm_after"}
    if any(name.startswith("embeddings.layer_norm.") for name in weights):
        modules["embeddings.layer_norm"] = "emb_layer_norm_before"
    for i in range(layers):
        modules |= {f"encoder.layer.{i}.{part}": f"layers.{i}.{ours}" for part, ours in parts.items()}
    names = {"embeddings.word_embeddings.weight": "embed_tokens.weight"}
    if not rotary:
        names["embeddings.position_embeddings.weight"] = "embed_positions.weight"
    for theirs, ours in modules.items():
        for kind, spellings in kinds.items():
            spelt = next((s for s in spellings if f"{theirs}.{s}" in weights), kind)
            names[f"{theirs}.{spelt}"] = f"{ours}.{kind}"
    turns = [name for name in weights if name.endswith("rotary_embeddings.inv_freq")]
    # Of rotary models the table of positions was written, too, and never read.
    weights.only({*names, *turns, "embeddings.position_ids", "embeddings.position_embeddings.weight"})
    state = {ours: weights[theirs] for theirs, ours in names.items()}
    if rotary:
        # As they were published, like fair-esm's; where they were not, transformers computes them as here.
        stated = [weights[name] for name in turns]
        computed = 1.0 / rotary_base ** (torch.arange(0, rotary_width, 2).float() / rotary_width)
        for i in range(layers):
            state[f"layers.{i}.self_attn.rot_emb.inv_freq"] = stated[i % len(stated)] if stated else computed
    return state


def _t5_shape(config: ModelConfig) -> T5Config:
    projection = config.text("feed_forward_proj", "relu", among=_projections())
    gated = projection.startswith("gated-")
    # transformers takes the tanh form for this name, and what dense_act_fn says before either.
    derived = "gelu_new" if projection == "gated-gelu" else projection.removeprefix("gated-")
    activation = config.text("dense_act_fn", derived, among=tuple(ACTIVATIONS))
    if config.flag("is_gated_act", gated) != gated:
        raise config.refusal("is_gated_act", reads=f"feed_forward_proj is {projection}")
    buckets = config.count("relative_attention_num_buckets", 32)
    farthest = config.count("relative_attention_max_distance", 128)
    if buckets % 2 or farthest <= buckets // 4:
        raise config.refusal("relative_attention_num_buckets")
    return T5Config(
        layers=config.count("num_layers", 6, most=_MOST_LAYERS),
        width=config.count("d_model", 512),
        ffn_width=config.count("d_ff", 2048),
        heads=config.count("num_heads", 8),
        head_width=config.count("d_kv", 64),
        vocabulary=config.count("vocab_size", 32128),
        buckets=buckets,
        max_distance=farthest,
        activation=activation,
        gated=gated,
        norm_eps=config.number("layer_norm_epsilon", 1e-6),
    )


def _projections() -> tuple[str, ...]:
    return (*ACTIVATIONS, *(f"gated-{name}" for name in ACTIVATIONS))


def _read_t5(
    folder: Path, config: ModelConfig, matrices: torch.dtype
) -> tuple[T5Encoder, ResidueTokens, str, int]:
    shape = _t5_shape(config)
    vocabulary = read_vocabulary(folder)
    tokens = find_residues(
        vocabulary,
        size=shape.vocabulary,
        before=tuple(token for token in _PREFIXES if token in vocabulary)[:1],
        after=("</s>",),
        rare_as_x=not shape.gated,  # as the authors of ProtT5 and ProstT5 do; Ankh's, whose are gated, do not
        place=str(folder),
    )
    weights = ModelWeights.open(folder, prefix="", unused=("decoder.", "lm_head."))
    names = t5_names(shape)
    tied = "encoder.embed_tokens.weight"
    if tied in weights:
        if "shared.weight" not in weights:
            names["embedding.weight"] = (tied,)
        elif not torch.equal(weights[tied], weights["shared.weight"]):
            raise WeightsError(f"{folder}: {tied} and shared.weight differ; it is damaged")
    with torch.device("meta"):
        encoder = T5Encoder(shape)
    fingerprint = _fill(encoder, names, weights, extra={tied}, tokens=tokens, kind="t5", matrices=matrices)
    return encoder, tokens, fingerprint, TRAINED_RESIDUES


def _esmc_shape(config: ModelConfig) -> EsmcConfig:
    config.text("hidden_act", "silu", among=("silu",))
    for key in ("attention_bias", "mlp_bias"):
        if config.flag(key):
            raise config.refusal(key)
    heads, width = config.count("num_attention_heads", 40), config.count("hidden_size", 2560)
    if width % heads or width // heads % 2:
        raise WeightsError(
            f"{config.place}: width {width} cannot be shared among {heads} heads; it is damaged"
        )
    for key, value in (("head_dim", width // heads), ("num_key_value_heads", heads)):
        if config.values.get(key) not in (None, value):
            raise config.refusal(key)
    rope = config.values.get("rope_parameters") or {}
    if not isinstance(rope, dict) or rope.get("rope_type", "default") != "default":
        raise config.refusal("rope_parameters")
    turning = ModelConfig(config.place, rope, config.model_type)
    return EsmcConfig(
        layers=config.count("num_hidden_layers", 80, most=_MOST_LAYERS),
        width=width,
        ffn_width=config.count("intermediate_size", 6912),
        heads=heads,
        vocabulary=config.count("vocab_size", 64),
        rotary_base=turning.number("rope_theta", 10000.0),
    )


def _read_esmc(
    folder: Path, config: ModelConfig, matrices: torch.dtype
) -> tuple[EsmcEncoder, ResidueTokens, str, int]:
    shape = _esmc_shape(config)
    tokens = find_residues(
        read_vocabulary(folder),
        size=shape.vocabulary,
        before=("<cls>",),
        after=("<eos>",),
        place=str(folder),
    )
    weights = ModelWeights.open(folder, prefix="esmc.", unused=("lm_head.", "classifier.", "score."))
    with torch.device("meta"):
        encoder = EsmcEncoder(shape)
    fingerprint = _fill(
        encoder, esmc_names(shape), weights, extra=set(), tokens=tokens, kind="esmc", matrices=matrices
    )
    return encoder, tokens, fingerprint, config.count("max_position_embeddings", 2048) - 2


def _fill(
    encoder: Encoder,
    names: Mapping[str, tuple[str, ...]],
    weights: ModelWeights,
    *,
    extra: set[str],
    tokens: ResidueTokens,
    kind: str,
    matrices: torch.dtype,
) -> str:
    """Give an encoder its weights, all of them checked, and return its fingerprint."""
    weights.only({*extra, *(name for parts in names.values() for name in parts)})
    shapes = {name: tuple(weight.shape) for name, weight in encoder.named_parameters()}
    multiplied = {f"{n}.weight" for n, module in encoder.named_modules() if isinstance(module, FastLinear)}
    state, used = {}, {}
    for ours, theirs in names.items():
        parts = [weights[name] for name in theirs]
        rows, *rest = shapes[ours]
        wanted = (rows // len(parts), *rest)
        for name, part in zip(theirs, parts, strict=True):
            if tuple(part.shape) != wanted:
                raise WeightsError(
                    f"{weights.place}: {name} is {_by(part.shape)}, and its config says {_by(wanted)}; "
                    "it is not whole"
                )
            if not bool(torch.isfinite(part).all()):
                raise WeightsError(
                    f"{weights.place}: {name} holds numbers that are not finite; it is damaged"
                )
            used[name] = part
        whole = torch.cat(parts) if len(parts) > 1 else parts[0]
        # Always a copy: the file is mapped into memory and may change on disk.
        state[ours] = whole.to(matrices if ours in multiplied else torch.float32, copy=True)
    encoder.load_state_dict(state, assign=True)
    encoder.requires_grad_(False).eval()
    # The layer names of a T5 and an ESM-C tell them apart, but say it all the same.
    return fingerprint_of({"kind": kind, **asdict(encoder.config), **tokens.described()}, used)


def _by(shape: Sequence[int]) -> str:
    return " by ".join(map(str, shape))
