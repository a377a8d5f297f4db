"""Pictures that were luma and chroma before they were red, green and blue: found out, and made again.

What decodes a JPEG file or a PhotoCD makes colours of luma and chroma, each rounded, the chroma often of
half the resolution. Who finds these again has much less to code: one in four or nine of all colours can
occur, and three in four of the chroma samples were interpolated. Here are those decoders of which the
arithmetic is known to the last bit, and what undoes them; pixels that they would have made otherwise are
exceptions.
Source: ITU-T T.871 (JFIF), libjpeg's "fancy" upsampling; Kodak's PhotoYCC, whose luma counts 1.36 tones.
"""

import math
import zlib
from typing import NamedTuple

import numpy as np
import torch

from flow.codec import ycc_kernels as kernels
from flow.codec.planes import DEFAULT_EFFORT, inflate
from flow.codec.ycc_kernels import CENTRE, CORNER, FULL, OUTSIDE, TURNED, UNKNOWN
from utils.arithmetic.crew import submit
from utils.arithmetic.integers import MIDDLE
from utils.arithmetic.polyphase import band_sizes, channels_last, interpolated, merge

# An encoder looks at so many colours first, and goes on if this share of them can occur. Fewer, or shorter
# sides, are not worth it.
SAMPLES, SHARE, LEAST, LEAST_SIDE = 1 << 12, 0.98, 1 << 8, 4
# A siting is looked into if it explains the chroma of this share of pixels (at corners, where chroma is read,
# of the second; in the middle of a picture, which may be clipped, at a glance of the third), given up if so
# many are off when samples have been moved one by one, and taken if so few are in the end, and some beside.
EXPLAINED, READ, LIKELY, HOPELESS, FEW, SOME = 0.75, 0.9, 0.6, 0.03, 0.01, 16
# Exceptions: no more of all pixels are worth it, and in a file there cannot be more than one in so many.
MOST_EXCEPTIONS, EXCEPTIONS_LIMIT = 0.05, 16
# Where colours are clipped, so many pixels around are not counted for it.
AWAY_FROM_CLIPPED = 4
# Wandering ends where so much of what was off is left.
STALLED = 0.8
# Lines of a picture that tell where chroma's samples are; side of its middle, which is looked at first.
LINES, LOOK = 256, 128
# Rounds of projection, more with effort where colours are clipped; how far each goes, and what is too far.
ROUNDS, OVER, OUTLIER = 4, 1.7, 8
# Pixels that are projected at a time, and rows beside them that matter; rows of chroma that are moved.
PIECE, MARGIN, ROWS = 1 << 18, 32, 64


class Conversion(NamedTuple):
    """R = (luma y + red[c2]) // divisor, G = (luma y + green_1[c1] + green_2[c2]) // divisor and
    B = (luma y + blue[c1]) // divisor, clamped to 0..255; y, c1 and c2 are 0..255.

    tables: (4, 256), int64; red and blue rise, each time by the divisor or more; luma is no less than it.
    neutral: c1 and c2 where there is no colour.
    """

    divisor: int
    luma: int
    tables: np.ndarray
    neutral: tuple


def _jfif():
    """libjpeg's integers."""
    c, half = np.arange(-128, 128), 1 << 15
    red, blue = 91881 * c + half >> 16 << 16, 116130 * c + half >> 16 << 16
    return Conversion(1 << 16, 1 << 16, np.stack([red, half - 22554 * c, -46802 * c, blue]), (128, 128))


