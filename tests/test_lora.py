"""Low-rank adapters: they start as nothing, train nothing but themselves, and come back from their file."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
import toys

from bioxfer import lora
from bioxfer.backbones import load_backbone, verify_backbone
from bioxfer.backbones.adapters import Adapter, is_adapter, load_adapter, read_base
from bioxfer.backbones.packing import AdaptedLinear, pack_tokens
from bioxfer.draws import Draws
from bioxfer.embedding import embed
from bioxfer.errors import (
    FingerprintError,
    InputError,
    LabelError,
    OutputError,
    UnknownModelError,
    UsageError,
    WeightsError,
)
from bioxfer.lora import CROP, Part, adapt
from bioxfer.tasks import Multiclass, Regression

TASK = Multiclass(("no", "yes"))
SEQUENCES = ("MKV", "GAVLIWMKVDERST", "M", "ACDEFGHIKLMNPQRSTVWYXBZUO" * 2)


@pytest.fixture(params=["compact", "esm2"])
def base(request, tmp_path) -> Path:
    """Weights of a tiny backbone of each architecture."""
    if request.param == "compact":
        return toys.write_weights(tmp_path)
    path = tmp_path / "tiny.pt"
    path.write_bytes(toys.esm2_file())
    return path


@pytest.fixture
def compact(tmp_path) -> Path:
    return toys.write_weights(tmp_path)


def motif(count: int, *, seed: int, name: str = "target", weight: float = 1.0) -> Part:
    """Proteins of one composition; in half of them a D stands behind every K, in the others before it.

    A head on a frozen, untrained backbone hardly sees the order.
    """
    dice = random.Random(seed)
    sequences = []
    for number in range(count):
        words = [("KD", "DK")[number % 2] if dice.random() < 0.15 else dice.choice("AGST") for _ in range(20)]
        sequences.append("".join(words))
    return Part(sequences, np.arange(count) % 2, TASK, weight, name)


def random_adapter(path: Path, *, rank: int = 3, seed: int = 0) -> Adapter:
    base = read_base(path)
    dice = torch.Generator().manual_seed(seed)
    matrices = {
        name: (
            torch.randn(rank, layer.in_features, generator=dice) * layer.in_features**-0.5,
            torch.randn(layer.out_features, rank, generator=dice) * 0.3,
        )
        for name, layer in base.linear_layers().items()
    }
    return Adapter(str(path), base.fingerprint, 0.5, matrices, {"method": "drawn"})


def last_layer(backbone, sequences=SEQUENCES) -> list[torch.Tensor]:
    found = backbone.represent(list(sequences), layers=[backbone.n_layers])
    return [representation.residues[0] for representation in found]


def distance(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(one, other, strict=True))


def forward(base, sequences=SEQUENCES) -> list[torch.Tensor]:
    pack = pack_tokens([base.tokenize(sequence) for sequence in sequences], multiple=64)
    with torch.no_grad():
        (hidden,) = base.model(pack, layers=[base.n_layers])
    return [states[1:-1] for states in pack.unpack(hidden)]


def zeroed(adapter: Adapter) -> Adapter:
    matrices = {name: (a, torch.zeros_like(b)) for name, (a, b) in adapter.matrices.items()}
    return Adapter(adapter.base, adapter.base_fingerprint, adapter.scale, matrices, adapter.card)


def test_an_adapter_of_zeros_changes_nothing(base):
    plain, adapted = load_backbone(base), zeroed(random_adapter(base)).backbone()
    assert distance(last_layer(adapted), last_layer(plain)) == 0
    started = read_base(base)
    started.attach(lora._start(started, 4, torch.Generator().manual_seed(0)), scale=2.0)
    assert distance(forward(started), last_layer(plain)) < 1e-5


def test_the_merged_backbone_equals_the_adapted_forward(base):
    adapter = random_adapter(base)
    beside = read_base(base)
    beside.attach(adapter.matrices, scale=adapter.scale)
    merged = last_layer(adapter.backbone())
    assert distance(merged, forward(beside)) < 1e-5
    assert distance(merged, last_layer(load_backbone(base))) > 0.05


def test_bf16_rounds_the_merged_matrices(base):
    adapter = random_adapter(base)
    exact, rounded = adapter.backbone(), adapter.backbone(precision="bf16")
    assert rounded.precision == "bf16"
    assert rounded.fingerprint == exact.fingerprint
    assert 0 < distance(last_layer(rounded), last_layer(exact)) < 0.05


def test_gradients_reach_the_changes_and_the_heads_alone(base):
    model = read_base(base)
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    part = motif(16, seed=0)
    options = {
        "rank": 2, "scale": 2.0, "epochs": 2, "patience": 1, "rate": 1e-3,
        "batch_tokens": 600, "pool": "mean+max", "precision": "fp32", "seed": 0,
    }  # fmt: skip
    training = lora._Training(model, [part], None, options, device="cpu")
    training.run(checkpoint=None, checkpoint_minutes=1.0, progress=None)
    trained = {name for name, p in training.trunk.named_parameters() if p.requires_grad}
    assert {name.rsplit(".", 1)[-1] for name in trained if "heads" not in name} == {"a", "b"}
    assert all(p.grad is None for name, p in training.trunk.named_parameters() if name not in trained)
    after = model.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    layers = [m for m in training.trunk.modules() if isinstance(m, AdaptedLinear)]
    assert len(layers) == len(read_base(base).linear_layers())
    assert all(bool(layer.b.abs().sum() > 0) for layer in layers)


def test_training_lowers_the_loss_and_tells_each_epoch(base):
    seen, part = [], motif(60, seed=1)
    adapter = adapt(
        base,
        [part],
        dev=part,
        epochs=6,
        patience=6,
        rate=3e-4,
        batch_tokens=600,
        precision="fp32",
        progress=lambda *report: seen.append(report),
    )
    history = adapter.card["history"]
    assert [entry["epoch"] for entry in history] == list(range(7))
    assert seen == [(e["epoch"], e["losses"], e["dev"]) for e in history]
    held_out = [entry["dev"] for entry in history]
    assert held_out[adapter.card["best_epoch"]] == min(held_out) < 0.995 * held_out[0]
    assert history[-1]["losses"]["target"] < 0.995 * history[1]["losses"]["target"]
    assert adapter.rank == 8
    assert adapter.backbone().fingerprint == adapter.fingerprint != adapter.base_fingerprint


def test_the_best_epoch_is_kept_and_not_the_last(compact, monkeypatch):
    states = []
    told = iter([0.5, 0.4, 0.3, 0.6, 0.7, 0.1])

    def dev_loss(training):
        states.append(training.trunk.changes())
        return next(told)

    monkeypatch.setattr(lora._Training, "dev_loss", dev_loss)
    part = motif(8, seed=0)
    adapter = adapt(compact, [part], dev=part, epochs=9, patience=2, rank=2, batch_tokens=600)
    assert adapter.card["best_epoch"] == 2
    assert len(states) == 5  # epochs 0 to 4
    for name, (a, b) in adapter.matrices.items():
        assert torch.equal(a, states[2][name][0])
        assert torch.equal(b, states[2][name][1])
        assert not torch.equal(b, states[4][name][1])


def test_changes_that_help_nowhere_are_kept_as_zeros(compact, monkeypatch):
    told = iter([0.1, 0.2, 0.3])
    monkeypatch.setattr(lora._Training, "dev_loss", lambda training: next(told))
    part = motif(8, seed=0)
    adapter = adapt(compact, [part], dev=part, epochs=9, patience=2, rank=2, batch_tokens=600)
    assert adapter.card["best_epoch"] == 0
    assert not any(bool(b.any()) for _, b in adapter.matrices.values())


def test_parts_are_drawn_by_weight_and_shown_whole_before_again():
    parts = [motif(10, seed=0, name="source", weight=3.0), motif(4, seed=1, weight=1.0)]
    draws = Draws(parts, torch.Generator().manual_seed(0))
    drawn = [draws.draw()[:2] for _ in range(40)]
    assert [sum(number == n for number, _ in drawn) for n in (0, 1)] == [30, 10]
    assert sorted(place for number, place in drawn if number == 0) == sorted(list(range(10)) * 3)
    first = [place for number, place in drawn if number == 1]
    assert sorted(first[:4]) == sorted(first[4:8]) == list(range(4))


def test_the_seed_alone_decides(compact):
    def train(seed: int) -> str:
        return adapt(compact, [motif(4, seed=0)], epochs=1, rank=2, seed=seed).fingerprint

    first = train(0)
    torch.manual_seed(7)
    random.seed(7)
    assert train(0) == first != train(1)


def test_what_is_minimised_is_the_weighted_sum_of_the_parts_losses(compact):
    source, target = motif(12, seed=0, name="source", weight=0.5), motif(4, seed=1)
    target = Part(target.sequences, np.linspace(-1, 1, 4), Regression(0.0, 1.0), 1.5, "target")
    options = {
        "rank": 2, "scale": 2.0, "epochs": 1, "patience": 1, "rate": 1e-3,
        "batch_tokens": 4096, "pool": "mean+max", "precision": "fp32", "seed": 0,
    }  # fmt: skip
    training = lora._Training(read_base(compact), [source, target], None, options, device="cpu")
    training.start_heads()
    training.history.append({"epoch": 0, "losses": {}, "dev": None})
    (batch,) = training.draws.epoch(batch_tokens=4096)
    shown = {name: [d.protein for d in batch if d.part == n] for n, name in enumerate(("source", "target"))}
    totals = []
    training.checked = lambda loss, what: totals.append(loss) or loss
    with torch.no_grad():
        parts = enumerate((source, target))
        outputs = [training.trunk(training.embed(part.sequences), number) for number, part in parts]
        penalty = sum(p.weight * float(training.trunk.penalty(n)) for n, p in enumerate((source, target)))
    training.learn(batch, done=0.5)
    # sixteen draws, a quarter of them from the source, so the target is shown three times
    assert sorted(shown["target"]) == sorted(list(range(4)) * 3)
    assert len(set(shown["source"])) == 4
    with torch.no_grad():
        drawn = [outputs[n][shown[name]] for n, name in enumerate(("source", "target"))]
        answers = [torch.from_numpy(p.targets)[shown[p.name]] for p in (source, target)]
        means = [p.task.loss(o, a) for p, o, a in zip((source, target), drawn, answers, strict=True)]
        expected = sum(p.weight * m for p, m in zip((source, target), means, strict=True))
    told = [total / count for total, count in zip(training.sums, training.counts, strict=True)]
    assert told == pytest.approx([float(mean) for mean in means], rel=1e-3)
    assert totals == [pytest.approx(float(expected) + penalty, rel=1e-3)]


def test_long_proteins_are_cropped_at_random():
    sequence = "".join(random.Random(0).choices("ACDEFGHIKL", k=CROP + 40))
    draws = Draws([Part([sequence], np.zeros(1, int), TASK)], torch.Generator().manual_seed(0))
    crops = {draws.draw()[2] for _ in range(20)}
    assert all(len(crop) == CROP and crop in sequence for crop in crops)
    assert len(crops) > 10


def test_an_interrupted_training_ends_with_the_same_bytes(compact, tmp_path):
    parts = [motif(14, seed=0), motif(9, seed=1, name="source", weight=0.5)]
    options = {"dev": motif(8, seed=3), "epochs": 3, "patience": 9, "rank": 2, "batch_tokens": 600, "seed": 4}
    adapt(compact, parts, **options).save(tmp_path / "whole.safetensors")

    class Interrupt(Exception):
        pass

    def stop(epoch, losses, dev):
        raise Interrupt

    checkpoint = tmp_path / "state.safetensors"
    for _ in range(4):  # after epochs 0 to 3
        with pytest.raises(Interrupt):
            adapt(compact, parts, **options, checkpoint=checkpoint, progress=stop)
    adapt(compact, parts, **options, checkpoint=checkpoint).save(tmp_path / "parts.safetensors")
    whole, again = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == again
    adapt(compact, parts, **{**options, "seed": 5}).save(tmp_path / "other.safetensors")
    assert (tmp_path / "other.safetensors").read_bytes() != whole


def test_a_training_that_stops_inside_an_epoch_ends_with_the_same_bytes(compact, tmp_path, monkeypatch):
    parts = [motif(40, seed=0), motif(9, seed=1, name="source", weight=0.5)]
    options = {"dev": motif(8, seed=3), "epochs": 2, "patience": 9, "rank": 2, "batch_tokens": 600}
    adapt(compact, parts, **options).save(tmp_path / "whole.safetensors")
    steps, learn = [], lora._Training.learn

    def step(training, batch, *, done):
        if len(steps) in (2, 5):
            steps.append(None)
            raise KeyboardInterrupt
        steps.append(done)
        learn(training, batch, done=done)

    monkeypatch.setattr(lora._Training, "learn", step)
    checkpoint = {"checkpoint": tmp_path / "state.safetensors", "checkpoint_minutes": 0.0}
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            adapt(compact, parts, **options, **checkpoint)
    adapt(compact, parts, **options, **checkpoint).save(tmp_path / "parts.safetensors")
    done = [share for share in steps if share is not None]
    assert done == sorted(set(done))  # no step was taken twice
    whole, again = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == again


def test_a_foreign_checkpoint_is_refused(compact, tmp_path):
    part, checkpoint = motif(6, seed=0), tmp_path / "state.safetensors"
    adapt(compact, [part], epochs=1, rank=2, checkpoint=checkpoint)
    with pytest.raises(UsageError, match="made with another options; give the same, or another checkpoint"):
        adapt(compact, [part], epochs=2, rank=2, checkpoint=checkpoint)
    with pytest.raises(UsageError, match="made with another parts"):
        adapt(compact, [motif(6, seed=1)], epochs=1, rank=2, checkpoint=checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:-9])
    with pytest.raises(WeightsError, match="not a checkpoint of an adaptation"):
        adapt(compact, [part], epochs=1, rank=2, checkpoint=checkpoint)


def test_an_adapter_comes_back_from_its_file_and_works_as_a_backbone(base, tmp_path):
    path = tmp_path / "bent.safetensors"
    adapter = random_adapter(base)
    adapter.save(path)
    assert is_adapter(path)
    assert not is_adapter(base)
    assert path.read_bytes() == (load_adapter(path).save(path), path.read_bytes())[1]
    assert load_adapter(path).card == {"method": "drawn"}
    loaded = load_backbone(path)
    assert loaded.name == "bent"
    assert adapter.backbone().name == f"{base.stem}+lora"
    assert loaded.fingerprint == adapter.fingerprint != load_backbone(base).fingerprint
    assert distance(last_layer(loaded), last_layer(adapter.backbone())) == 0
    assert verify_backbone(path).path == path


def test_the_cache_tells_adapted_and_base_apart(compact, tmp_path):
    path = tmp_path / "bent.safetensors"
    random_adapter(compact).save(path)
    sequences = ["MKVDERSTAGG", "GAVLIW"]
    plain, bent = (embed(sequences, model=place).vectors for place in (compact, path))
    assert not np.allclose(plain, bent)
    assert np.array_equal(embed(sequences, model=path).vectors, bent)


def test_the_base_is_found_beside_the_adapter_after_a_move(compact, tmp_path):
    made, moved = tmp_path / "made", tmp_path / "moved"
    made.mkdir()
    moved.mkdir()
    random_adapter(compact).save(made / "bent.safetensors")
    expected = last_layer(load_backbone(made / "bent.safetensors"))
    assert str(tmp_path).encode() not in (made / "bent.safetensors").read_bytes()
    (made / "bent.safetensors").rename(moved / "bent.safetensors")
    compact.rename(moved / compact.name)
    assert distance(last_layer(load_backbone(moved / "bent.safetensors")), expected) == 0
    (moved / compact.name).unlink()
    with pytest.raises(WeightsError, match=r"its base toy\.safetensors is not beside it; put it there"):
        load_backbone(moved / "bent.safetensors")


def test_another_base_is_refused(compact, tmp_path):
    path = tmp_path / "bent.safetensors"
    adapter = random_adapter(compact)
    Adapter(adapter.base, "0" * 16, adapter.scale, adapter.matrices).save(path)
    with pytest.raises(FingerprintError, match=r"'bent' changes toy \(0000000000000000\), and .* is \w{16}"):
        load_backbone(path)


def test_changes_that_do_not_fit_their_base_are_refused(compact):
    adapter = random_adapter(compact)
    matrices = dict(adapter.matrices)
    del matrices["blocks.0.up"]
    with pytest.raises(WeightsError, match=r"do not have the same layers \(blocks\.0\.up\)"):
        Adapter(adapter.base, adapter.base_fingerprint, 1.0, matrices).backbone()
    matrices["blocks.0.up"] = adapter.matrices["blocks.0.down"]
    with pytest.raises(WeightsError, match="changes a matrix of 64 by 256, and that of toy is 256 by 64"):
        Adapter(adapter.base, adapter.base_fingerprint, 1.0, matrices).backbone()


def test_an_adapter_is_not_adapted_again(compact, tmp_path):
    path = tmp_path / "bent.safetensors"
    random_adapter(compact).save(path)
    with pytest.raises(UsageError, match="is an adapter itself and cannot be adapted again; adapt its base"):
        adapt(path, [motif(4, seed=0)])


def test_every_damaged_byte_is_noticed(compact, tmp_path):
    path = tmp_path / "bent.safetensors"
    random_adapter(compact, rank=1).save(path)
    whole = path.read_bytes()
    for place in random.Random(0).sample(range(8, len(whole)), 60):
        broken = bytearray(whole)
        broken[place] ^= 1
        path.write_bytes(broken)
        with pytest.raises(WeightsError, match=r"damaged or no bioxfer adapter .* get or train it anew"):
            load_adapter(path)
    for size in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(WeightsError):
            load_adapter(path)
        with pytest.raises(WeightsError):
            load_backbone(path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda a, b: (torch.zeros(70, 64), torch.zeros(64, 70)), "rank 70 of blocks.0.out is out of range"),
        (lambda a, b: (torch.zeros(0, 64), torch.zeros(64, 0)), "not float32 of one rank"),
        (lambda a, b: (a, b[:, :1]), "not float32 of one rank"),
        (lambda a, b: (a * np.nan, b), "blocks.0.out holds numbers that are not finite"),
    ],
)
def test_matrices_that_cannot_be_are_refused(compact, tmp_path, spoil, message):
    path = tmp_path / "bent.safetensors"
    adapter = random_adapter(compact)
    matrices = {"blocks.0.out": spoil(*adapter.matrices["blocks.0.out"])}
    if "rank 70" not in message:
        matrices = dict(adapter.matrices) | matrices
    Adapter(adapter.base, adapter.base_fingerprint, 1.0, matrices).save(path)
    with pytest.raises(WeightsError, match=message):
        load_adapter(path)


@pytest.mark.parametrize("card", [{"deep": [[]]}, {"number": 1e308}])
def test_metadata_that_no_adapter_has_are_refused(compact, tmp_path, card):
    path = tmp_path / "bent.safetensors"
    adapter = random_adapter(compact, rank=1)
    Adapter(adapter.base, adapter.base_fingerprint, 1.0, adapter.matrices, card).save(path)
    whole = path.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    text = whole[8 : 8 + size].replace(b"[[]]", b"[" * 5000 + b"]" * 5000).replace(b"1e+308", b"1e+309")
    path.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + size :])
    with pytest.raises(WeightsError, match=r"damaged or no bioxfer adapter \(its metadata"):
        load_adapter(path)


def test_a_matrix_without_axes_is_refused(compact, tmp_path):
    path = tmp_path / "bent.safetensors"
    adapter = random_adapter(compact)
    matrices = {"up": (torch.tensor(1.0), torch.ones(2, 2))}
    Adapter(adapter.base, adapter.base_fingerprint, 1.0, matrices).save(path)
    with pytest.raises(WeightsError, match="not float32 of one rank"):
        load_adapter(path)


def test_a_file_that_cannot_be_written_is_told(compact, tmp_path):
    adapter = random_adapter(compact)
    with pytest.raises(UsageError, match=r"cannot be written to bent\.pt; give a name that ends in \.safe"):
        adapter.save("bent.pt")
    with pytest.raises(OutputError):
        adapter.save(tmp_path / "no" / "bent.safetensors")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank 0 is out of range for toy; choose 1 to 64"),
        ({"rank": 65}, "rank 65 is out of range for toy; choose 1 to 64"),
        ({"epochs": 0}, "epochs is 0; give 1 or more"),
        ({"patience": 0}, "patience is 0; give 1 or more"),
        ({"rate": 0.0}, "rate is 0.0; give a finite number above 0"),
        ({"scale": float("inf")}, "scale is inf; give a finite number above 0"),
        ({"batch_tokens": 100}, "batch_tokens is 100; a step needs 514 at least"),
        ({"pool": "median"}, "'median' is no pooling|'median' in 'median' is no pooling"),
        ({"dev": motif(2, seed=0, name="else")}, "held-out proteins belong to 'else', which is none of"),
    ],
)
def test_options_out_of_range_are_refused(compact, options, message):
    with pytest.raises(UsageError, match=message):
        adapt(compact, [motif(4, seed=0)], **options)


def test_parts_that_do_not_fit_are_refused(compact):
    part = motif(4, seed=0)
    with pytest.raises(UsageError, match=r"parts are called \[\]; give one at least"):
        adapt(compact, [])
    with pytest.raises(UsageError, match="each with a name of its own"):
        adapt(compact, [part, part])
    with pytest.raises(InputError, match="part 'target' has no protein, or an empty one; leave that out"):
        adapt(compact, [Part(["MKV", ""], np.zeros(2, int), TASK)])
    with pytest.raises(LabelError, match="part 'target' has 4 proteins and 3 targets; give one target"):
        adapt(compact, [Part(part.sequences, part.targets[:3], TASK)])
    with pytest.raises(UsageError, match=r"weight of part 'target' is 0\.0; give one above 0"):
        adapt(compact, [Part(part.sequences, part.targets, TASK, 0.0)])
    with pytest.raises(UnknownModelError, match="backbone 'compat' does not exist; did you mean compact"):
        adapt("compat", [part])


def test_a_loss_that_is_no_number_is_told(compact):
    with pytest.raises(UsageError, match=r"the loss.* became \w+ after epoch \d+; give a rate below 1e\+20"):
        adapt(compact, [motif(30, seed=0)], epochs=3, rate=1e20, batch_tokens=514, precision="fp32")


def test_an_esm_is_adapted_by_its_name(tmp_path, monkeypatch):
    """The name is what the adapter keeps, and what finds the base in torch.hub's folder again."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    hub = tmp_path / "torch" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    (hub / "esm2_t6_8M_UR50D.pt").write_bytes(toys.esm2_file())
    adapter = adapt("esm2_t6_8M_UR50D", [motif(6, seed=0)], epochs=1, rank=2, offline=True)
    assert adapter.base == "esm2_t6_8M_UR50D"
    adapter.save(tmp_path / "bent.safetensors")
    loaded = load_backbone(tmp_path / "bent.safetensors", offline=True)
    assert distance(last_layer(loaded), last_layer(load_backbone("esm2_t6_8M_UR50D"))) > 0


def test_the_embedded_backbone_is_adapted_by_its_name(tmp_path):
    adapter = adapt("compact", [motif(4, seed=0)], epochs=1, rank=2)
    adapter.save(tmp_path / "bent.safetensors")
    assert load_adapter(tmp_path / "bent.safetensors").base == "compact"
    assert adapter.backbone().name == "compact+lora"
    assert load_backbone(tmp_path / "bent.safetensors").fingerprint == adapter.fingerprint
