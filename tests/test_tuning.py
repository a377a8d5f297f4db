"""Tuning: moves of biases fit a model to one picture, come back from every decoder, and spoil nothing."""

import zlib
from copy import deepcopy

import numpy as np
import pytest
import torch
from conftest import make_wild
from PIL import Image
from test_corrections import SMALL, nudged_in_real_numbers, smooth

from flow.codec import tuning
from flow.codec.api import Codec
from flow.codec.container import _pack_flow, pack, read_head, unpack
from flow.codec.feed import Reader
from flow.codec.info import describe
from flow.codec.stream import DEFAULT, encode
from flow.codec.tuning import count_steps, learn, tuned
from flow.folder import identity
from flow.model import build
from flow.zoom import load_file
from source.corrections import around
from source.rans import Encoder
from tests.decoder import Model
from tests.decoder import decode as decode_by_the_page
from utils.arithmetic.crew import crew
from utils.arithmetic.fixed import FixedConv

OPTIONS = SMALL | {"ownLevels": 1}
pytestmark = pytest.mark.usefixtures("by_flow")


@pytest.fixture(scope="module")
def learned():
    return nudged_in_real_numbers(ownLevels=1)


@pytest.fixture(scope="module")
def model(learned):
    return learned.freeze()


def drawn(mode="RGB", size=(220, 230)):
    return Image.fromarray(smooth(*size)[0].permute(1, 2, 0).byte().numpy()).convert(mode)


def moves_of(model, seed=0, most=20):
    """Some moves of every layer, as bytes."""
    rng = np.random.default_rng(seed)
    return packed(model, lambda count: rng.integers(-most, most + 1, count, dtype=np.int32))


def packed(model, moves_of_layer):
    """Moves of every layer, of its number of channels, as bytes."""
    return tuning._pack([moves_of_layer(len(layer.bias)) for _, layer, _ in tuning._layers(model)])


@pytest.mark.parametrize("most", [0, 1, 20, 256])
def test_moves_come_back_and_zeros_are_cheap(most):
    rng = np.random.default_rng(most)
    layers = [rng.integers(-most, most + 1, count, dtype=np.int32) for count in (64, 15, 96, 1, 64)]
    data = tuning._pack(layers)
    back = tuning._unpack(data, [len(layer) for layer in layers])
    assert all(map(np.array_equal, back, layers))
    assert most or len(data) < 12


def test_what_a_layer_gives_moves_as_far(model):
    for _, layer, bits in tuning._layers(model):
        x = torch.randint(0, 1000, (1, 5, 6, layer.weight.shape[1]), dtype=torch.int16)
        before, steps = layer(x), torch.arange(len(layer.bias)) - 3 << bits - tuning.MOVE_BITS
        other = tuned(model, packed(model, lambda count: np.zeros(count, np.int32)))
        assert other is not model and torch.equal(layer(x), before)
        layer.move(steps)
        assert torch.equal(layer(x).int(), before.int() + steps.int())
        copied = deepcopy(layer)
        layer.move(-steps)
        assert torch.equal(layer(x), before)
        assert torch.equal(copied(x).int(), before.int() + steps.int())
        assert copied.weight is layer.weight and copied.bias is not layer.bias


def test_layers_shifted_to_the_left_move_by_what_is_below():
    layer = FixedConv((2, 1, 1, 1))
    layer._fill(weight=torch.ones(2, 1, 1, 1), bias=torch.zeros(2), exponent=torch.tensor([-2, 3]), shift=0)
    layer.move(torch.tensor([-7, 5]))
    assert layer.bias.tolist() == [-2, 40]
    with pytest.raises(ValueError, match="too large"):
        layer.move(torch.tensor([0, 1 << 22]))
    assert layer.bias.tolist() == [-2, 40]


def test_steps_grow_with_effort_and_size(model):
    counts = [count_steps(model, (512, 512), effort) for effort in range(1, 10)]
    assert counts[:6] == [0] * 6 and 0 < counts[6] < counts[7] < counts[8]
    assert count_steps(model, (150, 150), 9) == 0 < count_steps(model, (230, 230), 9)
    assert count_steps(model, (9000, 9000), 9) == tuning.MOST_STEPS
    assert count_steps(build({"repeat": 0}).freeze(), (512, 512), 9) == 0


def test_learning_pays_and_leaves_the_model_alone(model, learned):
    (image,), seen = model.from_images(smooth(160, 200)[:1].byte()), []
    before = {name: tensor.clone() for name, tensor in (learned.state_dict() | model.state_dict()).items()}
    with crew(1):
        moves = learn(model, learned, image, 24, seen.append)
    assert len(seen) == 24 and sum(seen) == image.numel()
    assert all(torch.equal(before[n], t) for n, t in (learned.state_dict() | model.state_dict()).items())
    assert not any(p.grad is not None or not p.requires_grad for p in learned.parameters())
    bits = [sum(e.bits for e in encode(m, image[None])) for m in (model, tuned(model, moves))]
    assert bits[1] + 8 * len(moves) < 0.95 * bits[0]
    with crew(2), torch.inference_mode():
        assert learn(model, learned, image, 24) == moves