def _photo_ycc():
    unit, neutral = 10_000, (156, 137)
    blue, red = (factor * (np.arange(256) - zero) for factor, zero in zip((22179, 18215), neutral))
    green = -1940 * (blue // unit), -5090 * (red // unit)
    return Conversion(unit, 13584, np.stack([red, *green, blue]), neutral)


CONVERSIONS = _jfif(), _photo_ycc()
NAMES = "JFIF's YCbCr", "PhotoYCC"
SITING_NAMES = {FULL: "4:4:4", CORNER: "4:2:0 at corners", CENTRE: "4:2:0", TURNED: "4:2:0, turned"}
# Sitings in the middle, and what is to be flipped: of pictures as they were decoded, mirrored and turned.
IN_THE_MIDDLE = (
    (CENTRE, (False, False)),
    (CENTRE, (False, True)),
    (TURNED, (False, False)),
    (TURNED, (True, False)),
)
# What a byte has of a siting in the middle of a picture that was cropped; and, beside it, of one turned.
CROPPED_BITS, TURNED_BIT = 3, 1 << 2


class Form(NamedTuple):
    """conversion: which of CONVERSIONS; siting: FULL, CORNER, CENTRE or TURNED; flipped: whether rows, and
    columns, are stored from the last to the first. cropped: of a picture that was cut out of a larger one,
    whose samples of chroma go on, whether at an odd row, and column, as it is stored; None otherwise.
    """

    conversion: int
    siting: int
    flipped: tuple = (False, False)
    cropped: tuple | None = None

    @property
    def halved(self):
        """Whether chroma has half the resolution."""
        return self.siting != FULL

    @property
    def name(self):
        """What it is called."""
        cropped = "" if self.cropped is None else ", cropped"
        return f"{NAMES[self.conversion]}, {SITING_NAMES[self.siting]}{cropped}"

    def turned(self, array):
        """An array (H, W, ..) as it is stored, and back."""
        return array[tuple(slice(None, None, -1 if flip else 1) for flip in self.flipped)]

    def around(self, size):
        """How many rows a picture of this (height, width) lacks before and after it, to have whole 2x2 pixels
        of all samples that its chroma is interpolated from, and columns: ((before, after), (before, after)).
        """
        if self.cropped is None:
            return (0, 0), (0, 0)
        return tuple((2 - odd, 2 - (n + odd) % 2) for n, odd in zip(size, self.cropped))

    def beside(self, size):
        """How many of these samples a pyramid does not see, likewise: it has one for each 2x2 of its own."""
        if self.cropped is None:
            return (0, 0), (0, 0)
        return tuple((1 - odd, 1 - (1 - odd) * n % 2) for n, odd in zip(size, self.cropped))

    def extended(self, array, **mode):
        """A picture (H, W, ..), as it is stored, with the pixels around it: see np.pad."""
        return np.pad(array, (*self.around(array.shape[:2]), *((0, 0) for _ in array.shape[2:])), **mode)

    def upsampled(self, chroma, size):
        """Chroma (2, h, w), with what is beside, as large as luma of this (height, width), int16."""
        around = self.around(size)
        return _cut(upsampled(chroma, self.siting, [n + sum(some) for n, some in zip(size, around)]), around)

    def planes(self, samples):
        """Luma, c1 and c2 (B, 3, H, W) -> what a pyramid is to see, much like YCoCg-R. Inverse: samples."""
        y, c1, c2 = samples.unbind(1)
        c1, c2 = (c - zero for c, zero in zip((c1, c2), CONVERSIONS[self.conversion].neutral))
        return torch.stack([y, MIDDLE + c2 - c1, MIDDLE - c2], 1)

    def samples(self, planes):
        """Undo planes."""
        y, co, cg = planes.unbind(1)
        c2 = MIDDLE - cg
        c1 = MIDDLE + c2 - co
        c1, c2 = (c + zero for c, zero in zip((c1, c2), CONVERSIONS[self.conversion].neutral))
        return torch.stack([y, c1, c2], 1)

    def outside(self, planes):
        """Which pixels of planes are made of what is not in 0..255: (B, 1, H, W)."""
        samples = self.samples(planes)
        wrong = (samples < 0) | (samples > 255)
        if self.halved:
            wrong[:, 1:, 1::2] = wrong[:, 1:, :, 1::2] = False
        return wrong.any(1, keepdim=True)

    def pack(self):
        """As a byte. Inverse: form_of."""
        rows, columns = self.flipped
        siting = min(self.siting, CENTRE)
        if self.cropped is not None:
            siting = CROPPED_BITS + self.cropped[0] + 2 * self.cropped[1]
        turned = TURNED_BIT * (self.siting == TURNED)
        return bytes([self.conversion | turned | siting << 3 | rows << 6 | columns << 7])


def form_of(byte):
    """The Form of a byte. Raises ValueError for one that there is not."""
    conversion, siting, flipped = byte & 3, byte >> 3 & 7, (bool(byte >> 6 & 1), bool(byte >> 7))
    odd, turned = siting - CROPPED_BITS, bool(byte & TURNED_BIT)
    cropped = (bool(odd & 1), bool(odd & 2)) if odd >= 0 else None
    siting = min(siting, CENTRE)
    form = Form(conversion, TURNED if turned else siting, flipped, cropped)
    if conversion >= len(CONVERSIONS) or odd > 3 or (turned and siting != CENTRE):
        raise ValueError(f"corrupt file: it knows no luma and chroma of kind {byte}")
    return form


class Found(NamedTuple):
    """What a picture was: luma (H, W), chroma (2, H, W), or (2, h, w) if it is halved, all 0..255, stored in
    the order of the form; exceptions: the pixels that are not made of it, and the chroma that a pyramid does
    not see, packed.
    """

    form: Form
    luma: np.ndarray
    chroma: np.ndarray
    exceptions: bytes

    def planes(self):
        """What a pyramid of YCoCg-R is to see, (1, 3, H, W): halved chroma is interpolated in them."""
        chroma = _cut(self.chroma, self.form.beside(self.luma.shape))
        luma, chroma = (torch.from_numpy(x).float() for x in (self.luma, chroma))
        beside = luma[::2, ::2] if self.form.halved else luma
        chroma = self.form.planes(torch.cat([beside[None], chroma])[None])[:, 1:]
        if self.form.halved:
            others = (interpolated(chroma, n, size) for n, size in enumerate(band_sizes(*luma.shape)[1:]))
            chroma = merge(chroma, *others)
        return channels_last(torch.cat([luma[None, None], chroma], 1))


def find(array, effort=DEFAULT_EFFORT):
    """What a picture (H, W, 3), uint8, was made of, a Found; None if that is not known. Inverse: made.

    effort: 1 .. 9: how long to look for what clipped colours were.
    """
    colours = array.reshape(-1, 3)
    some = colours[np.random.default_rng(0).integers(0, len(colours), SAMPLES)]
    some = some[((some > 0) & (some < 255)).all(1)]
    if min(len(colours), len(some)) < LEAST:
        return None
    for number, conversion in enumerate(CONVERSIONS):
        if _share_known(kernels.solve(some, *conversion[:3])) < SHARE:
            continue
        seen = kernels.solve(colours, *conversion[:3]).reshape(2, *array.shape[:2])
        found = _halved(array, number, seen, effort)
        found = found or _found(array, Form(number, FULL), seen, seen, effort)
        if found:
            return found
    return None


def _share_known(chroma):
    return (chroma[0] != UNKNOWN).mean()


def _halved(array, number, seen, effort):
    """The Found of halved chroma; seen: (2, H, W), that of each pixel where it is known."""
    size = array.shape[:2]
    if min(size) < LEAST_SIDE:
        return None
    for flipped in (False, False), (False, True), (True, False), (True, True):
        form = Form(number, CORNER, flipped)
        pixels, turned = _stored(form, array, seen)
        if _explained(turned, upsampled(_filled(turned)[:, ::2, ::2], CORNER, size)) > READ:
            if found := _halved_as(form, pixels, turned, effort):
                return found
    looks = []
    for siting, flipped in IN_THE_MIDDLE:
        looks += _looks(Form(number, siting, flipped), array, seen)
        share, cropped = max(looks, key=lambda look: look[0])
        if share <= LIKELY:  # however halves are rounded, or not at all
            return None
    (array, seen), whole = _stored(cropped, array, seen), None
    if not any(cropped.cropped):
        share, arguments = _tried(cropped._replace(cropped=None), array, seen, effort)
        whole = _found(*arguments) if share > EXPLAINED else None
        border = sum(2 / n for n in size)  # the share of pixels that a crop would not explain
        if share + border <= EXPLAINED or (whole and _at_border(whole) <= SOME):
            return whole
    both = whole, _halved_as(cropped, array, seen, effort)
    return min(filter(None, both), key=lambda found: len(found.exceptions), default=None)


def _looks(form, array, seen):
    """How much of a picture's middle is explained by chroma halved in the middle, cropped in a likely way.

    Yields the share and the form, cropped.
    """
    array, seen = _stored(form, array, seen)
    middle = tuple(slice(max(n - LOOK, 0) // 2 & ~1, (n + LOOK) // 2) for n in array.shape[:2])
    for odd in dict.fromkeys((_odd(seen), (False, False))):
        cropped = form._replace(cropped=odd)
        share, _ = _tried(cropped, array[middle], seen[:, *middle], effort=1)
        yield share, cropped


def _stored(form, array, seen):
    """A picture and what is seen of its chroma in the order of a form."""
    return form.turned(array), np.stack([form.turned(plane) for plane in seen])


def _halved_as(form, array, seen, effort):
    """The Found of chroma halved in a certain way, or None; array, seen: in the order of the form."""
    share, arguments = _tried(form, array, seen, effort)
    return _found(*arguments) if share > EXPLAINED else None


def _tried(form, array, seen, effort):
    """Which share is explained by chroma halved in a certain way, about, and what _found takes for it."""
    pixels = form.extended(array, mode="edge")
    seen = np.stack([form.extended(plane, constant_values=OUTSIDE) for plane in seen])
    chroma = _projected(pixels, seen, form.siting, CONVERSIONS[form.conversion], effort)
    share = _explained(seen, upsampled(chroma, form.siting, pixels.shape[:2]))
    return share, (array, form, seen, chroma, effort)


def _odd(seen):
    """Whether the first row, and column, are the second ones of samples in the middle of 2x2 pixels.

    From sample to sample chroma goes straight, and bends at both pixels of one alike: which two, tells.
    seen: (2, H, W).
    """
    odd = []
    for lines in seen.transpose(0, 2, 1), seen:
        lines = lines[:, :: -(-lines.shape[1] // LINES)].astype(np.int32)
        known = np.lib.stride_tricks.sliding_window_view(lines[0] != UNKNOWN, 4, 1).all(2)
        unlike = np.where(known, abs(np.diff(lines, 3)).sum(0), 0)
        # that of the bends at the second and the third pixel, and so on
        one, other = (unlike[:, n::2].sum() / max(known[:, n::2].sum(), 1) for n in (0, 1))
        odd.append(bool(one < other))
    return tuple(odd)


def _at_border(found):
    """How many pixels at the border of a picture, which is whole, are exceptions."""
    places, *_ = _unpack_exceptions(found.exceptions, found.luma.size)
    height, width = found.luma.shape
    rows, columns = np.divmod(places, width)
    return ((rows % (height - 1) == 0) | (columns % (width - 1) == 0)).sum()


def _is_known(seen):
    return seen[0] >= 0


def _explained(seen, chroma):
    known = _is_known(seen)
    return (seen == chroma).all(0)[known].mean() if known.any() else 1.0


def _filled(seen):
    """Chroma, where it is not known that of the nearest pixel where it is."""
    unknown = ~_is_known(seen)
    if not unknown.any():
        return seen
    from scipy import ndimage  # takes a while, which decoders need not wait

    nearest = ndimage.distance_transform_edt(unknown, return_distances=False, return_indices=True)
    return seen[:, nearest[0], nearest[1]]


class _Interpolation:
    """Along an axis: n samples -> pixels at places, and back by least squares; without rounding.

    Arrays: (2, .., ..).
    """

    def __init__(self, n, places, siting):
        from scipy.sparse import csr_array

        count = len(places)
        near, next_ = places >> 1, places & 1
        far = near + (next_ if siting == CORNER else 2 * next_ - 1)
        parts = np.repeat((1 / 2, 1 / 2) if siting == CORNER else (3 / 4, 1 / 4), count)
        where = np.tile(np.arange(count), 2), np.concatenate([near, np.clip(far, 0, n - 1)])
        self.matrix = csr_array((parts, where), (count, n))
        normal = self.matrix.T @ self.matrix
        self.normal = np.stack([np.append(0, normal.diagonal(1)), normal.diagonal()])

    def forth(self, x, axis):
        """(.., n, ..) -> (.., count, ..)."""
        return _along(lambda lines: self.matrix @ lines, x, axis)

    def back(self, x, axis):
        """(.., count, ..) -> (.., n, ..)."""
        from scipy.linalg import solveh_banded

        return _along(lambda lines: solveh_banded(self.normal, self.matrix.T @ lines), x, axis)


def _along(function, x, axis):
    x = np.moveaxis(x, axis, 0)
    return np.moveaxis(function(x.reshape(len(x), -1)).reshape(-1, *x.shape[1:]), 0, axis)


def _projected(array, seen, siting, conversion, effort):
    """Halved chroma (2, h, w) of which that of an array was interpolated, about; seen: what is known of it.

    Pieces of rows are each projected with some rows more on both sides.
    """
    height, filled, pieces = len(array), _filled(seen), []
    count = min(max(PIECE // array.shape[1] & ~1, MARGIN), height)
    for top in range(0, height, count):
        first, end = max(top - MARGIN, 0), min(top + count, height)
        rows = slice(first, min(end + MARGIN, height))
        piece = array[rows], seen[:, rows], filled[:, rows], siting, conversion, effort
        wanted = slice(top - first >> 1, end - first + 1 >> 1)
        pieces.append((wanted, submit(_projected_piece, *piece, pixels=array[rows, :, 0].size)))
    chroma = np.concatenate([piece.result()[:, wanted] for wanted, piece in pieces], 1)
    if siting == CORNER:
        exact = seen[:, ::2, ::2]
        chroma = np.where(_is_known(exact), exact, chroma)
    return chroma


def _projected_piece(array, seen, filled, siting, conversion, effort):
    """By projection, in turn onto what is interpolated, by least squares, and what is rounded and clipped."""
    rows, columns = (np.flatnonzero((seen[0] != OUTSIDE).any(axis)) for axis in (1, 0))
    down, across = (_Interpolation((n + 1) // 2, x, siting) for n, x in zip(array.shape, (rows, columns)))
    inside = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    array, seen, filled = array[inside], seen[:, *inside], filled[:, *inside]
    known, wanted = _is_known(seen), filled.astype(np.float64)
    if siting == CORNER and known.all():
        return filled[:, ::2, ::2]
    # what of all between two integers is rounded to one, see _sample
    later = rows[:, None] if siting == TURNED else columns
    least = seen - (1 / 2 - (0 if siting == CORNER else later % 2 / 16))
    span = 3 / 4 if siting == CORNER else 15 / 16
    clipped = _Clipped(array[~known], conversion)
    for left in reversed(range(ROUNDS if known.all() else ROUNDS * effort)):
        chroma = down.back(across.back(wanted, 2), 1)
        if left:
            wanted = across.forth(down.forth(chroma, 1), 2)
            off = OVER * (np.clip(wanted, least, least + span) - wanted)
            off[:, (abs(off) > OUTLIER).any(0)] = 0
            off[:, ~known] = clipped.off(wanted[:, ~known])
            wanted += off
    return np.clip(np.rint(chroma), 0, 255).astype(np.int16)


class _Clipped:
    """What clipped colours (N, 3) tell of chroma: how much two channels differ, or differ at least."""

    def __init__(self, colours, conversion):
        red, green_1, green_2, blue = (conversion.tables[:, -1] - conversion.tables[:, 0]) / 255
        ways = np.array([(0, red), (green_1, green_2), (blue, 0)]) / conversion.divisor
        self.neutral, self.bounds = np.array(conversion.neutral)[:, None], []
        high, low, colours = colours == 255, colours == 0, colours.astype(np.float64)
        for one, other in (0, 1), (1, 2), (2, 0):
            far = colours[:, one] - colours[:, other]
            least = np.where(low[:, one] | high[:, other], -np.inf, far - 1)
            most = np.where(high[:, one] | low[:, other], np.inf, far + 1)
            self.bounds.append((ways[one] - ways[other], least, most))

    def off(self, chroma):
        """What is to be added to chroma (2, N)."""
        start = chroma
        for way, least, most in self.bounds:
            way = way[:, None]
            here = (way * (chroma - self.neutral)).sum(0)  # a product would wake the library's threads
            chroma = chroma + way * ((np.clip(here, least, most) - here) / (way**2).sum())
        return chroma - start


def _found(array, form, seen, chroma, effort):
    """The Found of a picture, stored in the order of the form, and its chroma, if it is worth it.

    seen, chroma: those of the picture extended.
    """
    conversion, size = CONVERSIONS[form.conversion], array.shape[:2]
    pixels, chroma = form.extended(array, mode="edge"), np.ascontiguousarray(chroma, np.int16)
    array, seen = np.ascontiguousarray(array), np.ascontiguousarray(seen)
    if form.siting == FULL:
        chroma = _filled(chroma).copy()
    arguments, changed = (pixels, seen, chroma, form.siting, *conversion[:3]), np.ones(chroma.shape[1:], bool)
    for _ in range(1 + effort):
        before, changed = changed, np.zeros_like(changed)
        if not _in_pieces(kernels.improve, *arguments, before, changed):
            break
    if form.halved:
        clear = _clear(seen)
        if _is_off(seen, chroma, form, clear, HOPELESS):
            return None
        left = math.inf
        for n in range(1 + effort):
            before, left = left, _in_pieces(kernels.wander, *arguments, n)
            if left > STALLED * before or not left:
                break
        if _is_off(seen, chroma, form, clear, FEW):
            return None
    beside, is_beside = _with_beside(form, _cut(chroma, form.beside(size)), size)
    kernels.settle(*arguments, beside)
    full = np.ascontiguousarray(form.upsampled(chroma, size))
    luma = kernels.find_luma(array, full, *conversion[:3])
    wrong = (_converted(luma, full, conversion) != array).any(-1)
    if wrong.mean() > MOST_EXCEPTIONS:
        return None
    return Found(form, luma, chroma, _pack_exceptions(array, wrong, (chroma - beside)[:, is_beside]))


def _with_beside(form, chroma, size):
    """Chroma (2, h, w) of a pyramid with the nearest of it for what is beside; which that is: (h, w)."""
    beside = form.beside(size)
    is_beside = np.pad(np.zeros(chroma.shape[1:], bool), beside, constant_values=True)
    return np.pad(chroma, ((0, 0), *beside), mode="edge"), is_beside


def _cut(chroma, around):
    """Chroma (2, h, w) without so much around: ((rows before, after), (columns before, after))."""
    rows, columns = (slice(before, n - after) for n, (before, after) in zip(chroma.shape[1:], around))
    return chroma[:, rows, columns]


def _clear(seen):
    """Which pixels (H, W) are of known chroma, as are those around; if these are few, all of known chroma."""
    known, unknown = _is_known(seen), seen[0] == UNKNOWN
    if not unknown.any():
        return known
    from scipy import ndimage

    clear = known & ~ndimage.binary_dilation(unknown, iterations=AWAY_FROM_CLIPPED)
    return clear if clear.sum() > LEAST else known


def _is_off(seen, chroma, form, clear, share):
    """Whether more than a share of the clear pixels, and some beside, are not explained by chroma."""
    off = (seen != upsampled(chroma, form.siting, seen.shape[1:])).any(0)[clear]
    return off.sum() > share * off.size + SOME


def _in_pieces(function, array, seen, chroma, *arguments):
    """The sum of what a function gives for pieces of chroma's rows, every other of them at the same time."""
    total, height = 0, chroma.shape[1]
    for start in (0, ROWS):
        pieces = []
        for top in range(start, height, 2 * ROWS):
            rows = top, min(top + ROWS, height)
            pieces.append(submit(function, array, seen, chroma, *arguments, *rows, pixels=array[..., 0].size))
        total += sum(piece.result() for piece in pieces)
    return total


def made(form, samples, exceptions):
    """The picture (H, W, 3), uint8, of luma and chroma (H, W, 3), uint8; halved chroma is at even places.

    Inverse: find. Raises ValueError if the exceptions are none of such a picture's.
    """
    luma, chroma = samples[..., 0], np.moveaxis(samples[..., 1:], -1, 0)
    if form.halved:
        chroma = chroma[:, ::2, ::2]
    chroma, is_beside = _with_beside(form, chroma.astype(np.int16), luma.shape)
    places, colours, beside = _unpack_exceptions(exceptions, luma.size, 2 * is_beside.sum())
    chroma[:, is_beside] = chroma[:, is_beside] + beside.reshape(2, -1) & 255
    array = _converted(luma, form.upsampled(chroma, luma.shape), CONVERSIONS[form.conversion])
    array.reshape(-1, 3)[places] = colours
    return np.ascontiguousarray(form.turned(array))


def shown(form, samples):
    """The picture (H, W, 3), uint8, of luma and chroma (H, W, 3), uint8, neither of them halved."""
    luma, chroma = samples[..., 0], np.moveaxis(samples[..., 1:], -1, 0).astype(np.int16)
    return np.ascontiguousarray(form.turned(_converted(luma, chroma, CONVERSIONS[form.conversion])))


def upsampled(chroma, siting, size):
    """Chroma (2, h, w) as large as luma of this (height, width), int16."""
    chroma = np.ascontiguousarray(chroma, np.int16)
    if siting == FULL:
        return chroma
    out = np.empty((2, *size), np.int16)
    kernels.upsample(chroma, siting, out)
    return out


def _converted(luma, chroma, conversion):
    """Luma (H, W) and chroma (2, H, W) -> colours (H, W, 3)."""
    array = np.empty((*luma.shape, 3), np.uint8)
    kernels.convert(np.ascontiguousarray(luma), np.ascontiguousarray(chroma), *conversion[:3], array)
    return array


def _pack_exceptions(array, wrong, beside=()):
    """The pixels of a picture that are wrong: how many are right before each, and their colours.

    beside: integers that come before, modulo 256.
    """
    places = np.flatnonzero(wrong)
    if not places.size + np.size(beside):
        return b""
    gaps = (np.diff(places, prepend=-1) - 1).astype("<u4").view(np.uint8).reshape(-1, 4)
    colours = array.reshape(-1, 3)[places]
    return zlib.compress(
        np.asarray(beside).astype(np.uint8).tobytes() + gaps.T.tobytes() + colours.T.tobytes(), 9
    )


def _unpack_exceptions(packed, count, before=0):
    """Inverse of _pack_exceptions: places among so many pixels, colours, and as many bytes as come before."""
    most = before + 7 * (count // EXCEPTIONS_LIMIT + 1)
    data = np.frombuffer(inflate(packed, most) if packed else b"", np.uint8)
    if data.size < before or (data.size - before) % 7:
        raise ValueError("corrupt file: its exceptions make no sense")
    beside, data = data[:before], np.ascontiguousarray(data[before:].reshape(7, -1).T)
    gaps = np.ascontiguousarray(data[:, :4]).view("<u4")[:, 0].astype(np.int64)
    places = np.cumsum(gaps + 1) - 1
    if places.size and places[-1] >= count:
        raise ValueError("corrupt file: an exception is outside the picture")
    return places, data[:, 4:], beside
