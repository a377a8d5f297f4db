"""A .nwf file that comes in pieces: each level as soon as its bytes are there."""

import numpy as np
import torch

from flow.codec.container import CutHead, model_of, plausible, read_head
from flow.codec.corrected import Wanted
from flow.codec.planes import FLOW
from flow.codec.stream import walk
from source.rans import Decoder, Truncated
from utils.arithmetic.crew import crew
from utils.arithmetic.polyphase import depth, level_sizes

MOST_OF_STATE = 7  # bytes that a first state takes at most


class Reader:
    """Pieces of one file -> the levels that are complete.

    codec: the Codec of the model that made it. For example

        reader = Reader(codec)
        for piece in pieces:
            for level, picture in reader.feed(piece):     halved `level` times; 0: the picture itself, checked

    To know what is complete, every symbol is decoded once; a picture then costs what decompress takes for it.
    """

    def __init__(self, codec):
        self.codec, self._data, self._walk = codec, bytearray(), None
        self._least, self._done = 0, False

    def feed(self, piece):
        """Take the next bytes; returns a list of (level, picture), coarsest first, often an empty one.

        Raises ValueError for what is no such file, as soon as it shows.
        """
        if self._done and piece:
            raise ValueError("corrupt file: it does not end where it should")
        self._data += piece
        if len(self._data) < self._least:
            return []
        if self._walk is None:
            try:
                self._walk = self._begin(read_head(bytes(self._data)))
            except CutHead as cut:
                self._least = cut.least
                return []
        with crew(self.codec.threads), torch.no_grad():
            complete = list(iter(lambda: self._walk.send(self._data), None)) if not self._done else []
        self._done = self._done or 0 in complete
        return [(level, self.codec.decompress(self._data, level, partial=level > 0)) for level in complete]

    def _begin(self, head):
        """The walk through the levels of a file, ready to be sent its data."""
        if head.method == FLOW:
            walk = _levels(model_of(head, self.codec.model, self.codec.identity), head)
        else:
            walk = _at_once()
        next(walk)
        return walk


def _at_once():
    """See _levels: of a file whose head is all."""
    yield
    yield 0
    yield


def _levels(model, head):
    """Yield levels, coarsest first, as they are complete, and None where data lack: all so far are sent."""
    width, height = head.size
    sizes, decoder = level_sizes(height, width, depth(height, width)), _Growing(head.end)
    walking, symbols, level = walk(model, 1, (height, width), head.settings), None, len(sizes)

    def tell(level=None):
        decoder.grow((yield level))

    yield from tell()
    while level:
        item = walking.send(symbols)
        while isinstance(item, Wanted):
            try:
                symbols = decoder.pop(item.table)
            except Truncated:
                yield from tell()
            else:
                item = walking.send(symbols)
        symbols, level = None, item[0]
        yield from tell(level)
        while level and not plausible(sizes[level - 1], decoder.length):
            yield from tell()
    yield


class _Growing(Decoder):
    """A Decoder of what there is so far, `length` bytes; a group that is cut is left for later."""

    def __init__(self, begin):
        super().__init__(b"")
        self.length, self._begin, self._room = 0, begin, self._words

    def grow(self, data):
        """Take what is new of all data so far; the stream begins at `begin`."""
        self.length = len(data) - self._begin
        if not self._state:
            super().__init__(data[self._begin : self._begin + MOST_OF_STATE])
        if self._state:
            known = self._words.size
            start = self._begin + self._size + 4 * known
            count = (len(data) - start) // 4
            self._words = self._with_room(known + count)
            self._words[known:] = np.frombuffer(data[start : start + 4 * count], "<u4")

    def _with_room(self, size):
        """Room for so many words, those there are in front: twice as much, that they are rarely copied."""
        if size > self._room.size:
            self._room = np.empty(2 * size, np.uint32)
            self._room[: self._words.size] = self._words
        return self._room[:size]

    def pop(self, distribution, shape=None):
        """See Decoder."""
        if not self._state:
            raise Truncated(np.empty(0, np.int32), 0)
        state, position = self._state, self._position
        try:
            return super().pop(distribution, shape)
        except Truncated:
            self._state, self._position = state, position
            raise
