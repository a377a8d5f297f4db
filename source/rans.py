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

Source: Duda, "Asymmetric numeral systems", arXiv 1311.2540. The distributions are in tables, but all that is
compiled is here: numba's cache does not notice a change in another file.
"""

import numba
import numpy as np

MIN_PRECISION, MAX_PRECISION = 16, 24
WORD = np.uint64(32)
LOWEST = np.uint64(1 << 32)

# Fixed point: a mean counts 2^-6 steps between integers, the argument of the sigmoid 2^-29, its value 2^-31.
MEAN_BITS = 6
WEIGHT_BITS = 16
ARGUMENT_BITS = 29
SIGMOID_BITS = 31
# The sigmoid is tabulated at multiples of 1/64 in [-24, 24], beyond which it rounds to 0 and 1.
CELL_BITS = 23
SIGMOID_REACH = 24
# The logit is tabulated at multiples of 2^-10 in units of 2^-20, scales in units of 2^-16 steps.
LOGIT_CELLS_BITS = 10
LOGIT_BITS = 20
SCALE_BITS = 16

_compiled = numba.njit(cache=True, nogil=True)
_inlined = numba.njit(forceinline=True)


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
        """Append a group: integers of the distribution's shape."""
        self._groups.append((*distribution.intervals(symbols), distribution.precision))

    @property
    def bits(self):
        """The information in all groups, the sum of precision - log2(frequency): what finish aims at."""
        return sum(precision * f.size - np.log2(f).sum(dtype=np.float64) for _, f, precision in self._groups)

    def finish(self, seal=0):
        """Return the bytes of all groups: bits / 8, 4 for the seal (0 <= seal < 2^32), and less than 2.

        seal None: none, and the bytes are fewer by the bits of the last symbol.
        """
        if seal is not None and not 0 <= seal < 1 << 32:
            raise ValueError(f"seal {seal}: need 0 <= seal < 2^32")
        state, stack = self._lowest_first() if seal is None else 1 << 32 | seal, []
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

    def _lowest_first(self):
        """The smallest first state that the last symbol lifts to 2^32: its frequency 2^(32 - precision)."""
        for _, frequency, precision in reversed(self._groups):
            if frequency.size:
                return int(frequency[-1]) << 32 - precision
        return 1 << 32


