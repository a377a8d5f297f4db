"""A file in pieces: every level when its last byte is there, not before, and equal to what Codec has."""

import numpy as np
import pytest
from PIL import Image

from flow import Codec
from flow.codec.container import pack, read_head
from flow.codec.feed import Reader
from flow.codec.planes import FLOW
from flow.zoom import prefixes
from tests.test_container import noise, photo


@pytest.fixture(scope="module")
def codec():
    return Codec()


def fed(codec, data, size):
    """Levels and pictures, and how many bytes there were."""
    reader, there = Reader(codec), []
    for end in range(size, len(data) + size, size):
        there += [(*level, min(end, len(data))) for level in reader.feed(data[end - size : end])]
    return there


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_levels_come_with_their_last_byte(codec, mode):
    data = codec.compress(photo(150, 101, mode))
    head = read_head(data)
    assert head.method == FLOW
    counts = dict(prefixes(codec.model, data[head.end :], (101, 150), head.settings))
    for size in (1, 50, 10**6):
        there = fed(codec, data, size)
        assert [level for level, *_ in there] == list(range(7, -1, -1))
        for level, picture, end in there:
            assert picture == codec.decompress(data, levels=level)
            first = head.end + counts[level]
            assert first <= end < first + size + 4 * (level == 0)
    assert there[-1][1] == photo(150, 101, mode)


def test_other_methods_come_at_once(codec):
    for picture in (Image.new("RGB", (40, 30), (1, 2, 3)), photo(64, 64, "P"), photo(1, 1)):
        data = codec.compress(picture)
        (*_, (level, back, end)) = fed(codec, data, 7)
        assert level == 0 and end == len(data) and np.array_equal(back, picture)


def test_wrong_files_are_refused_as_soon_as_it_shows(codec):
    data = codec.compress(photo(100, 80))
    with pytest.raises(ValueError, match="not a .nwf"):
        Reader(codec).feed(b"PNG")
    with pytest.raises(ValueError, match="checksum"):
        fed(codec, data[:5] + b"\5" + data[6:], 3)
    reader = Reader(codec)
    assert reader.feed(data)[-1][0] == 0 and reader.feed(b"") == []
    with pytest.raises(ValueError, match="end"):
        reader.feed(b"x")
    with pytest.raises(ValueError):
        Reader(codec).feed(data + b"xxxx")
    at = read_head(data).end + 60
    reader, changed = Reader(codec), data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    with pytest.raises(ValueError):
        reader.feed(changed)
        reader.feed(changed[:9])
    with pytest.raises(ValueError, match="model"):
        Reader(Codec("etc/cifar")).feed(data)


def test_nothing_is_computed_for_what_so_few_bytes_cannot_hold(codec, monkeypatch):
    data, asked = codec.compress(photo(100, 80)), []
    monkeypatch.setattr("flow.codec.feed.plausible", lambda size, stream: asked.append(size) or size[0] < 20)
    levels = [level for level, *_ in fed(codec, data, len(data))]
    assert levels == [6, 5, 4, 3] and max(asked) == (20, 25)


class Counted(bytearray):
    """Counts the bytes of it that were copied."""

    copied = 0

    def __getitem__(self, index):
        part = super().__getitem__(index)
        self.copied += len(part)
        return part

    def __bytes__(self):
        self.copied += len(self)
        return bytes(memoryview(self))


@pytest.mark.parametrize("picture", [photo(150, 101), noise(90, 80, "L")], ids=["flow", "raw"])
def test_many_pieces_cost_no_more_than_few(codec, picture, monkeypatch):
    """Each level's picture takes the data as a whole, and so may every field of the head."""
    data, heads, copied = codec.compress(picture), [], []
    monkeypatch.setattr("flow.codec.feed.read_head", lambda data: heads.append(data) or read_head(data))
    for size in (1, len(data) // 100):
        reader = Reader(codec)
        reader._data = Counted()
        for start in range(0, len(data), size):
            reader.feed(data[start : start + size])
        copied.append(reader._data.copied)
    assert max(copied) < 20 * len(data) and len(heads) < 60


def test_a_file_without_the_flow():
    data = pack(Image.new("L", (9, 9)))
    assert Reader(Codec()).feed(data)[0][1] == Image.new("L", (9, 9))
