"""The loops of ycc.py over pixels, compiled: colours <-> luma and chroma, and what chroma is moved to.

Arrays: colours (H, W, 3), uint8; chroma (2, h, w), int16; seen (2, H, W), int16, the chroma of pixels where
it is known, UNKNOWN, or OUTSIDE where there is none; divisor, luma, tables: of a Conversion. They are all in
this one file, as numba's cache does not notice a change in another.
"""

import numba
import numpy as np

_compiled = numba.njit(cache=True, nogil=True)
_inlined = numba.njit(forceinline=True)

# How chroma became as large as luma. It was so; or each 2x2 had a sample, at the upper left pixel, and
# between them are their means; or in the middle, and pixels have 9, 3, 3 and 1 sixteenths of the nearest.
# TURNED: the latter by a quarter, so that halves are rounded up and down by turns in a column, not in a row.
FULL, CORNER, CENTRE, TURNED = range(4)
# How far from where it is a sample is tried, and how far off a pixel may count; more than all pixels around.
AWAY, MOST_OFF, FAR_OFF = 2, 4, 1 << 20
UNKNOWN, OUTSIDE = -1, -2
# Moves of four samples by -1, 0 or 1, a digit to the base of three each: none, and of one or two of them.
STAY = 40
MOVES = np.array([n for n in range(81) if 0 < sum(n // 3**k % 3 != 1 for k in range(4)) <= 2])
# The tables of a Conversion.
RED, GREEN_1, GREEN_2, BLUE = range(4)


@_inlined
def _first(tables, row, value):
    """The first index of a rising table whose entry is not below a value; 256 if there is none."""
    low, high = 0, 256
    while low < high:
        middle = (low + high) >> 1
        if tables[row, middle] < value:
            low = middle + 1
        else:
            high = middle
    return low


@_inlined
def _sample(chroma, c, siting, y, x):
    """The sample of a channel of chroma (2, h, w) at a pixel of luma."""
    if siting == FULL:
        return np.int32(chroma[c, y, x])
    i, j = y >> 1, x >> 1
    if siting == CORNER:
        k, m = min(i + (y & 1), chroma.shape[1] - 1), min(j + (x & 1), chroma.shape[2] - 1)
        return (np.int32(chroma[c, i, j]) + chroma[c, i, m] + chroma[c, k, j] + chroma[c, k, m] + 2) >> 2
    k = min(i + 1, chroma.shape[1] - 1) if y & 1 else max(i - 1, 0)
    m = min(j + 1, chroma.shape[2] - 1) if x & 1 else max(j - 1, 0)
    near = 3 * np.int32(chroma[c, i, j]) + chroma[c, k, j]
    far = 3 * np.int32(chroma[c, i, m]) + chroma[c, k, m]
    return (3 * near + far + 8 - ((y if siting == TURNED else x) & 1)) >> 4


@_compiled
def _range(array, y, x, c1, c2, divisor, luma, tables):
    """The lumas from the first to before the last of which, with this chroma, a pixel is made."""
    first, last = 0, 256
    for channel in range(3):
        if channel == 0:
            offset = tables[RED, c2]
        elif channel == 1:
            offset = tables[GREEN_1, c1] + tables[GREEN_2, c2]
        else:
            offset = tables[BLUE, c1]
        value = np.int64(array[y, x, channel])
        if value > 0:
            first = max(first, -((offset - divisor * value) // luma))
        if value < 255:
            last = min(last, -((offset - divisor * (value + 1)) // luma))
    return first, last


@_compiled
def solve(colours, divisor, luma, tables):
    """Chroma (2, N), int16, of which colours (N, 3) are made; UNKNOWN of clipped ones, of none or several."""
    out = np.full((2, len(colours)), UNKNOWN, np.int16)
    for n in range(len(colours)):
        r, g, b = np.int64(colours[n, 0]), np.int64(colours[n, 1]), np.int64(colours[n, 2])
        if min(r, g, b) == 0 or max(r, g, b) == 255:
            continue
        about = divisor * (299 * r + 587 * g + 114 * b) // (1000 * luma)
        for y in range(max(about - 3, 0), min(about + 4, 256)):
            here = luma * y
            c1, c2 = _first(tables, BLUE, divisor * b - here), _first(tables, RED, divisor * r - here)
            if max(c1, c2) > 255:
                continue
            if tables[BLUE, c1] + here >= divisor * (b + 1) or tables[RED, c2] + here >= divisor * (r + 1):
                continue
            if (here + tables[GREEN_1, c1] + tables[GREEN_2, c2]) // divisor != g:
                continue
            if out[0, n] != UNKNOWN:
                out[:, n] = UNKNOWN
                break
            out[0, n], out[1, n] = c1, c2
    return out


@_inlined
def _off(array, seen, chroma, siting, channels, y, x, divisor, luma, tables):
    """How far a pixel is from being explained by these channels of chroma (2, h, w)."""
    if seen[0, y, x] == OUTSIDE:
        return 0
    if seen[0, y, x] != UNKNOWN:
        total = 0
        for c in range(channels[0], channels[1]):
            total += min(abs(seen[c, y, x] - _sample(chroma, c, siting, y, x)), MOST_OFF)
        return total
    c1, c2 = _sample(chroma, 0, siting, y, x), _sample(chroma, 1, siting, y, x)
    first, last = _range(array, y, x, c1, c2, divisor, luma, tables)
    return min(1 + first - last, MOST_OFF) if first >= last else 0


@_compiled
def _map_off(array, seen, chroma, siting, divisor, luma, tables, first, end, of_unknown):
    """Which pixels of rows from the first on are not explained by chroma."""
    out = np.zeros((end - first, array.shape[1]), np.bool_)
    for y in range(first, end):
        for x in range(array.shape[1]):
            if of_unknown or seen[0, y, x] != UNKNOWN:
                off = _off(array, seen, chroma, siting, (0, 2), y, x, divisor, luma, tables)
                out[y - first, x] = off > 0
    return out


@_inlined
def _pixels_of(siting, i, j, size, shape):
    """First and last row, and column, of pixels that size x size samples are part of; last ones excluded."""
    if siting == FULL:
        return i, i + size, j, j + size
    after = 2 * size + (siting != CORNER)
    return max(2 * i - 1, 0), min(2 * i + after, shape[0]), max(2 * j - 1, 0), min(2 * j + after, shape[1])


@_compiled
def _any(off, first, around):
    for y in range(around[0], around[1]):
        for x in range(around[2], around[3]):
            if off[y - first, x]:
                return True
    return False


@_compiled
def _any_unknown(seen, around):
    for y in range(around[0], around[1]):
        for x in range(around[2], around[3]):
            if seen[0, y, x] == UNKNOWN:
                return True
    return False


@_compiled
def _off_around(array, seen, chroma, siting, channels, around, most, divisor, luma, tables):
    """How far the pixels of these rows and columns are from being explained; not exact above `most`."""
    total = 0
    for y in range(around[0], around[1]):
        for x in range(around[2], around[3]):
            total += _off(array, seen, chroma, siting, channels, y, x, divisor, luma, tables)
            if total > most:
                return total
    return total


@_compiled
def improve(array, seen, chroma, siting, divisor, luma, tables, before, changed, top, end):
    """Move samples of chroma (2, h, w), of some rows, to where they explain their pixels best.

    before, changed: (h, w), those moved the last time, and this time: others need not be looked at, but for
    those next to them. Returns how many were moved.
    """
    first, last, _, _ = _pixels_of(siting, top, 0, end - top, array.shape)
    moved, off = 0, _map_off(array, seen, chroma, siting, divisor, luma, tables, first, last, True)
    for i in range(top, end):
        for j in range(chroma.shape[2]):
            around = _pixels_of(siting, i, j, 1, array.shape)
            near = max(i - 2, 0), min(i + 3, chroma.shape[1]), max(j - 2, 0), min(j + 3, chroma.shape[2])
            if not _any(off, first, around) or not (_any(before, 0, near) or _any(changed, 0, near)):
                continue
            least = _off_around(array, seen, chroma, siting, (0, 2), around, FAR_OFF, divisor, luma, tables)
            one, other = chroma[0, i, j], chroma[1, i, j]
            best_one, best_other = one, other
            # of clipped colours one channel tells of both, of others each of its own
            both = AWAY if _any_unknown(seen, around) else 0
            for d in range(-AWAY, AWAY + 1):
                for e in range(-both, both + 1):
                    c1, c2 = min(max(one + d, 0), 255), min(max(other + e, 0), 255)
                    chroma[0, i, j], chroma[1, i, j] = c1, c2
                    total = _off_around(
                        array, seen, chroma, siting, (0, 2), around, least, divisor, luma, tables
                    )
                    if total < least:
                        least, best_one, best_other = total, c1, c2
            for e in range(-AWAY, AWAY + 1 if not both else -AWAY):
                c2 = min(max(other + e, 0), 255)
                chroma[0, i, j], chroma[1, i, j] = best_one, c2
                total = _off_around(array, seen, chroma, siting, (0, 2), around, least, divisor, luma, tables)
                if total < least:
                    least, best_other = total, c2
            chroma[0, i, j], chroma[1, i, j] = best_one, best_other
            changed[i, j] = best_one != one or best_other != other
            moved += changed[i, j]
    return moved


@_compiled
def wander(array, seen, chroma, siting, divisor, luma, tables, state, top, end):
    """Move 2x2 samples of a channel of chroma, in some rows, by 1 at most, also where they explain as much.

    state: of what chooses among these. Where pixels of known chroma are off. Returns how many were.
    """
    first, last, _, _ = _pixels_of(siting, top, 0, end - top, array.shape)
    off = _map_off(array, seen, chroma, siting, divisor, luma, tables, first, last, False)
    before = np.empty(4, np.int16)
    for channel in range(2):
        channels = channel, channel + 1
        for i in range(top, min(end, chroma.shape[1] - 1)):
            for j in range(chroma.shape[2] - 1):
                around = _pixels_of(siting, i, j, 2, array.shape)
                # samples of the next rows have pixels that are not in the map
                here = around[0], min(around[1], last), around[2], around[3]
                if not _any(off, first, here):
                    continue
                least = _off_around(
                    array, seen, chroma, siting, channels, around, FAR_OFF, divisor, luma, tables
                )
                if not least:
                    continue
                for n in range(4):
                    before[n] = chroma[channel, i + (n >> 1), j + (n & 1)]
                best, count = STAY, 0
                for move in MOVES:
                    _move(chroma, channel, i, j, before, move)
                    total = _off_around(
                        array, seen, chroma, siting, channels, around, least, divisor, luma, tables
                    )
                    if total < least:
                        least, best, count = total, move, 1
                    elif total == least:
                        count += 1
                        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
                        if (state >> 8) % count == 0:
                            best = move
                _move(chroma, channel, i, j, before, best)
    return off.sum()


@_compiled
def _move(chroma, channel, i, j, before, move):
    """2x2 samples from what they were before, each by a digit of a move to the base of three, less 1."""
    for n in range(4):
        chroma[channel, i + (n >> 1), j + (n & 1)] = min(max(before[n] + move % 3 - 1, 0), 255)
        move //= 3


@_compiled
def settle(array, seen, chroma, siting, divisor, luma, tables, wanted):
    """Move samples of chroma (2, h, w) as near to those wanted as they may be where they explain as much."""
    both = 0, 2
    for c, i, j in np.ndindex(chroma.shape):
        value, best = np.int64(chroma[c, i, j]), np.int64(wanted[c, i, j])
        if value == best:
            continue
        around = _pixels_of(siting, i, j, 1, array.shape)
        most = _off_around(array, seen, chroma, siting, both, around, FAR_OFF, divisor, luma, tables)
        step = 1 if value > best else -1
        for near in range(best, value + step, step):
            chroma[c, i, j] = near
            if _off_around(array, seen, chroma, siting, both, around, most, divisor, luma, tables) <= most:
                break


@_compiled
def find_luma(array, chroma, divisor, luma, tables):
    """The luma (H, W), uint8, of colours with this chroma, as near to that above as it may be."""
    out = np.empty(array.shape[:2], np.uint8)
    for y in range(array.shape[0]):
        for x in range(array.shape[1]):
            first, last = _range(array, y, x, chroma[0, y, x], chroma[1, y, x], divisor, luma, tables)
            near = np.int64(out[y - 1, x]) if y else np.int64(out[y, x - 1]) if x else first
            out[y, x] = min(max(near, first), last - 1) if first < last else min(near, 255)
    return out


@_compiled
def upsample(chroma, siting, out):
    """Chroma (2, h, w) as large as luma, into (2, H, W), int16."""
    for c in range(2):
        for y in range(out.shape[1]):
            for x in range(out.shape[2]):
                out[c, y, x] = _sample(chroma, c, siting, y, x)


@_compiled
def convert(lumas, chroma, divisor, luma, tables, out):
    """Luma (H, W), uint8, and chroma (2, H, W) to colours, into (H, W, 3)."""
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            here, c1, c2 = luma * np.int64(lumas[y, x]), chroma[0, y, x], chroma[1, y, x]
            out[y, x, 0] = min(max((here + tables[RED, c2]) // divisor, 0), 255)
            out[y, x, 1] = min(max((here + tables[GREEN_1, c1] + tables[GREEN_2, c2]) // divisor, 0), 255)
            out[y, x, 2] = min(max((here + tables[BLUE, c1]) // divisor, 0), 255)