class Decoder:
    """Bytes -> groups of symbols, read as they are asked for. Inverse: Encoder."""

    def __init__(self, data):
        data = memoryview(data)
        size = 4 + (data[0] >> 6) if data else 4
        whole = len(data) >= size
        state = int.from_bytes(data[:size], "big") & (1 << 8 * size - 2) - 1 if whole else 0
        if whole and state < 1 << (22 if size == 4 else 8 * size - 10):
            raise ValueError("corrupt stream: its first state has more bytes than it needs")
        end = len(data) - (len(data) - size) % 4 if whole else size
        self._state = np.uint64(state)
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

        Raises Truncated if the stream ends within it.
        """
        symbols = np.empty(distribution.shape if shape is None else shape, np.int32)
        flat = symbols.reshape(-1)
        count, self._position, state = distribution.pop(self._words, self._position, self._state, flat)
        self._state = np.uint64(state)
        if count < flat.size:
            raise Truncated(flat[:count].copy(), flat.size)
        return symbols

    def finish(self, sealed=True):
        """Return the seal. Raises ValueError unless the bytes are used up and the state is a first state.

        sealed False: for a stream without, of whose first state less is known.
        """
        state, rest = int(self._state), self._words[self._position :].tolist()
        if rest and state < 1 << 32:
            state = state << 32 | rest.pop(0)
        if rest or self._loose or state >> 33 or (sealed and not state >> 32):
            raise ValueError("corrupt stream: its end is not where its symbols end")
        return state & 0xFFFFFFFF if sealed else None


@_compiled
def push_intervals(start, frequency, precision, state, words):
    """Push intervals, the last one first; words: room for one word each, filled from its end.

    Returns the state and where the words begin.
    """
    position = words.size
    shift = np.uint64(precision)
    for i in range(start.size - 1, -1, -1):
        f = np.uint64(frequency[i])
        if state >> (np.uint64(64) - shift) >= f:
            position -= 1
            words[position] = np.uint32(state)
            state >>= WORD
        quotient = state // f
        state = (quotient << shift) + (state - quotient * f) + np.uint64(start[i])
    return state, position


@_inlined
def _refill(words, position, state):
    """Bring the state back to [2^32, 2^64); below 2^32 it remains only if there is no word left."""
    if state < LOWEST and position < words.size:
        state = state << WORD | np.uint64(words[position])
        position += 1
    return position, state


@_inlined
def _advance(state, slot, start, end, precision):
    """The state after the symbol of [start, end) was taken from it."""
    return (state >> np.uint64(precision)) * np.uint64(end - start) + np.uint64(slot - start)


@_compiled
def pop_table(words, position, state, symbols, values, starts, precision):
    """Pop symbols that share one table: values[j] owns [starts[j], starts[j + 1]).

    Returns how many symbols there were, the position and the state.
    """
    mask = np.uint64((1 << precision) - 1)
    for i in range(symbols.size):
        position, state = _refill(words, position, state)
        if state < LOWEST:
            return i, position, state
        slot = np.int64(state & mask)
        low, high = 0, values.size
        while high - low > 1:
            middle = (low + high) >> 1
            if starts[middle] <= slot:
                low = middle
            else:
                high = middle
        state = _advance(state, slot, starts[low], starts[low + 1], precision)
        symbols[i] = values[low]
    return symbols.size, position, state


@_compiled
def prepare_mixture(weight, mean, nbins, share, low):
    """Bring weights to a sum of 2^16 (share), and find the first integers of the windows (low).

    weight >= 0, mean, share: (K, N); low: (N,). Returns False if the weights of a symbol are all 0.
    """
    for i in range(low.size):
        total = np.int64(0)
        for k in range(weight.shape[0]):
            total += weight[k, i]
        if total == 0:
            return False
        # The running sums are rounded, not the weights: that keeps the total
        running, before, centre = np.int64(0), np.int64(0), np.int64(0)
        for k in range(weight.shape[0]):
            running += weight[k, i]
            after = (running << WEIGHT_BITS) // total
            share[k, i] = after - before
            centre += (after - before) * mean[k, i]
            before = after
        low[i] = ((centre >> WEIGHT_BITS) + (1 << MEAN_BITS - 1) >> MEAN_BITS) - nbins // 2
    return True


@_inlined
def _interpolate(table, x, bits):
    """table, tabulated at multiples of 2^bits, at x >= 0: linear in between, rounded down, hence monotone."""
    cell = np.uint64(x >> bits)
    left, right = np.int64(table[cell]), np.int64(table[cell + np.uint64(1)])
    return left + ((right - left) * (x & (1 << bits) - 1) >> bits)


@_inlined
def _bounds(z, i, mixture, tables):
    """Start and end of the interval of z, low - 1 <= z <= low + nbins, under the i-th mixture.

    |64 z| < 2^32, |mean| <= 2^31 and inverse <= 2^29 keep the argument of the sigmoid below 2^63;
    weights that sum to 2^16, the sum within 2^47; share < 2^24, the product with it within 2^55.
    """
    low, nbins, precision, weight, mean, scale = mixture
    sigmoid, inverse, _, _ = tables
    share = (1 << precision) - nbins - 2
    edge = (z << MEAN_BITS) - (1 << MEAN_BITS - 1)
    centre = SIGMOID_REACH << ARGUMENT_BITS
    limit = (2 * SIGMOID_REACH << ARGUMENT_BITS) - 1
    start, end = np.int64(0), np.int64(0)
    for k in range(mean.shape[0]):
        slope = np.int64(inverse[np.uint64(scale[k, i])])
        x = (edge - mean[k, i]) * slope + centre
        w = np.int64(weight[k, i])
        start += w * _interpolate(sigmoid, min(max(x, 0), limit), CELL_BITS)
        x += slope << MEAN_BITS
        end += w * _interpolate(sigmoid, min(max(x, 0), limit), CELL_BITS)
    rank = z - low[i] + 1
    start = ((start >> WEIGHT_BITS) * share >> SIGMOID_BITS) + rank
    end = ((end >> WEIGHT_BITS) * share >> SIGMOID_BITS) + rank + 1
    if z < low[i]:
        start = np.int64(0)
    if z >= low[i] + nbins:
        end = np.int64(1 << precision)
    return start, end


@_compiled
def mixture_intervals(symbols, mixture, tables, start, frequency):
    """Find the intervals of symbols under mixtures: one for each inside its window, four for each outside.

    mixture: low (N,), nbins, precision, and weight, mean, scale (K, N); tables: those of tables.TABLES.
    Inverse: pop_mixture.
    """
    low, nbins, precision, _, _, _ = mixture
    j = 0
    for i in range(symbols.size):
        below, above = np.int64(low[i]) - 1, np.int64(low[i]) + nbins
        symbol = np.int64(symbols[i])
        z = min(max(symbol, below), above)
        first, last = _bounds(z, i, mixture, tables)
        start[j], frequency[j] = first, last - first
        j += 1
        if z == below or z == above:
            distance = abs(symbol - z) + 1
            length = np.int64(0)
            while distance >> (length + 1):
                length += 1
            upper = max(length - 16, 0)
            lower = length - upper
            for value, width in ((length, 5), (distance >> lower, upper), (distance, lower)):
                start[j], frequency[j] = _bits_interval(value & (1 << width) - 1, width, precision)
                j += 1


@_compiled
def pop_mixture(words, position, state, symbols, mixture, tables):
    """Pop symbols, each under its own mixture. Inverse: mixture_intervals.

    Returns how many symbols there were, the position and the state.
    """
    low, nbins, precision, _, _, _ = mixture
    mask = np.uint64((1 << precision) - 1)
    for i in range(symbols.size):
        position, state = _refill(words, position, state)
        if state < LOWEST:
            return i, position, state
        slot = np.int64(state & mask)
        below, above = np.int64(low[i]) - 1, np.int64(low[i]) + nbins
        z = _guess(slot, i, mixture, tables)
        left, right = below, above
        trial = 0
        while True:
            z = min(max(z, left), right)
            start, end = _bounds(z, i, mixture, tables)
            if slot < start:
                right = z - 1
            elif slot >= end:
                left = z + 1
            else:
                break
            # Newton's step, but a bisection now and then, lest a flat stretch lead it astray
            trial += 1
            z = z + (slot - start) // (end - start) if trial & 3 else (left + right) >> 1
        state = _advance(state, slot, start, end, precision)
        if z == below or z == above:
            position, state, length = _pop_bits(words, position, state, 5, precision)
            upper = max(length - 16, 0)
            lower = length - upper
            position, state, high = _pop_bits(words, position, state, upper, precision)
            position, state, rest = _pop_bits(words, position, state, lower, precision)
            if rest < 0:
                return i, position, state
            distance = ((np.int64(1) << upper) + high << lower) + rest - 1
            z = z - distance if z == below else z + distance
        symbols[i] = z  # wraps round in corrupt streams alone
    return symbols.size, position, state


@_inlined
def _guess(slot, i, mixture, tables):
    """About where the slot lies: the mean of the components' quantiles. Nothing but time depends on it."""
    _, nbins, precision, weight, mean, scale = mixture
    _, _, scales, logit = tables
    share = (1 << precision) - nbins - 2
    level = min(max(slot - nbins // 2 - 1, 0), share - 1) << (MAX_PRECISION - precision)
    t = _interpolate(logit, level, MAX_PRECISION - LOGIT_CELLS_BITS)
    quantile = np.int64(0)
    for k in range(mean.shape[0]):
        offset = t * scales[np.uint64(scale[k, i])] >> (LOGIT_BITS + SCALE_BITS - MEAN_BITS)
        quantile += np.int64(weight[k, i]) * (mean[k, i] + offset)
    return ((quantile >> WEIGHT_BITS) + (1 << MEAN_BITS - 1)) >> MEAN_BITS


@_inlined
def _bits_interval(value, width, precision):
    """Start and frequency of a number of `width` <= 16 equiprobable bits. Inverse: _pop_bits."""
    return value << (precision - width), 1 << (precision - width)


@_inlined
def _pop_bits(words, position, state, width, precision):
    """Pop a number of `width` <= 16 equiprobable bits, -1 if the stream has ended: for good, then."""
    position, state = _refill(words, position, state)
    if state < LOWEST:
        return position, state, np.int64(-1)
    slot = np.int64(state & np.uint64((1 << precision) - 1))
    value = slot >> (precision - width)
    start, frequency = _bits_interval(value, width, precision)
    return position, _advance(state, slot, start, start + frequency, precision), value
