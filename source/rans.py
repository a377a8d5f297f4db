"""rANS: integers <-> bytes, under probabilities that are integers too.

A distribution shares out the slots 0 .. 2^precision - 1 among its symbols; each owns an interval of them:

    0             start            start + frequency               2^precision
    |---- ... ----|---- symbol ----|------------ ... --------------|

A stream is a state, 2^32 <= state < 2^64, and a stack of 32-bit words. push and pop are inverses:

    push    if state >> (64 - precision) >= frequency:  put the low word on the stack, state >>= 32
            state = (state // frequency << precision) + state % frequency + start
    pop     if state < 2^32:  state = state << 32 | word from the stack
            slot = state mod 2^precision, which names the symbol
            state = (state >> precision) * frequency + slot - start

The bytes lie in the order in which a decoder reads them, so that the first of them hold the first symbols:

    | size - 4: 2 bits | state, big-endian, to fill size = 4 .. 7 bytes | word | word | ...  little-endian

The encoder starts from 2^32 + seal, and the decoder must end there. The seal is 32 bits of the caller's, such
as a checksum, in the 32 bits which the first state takes; a smaller state would waste up to 24 of them. And
as a state stays below 2^32 only for want of a word, a decoder knows how far a cut stream is good.

Without a seal, where the size of a stream is known to be right, the encoder starts from 0: the state grows
until there is a first word to put away, and falls below 2^32 again where the decoder has no word left.

Source: Duda, "Asymmetric numeral systems", arXiv 1311.2540. The distributions are in tables.py, the loops
over symbols in kernels.py.
"""

import numpy as np

from source.kernels import push_intervals


class Truncated(ValueError):
    """A stream that ends within a group; symbols: (n,) int32, the first of the group, all that it holds."""

    def __init__(self, symbols, wanted):
        super().__init__(f"stream ends after {symbols.size} of a group of {wanted} symbols")
        self.symbols = symbols


class Encoder:
    """Groups of symbols -> bytes. Inverse: Decoder, which pops the groups in the order of their push."""

    def __init__(self):
        self._groups = []

    def push(self, distribution, symbols):
        """Append a group: integers of the distribution's shape. Intervals are kept: 8 bytes for a symbol."""
        self._groups.append((*distribution.intervals(symbols), distribution.precision))

    def extend(self, other):
        """Append the groups of another Encoder."""
        self._groups += other._groups

    @property
    def bits(self):
        """The information in all groups, the sum of precision - log2(frequency): what finish aims at."""
        return sum(precision * f.size - np.log2(f).sum(dtype=np.float64) for _, f, precision in self._groups)

    def finish(self, seal=0):
        """Return the bytes of all groups: bits / 8, 4 for the seal (0 <= seal < 2^32), and less than 2.

        seal None: none; in its place the precision, in bits, which the first push takes whatever its symbol.
        """
        if seal is not None and not 0 <= seal < 1 << 32:
            raise ValueError(f"seal {seal}: need 0 <= seal < 2^32")
        state, stack = 0 if seal is None else 1 << 32 | seal, []
        for start, frequency, precision in reversed(self._groups):
            words = np.empty(start.size, np.uint32)
            state, position = push_intervals(start, frequency, precision, np.uint64(state), words)
            stack.append(words[position:].astype("<u4").tobytes())
        state = int(state)
        if state >> 54:
            stack.append((state & 0xFFFFFFFF).to_bytes(4, "little"))
            state >>= 32
        size = max(4, (state.bit_length() + 2 + 7) // 8)
        stack.append((size - 4 << 8 * size - 2 | state).to_bytes(size, "big"))
        return b"".join(reversed(stack))


class Decoder:
    """Bytes -> groups of symbols, read as they are asked for. Inverse: Encoder.

    sealed: whether finish of the Encoder was given a seal.
    """

    def __init__(self, data, sealed=True):
        data = memoryview(data)
        size = 4 + (data[0] >> 6) if data else 4
        complete = len(data) >= size
        state = int.from_bytes(data[:size], "big") & (1 << 8 * size - 2) - 1 if complete else 0
        if complete and state < 1 << (22 if size == 4 else 8 * size - 10) and (sealed or size > 4):
            raise ValueError("corrupt stream: its first state has more bytes than it needs")
        end = len(data) - (len(data) - size) % 4 if complete else size
        self._state, self._lowest = np.uint64(state), np.uint64(1 << 32 if sealed else 0)
        self._words = np.frombuffer(data[size:end], "<u4").astype(np.uint32)
        self._position = 0
        self._loose = len(data) - end
        self._size = size

    @property
    def taken(self):
        """The number of bytes that were needed so far: no fewer hold what was popped."""
        return self._size + 4 * self._position

    def pop(self, distribution, shape=None):
        """Return the next group: int32, of the distribution's shape, or of `shape` where it has none.

        Raises Truncated if the stream ends within it; one without a seal never does.
        """
        symbols = np.empty(distribution.shape if shape is None else shape, np.int32)
        in_turn = symbols.reshape(-1)
        popped = distribution.pop(self._words, self._position, self._state, self._lowest, in_turn)
        self._position, self._state = popped.position, np.uint64(popped.state)
        if popped.count < in_turn.size:
            raise Truncated(in_turn[: popped.count].copy(), in_turn.size)
        return symbols

    def finish(self):
        """Return the seal, or None without.

        Raises ValueError unless the bytes are used up and the state is a first state.
        """
        state, rest = int(self._state), self._words[self._position :].tolist()
        if rest and state < 1 << 32:
            state = state << 32 | rest.pop(0)
        if rest or self._loose or (state >> 32 != 1 if self._lowest else state):
            raise ValueError("corrupt stream: its end is not where its symbols end")
        return state & 0xFFFFFFFF if self._lowest else None