def test_moves_that_take_off_too_little_are_given_up(model, learned, monkeypatch):
    (image,), seen = model.from_images(smooth(160, 200)[:1].byte()), []
    assert learn(model, learned, image, 40)
    monkeypatch.setattr(tuning, "LEAST_GAIN", 0.5)
    assert learn(model, learned, image, 40, seen.append) == b""
    assert len(seen) == 11 and sum(seen) == image.numel()


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_files_cost_less_and_come_back(mode, model, learned):
    name, picture, done = identity(model, OPTIONS), drawn(mode), []
    plain = pack(picture, model, name, effort=6, learned=lambda: pytest.fail("tuned at effort 6"))
    data = pack(picture, model, name, effort=9, progress=done.append, learned=lambda: learned)
    assert sum(done) == 3 * picture.width * picture.height
    head = read_head(data)
    assert head.moves and not read_head(plain).moves and head.settings.corrected
    assert len(data) < 0.99 * len(plain)
    assert unpack(data, model, name).tobytes() == picture.tobytes()
    # by each of those who read the stream on their own
    small = unpack(data, model, name, levels=2)
    assert unpack(data[: len(data) // 2], model, name, levels=2).tobytes() == small.tobytes()
    assert unpack(data[: len(data) * 2 // 3], model, name, partial=True).size == picture.size
    about = describe(data, model, name)
    assert about["moves"] == len(head.moves)
    assert about["head"] + sum(level["bytes"] for level in about["levels"]) == len(data)
    *_, last = load_file(model, name, data)
    assert last.level == 0
    by_the_page = Model({n: t.numpy() for n, t in model.state_dict().items()}, OPTIONS)
    assert np.array_equal(np.squeeze(decode_by_the_page(data, by_the_page)[0]), np.asarray(picture))


def test_a_file_in_pieces(model, learned):
    name, picture = identity(model, OPTIONS), drawn()
    data = pack(picture, model, name, effort=9, learned=lambda: learned)
    assert read_head(data).moves

    class Tuned(Codec):
        def __init__(self):
            self.model, self.identity, self.threads = model, name, 1

    reader, found = Reader(Tuned()), []
    for start in range(0, len(data), 1000):
        found += reader.feed(data[start : start + 1000])
    assert found[-1][0] == 0 and found[-1][1].tobytes() == picture.tobytes()


def test_where_moves_do_not_pay_the_file_is_without(model, learned, monkeypatch):
    name, picture = identity(model, OPTIONS), drawn(size=(230, 230))
    monkeypatch.setattr("flow.codec.container.learn", lambda *_: moves_of(model))
    data = pack(picture, model, name, effort=9, learned=lambda: learned)
    assert not read_head(data).moves and unpack(data, model, name).tobytes() == picture.tobytes()


def test_another_decoder_takes_moves_of_every_layer(model):
    name, picture, moves = identity(model, OPTIONS), drawn(size=(130, 140)), moves_of(model, 3)
    head, stream = _pack_flow(picture, b"", model, name, DEFAULT, moves=moves)
    by_the_page = Model({n: t.numpy() for n, t in model.state_dict().items()}, OPTIONS)
    assert np.array_equal(decode_by_the_page(head + stream, by_the_page)[0], np.asarray(picture))
    assert unpack(head + stream, model, name).tobytes() == picture.tobytes()


def test_wild_moves_are_refused_or_decode(model):
    rng, refused = np.random.default_rng(0), 0
    for count in (*range(40), 200, 1000):
        try:
            tuned(model, rng.bytes(count))
        except ValueError:
            refused += 1
    assert refused
    encoder, sealed = Encoder(), moves_of(model)
    assert tuned(model, sealed)
    encoder.push(around(1, 0, 0), np.array([0]))
    with pytest.raises(ValueError):
        tuned(model, encoder.finish())
    with pytest.raises(ValueError):
        tuned(model, sealed + b"\0\0\0\0")
    large = make_wild(build(SMALL), 0.3).freeze()
    layer = tuning._layers(large)[0][1]
    layer.bias += (1 << 24) - 1 - layer.bias.abs() - layer.weight.long().abs().flatten(1).sum(1).int() * 255
    with pytest.raises(ValueError, match="too large"):
        tuned(large, packed(large, lambda count: np.full(count, 256, np.int32)))


def test_heads_that_make_no_sense_are_refused(model):
    name, picture = identity(model, OPTIONS), drawn(size=(64, 70))

    def with_checksum(head):
        return head + zlib.crc32(head).to_bytes(4, "big")

    head, stream = _pack_flow(picture, b"", model, name, DEFAULT, moves=moves_of(model))
    moves = read_head(head).moves
    start = head.index(moves)
    assert len(moves) >= 128  # hence a length of two bytes
    empty = head[: start - 2] + b"\0" + head[start + len(moves) : -4]
    with pytest.raises(ValueError, match="no moves"):
        unpack(with_checksum(empty) + stream, model, name)
    cut = moves[:-4]
    length = bytes([len(cut) & 127 | 128, len(cut) >> 7])
    wrong = head[: start - 2] + length + cut + head[start + len(moves) : -4]
    with pytest.raises(ValueError, match="stream"):
        unpack(with_checksum(wrong) + stream, model, name)
    # corrections of a model that has nothing to correct
    other = build({"hchnl": 4}).freeze()
    head, stream = _pack_flow(picture, b"", other, name, DEFAULT)
    flagged = head[:4] + bytes([head[4] | 64]) + head[5:7] + b"\x80\x20" + bytes([24 | 32]) + head[7:-4]
    assert read_head(with_checksum(flagged)).settings.corrected
    with pytest.raises(ValueError, match="no distributions to correct"):
        unpack(with_checksum(flagged) + stream, other, name, partial=True)
