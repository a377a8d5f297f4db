"""A second decoder of .nwf files, written from docs/format.md alone: numpy and integers, none of our modules.

It is there to be read beside the page and to show that the page tells enough; it is clear rather than fast.
WebP is read by Pillow.
    python tests/decoder.py                the tables of the page's example, of the files in tests/fixtures
"""

import hashlib
import json
import zlib
from collections import defaultdict
from io import BytesIO
from itertools import accumulate, count
from math import exp
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

FIXTURES = Path(__file__).parent / "fixtures"
SAMPLES = {"1": 1, "L": 1, "LA": 2, "P": 1, "RGB": 3, "RGBA": 4}
MODES = tuple(SAMPLES)
LUMA_ALONE = {6: "L", 7: "LA"}
CHANNELS_OF_WEBP = {"1": [1], "L": [1], "LA": [1, 3], "P": [1], "RGB": [0, 1, 2], "RGBA": [0, 1, 2, 3]}
METHODS = RAW, DEFLATE, FLOW, WEBP = "raw", "deflate", "flow", "WebP"
OPTIONS = "repeat hchnl nhidden nMixing simplePrior diffDetail HUE clamp heavy lifting size".split()
LATER_OPTIONS = {
    "prior": "paper",
    "width": 64,
    "blocks": 1,
    "components": 3,
    "ownLevels": 0,
    "ownWidth": 0,
    "ownBlocks": 0,
    "differences": False,
}


class Reader:
    """Bytes, taken from the front."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, n):
        assert self.at + n <= len(self.data)
        self.at += n
        return self.data[self.at - n : self.at]

    def number(self, n):
        return int.from_bytes(self.take(n), "big")

    def varint(self):
        value = 0
        for shift in range(0, 35, 7):
            byte = self.number(1)
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise AssertionError("a varint of more than five bytes")


def read_head(data):
    """The fields of a head, name -> (offset, bytes, value), and the offset of the stream."""
    reader, head = Reader(data), {}

    def field(name, read):
        start = reader.at
        value = read()
        head[name] = start, data[start : reader.at], value
        return value

    assert field("magic", lambda: reader.take(4)) == b"NWF\x02"
    kind = field("kind", lambda: reader.number(1))
    mode, method = mode_of(kind), METHODS[kind >> 3 & 3]
    assert kind & 7 < 6 or method == FLOW
    width, height = field("width", reader.varint), field("height", reader.varint)
    assert 1 <= width * height <= 2**27
    if kind >> 6 & 1:
        field("settings", lambda: (reader.varint(), reader.varint()))
    if method == FLOW:
        field("model", lambda: reader.take(8))
    if "settings" in head and head["settings"][2][1] & 64:
        field("moves", lambda: reader.take(reader.varint()))
    if "settings" in head and head["settings"][2][1] & 128:
        field("luma and chroma", lambda: reader.take(reader.varint()))
    if kind >> 5 & 1:
        field("metadata", lambda: reader.take(reader.varint()))
    if method == FLOW:
        for i in range(depth(height, width), 0, -1):
            if np.prod(halved(height, width, i)) >= 1024:
                field(f"level {i}", lambda: reader.number(4))
    if method != FLOW or mode in ("LA", "RGBA"):
        field("plane", lambda: reader.take(reader.varint()))
    if kind >> 7 and method in (FLOW, WEBP):
        field("values", lambda: reader.take(reader.varint()))
        field("low plane", lambda: reader.take(reader.varint()))
    checksum = zlib.crc32(data[: reader.at])
    assert field("checksum", lambda: reader.number(4)) == checksum
    return head, reader.at


def mode_of(kind):
    """The mode of a kind."""
    return LUMA_ALONE.get(kind & 7) or MODES[kind & 7]


def read_metadata(packed):
    """Tag -> bytes."""
    samples = (i / 1023 for i in range(1024))
    curve = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in samples]
    dictionary = bytes.fromhex("637572760000000000000400")
    dictionary += np.rint(65535 * np.array(curve)).astype(">u2").tobytes()
    reader, fields = Reader(zlib.decompressobj(zdict=dictionary).decompress(packed)), {}
    while reader.at < len(reader.data):
        tag = reader.take(1)
        fields[tag] = reader.take(reader.number(4))
    assert list(fields) == sorted(fields, key=b"pqtiegxdc".index)
    if b"q" in fields:
        steps = np.frombuffer(fields.pop(b"q"), np.uint8).reshape(-1, 3)
        fields[b"p"] = (steps.cumsum(0) % 256).astype(np.uint8).tobytes()
    return fields


def read_unmarked(plane, mode, height, width):
    """A plane of 8 bits a sample, whose method shows by its bytes."""
    method = WEBP if plane[:1] == b"\x2f" else DEFLATE
    if len(plane) == width * height * SAMPLES[mode]:
        method = RAW
    return read_plane(method, plane, mode, height, width)


def joined(high, low, values):
    """Samples of 16 bits."""
    known = range(2**16)
    if values:
        known = np.flatnonzero(np.unpackbits(np.frombuffer(zlib.decompress(values), np.uint8)))
    below = max((len(known) - 1).bit_length(), 8) - 8
    return np.array(known)[(high.astype(int) << below) + low]


def read_plane(method, plane, mode, height, width, colours=0, deep=False):
    """Samples, (height, width, samples of a pixel)."""
    samples, bits = SAMPLES[mode], 1 if mode == "1" else 8
    if deep:  # as a picture of twice as many samples of 8 bits
        rows, length = np.frombuffer(plane, np.uint8), 2 * width * samples
        if method == DEFLATE:
            rows = unfilter(zlib.decompress(plane), height, length, 2 * samples)
        pairs = rows.reshape(height, width, samples, 2)
        return pairs[..., 0].astype(int) << 8 | pairs[..., 1]
    if method == WEBP:
        return read_webp(plane, height, width)[:, :, CHANNELS_OF_WEBP[mode]] >> 8 - bits
    if method == DEFLATE and mode == "P":
        bits = next(b for b in (1, 2, 4, 8) if colours <= 2**b)
    length = (width * samples * bits + 7) // 8
    if method == DEFLATE:
        rows = unfilter(zlib.decompress(plane), height, length, max(samples * bits // 8, 1))
    else:
        rows = np.frombuffer(plane, np.uint8).reshape(height, length)
    parts = [rows >> shift & 2**bits - 1 for shift in range(8 - bits, -1, -bits)]
    return np.stack(parts, 2).reshape(height, -1)[:, : width * samples].reshape(height, width, samples)


def read_webp(plane, height, width):
    """Red, green, blue and alpha, (height, width, 4), by Pillow."""
    chunk = b"VP8L" + len(plane).to_bytes(4, "little") + plane + b"\0" * (len(plane) % 2)
    file = b"RIFF" + (4 + len(chunk)).to_bytes(4, "little") + b"WEBP" + chunk
    pixels = np.asarray(Image.open(BytesIO(file)).convert("RGBA"))
    assert plane[0] == 0x2F and pixels.shape == (height, width, 4)
    return pixels


def unfilter(data, height, length, step):
    """Undo PNG's filters (RFC 2083, section 6); step: from a byte to the one of the pixel to the left."""
    assert len(data) == height * (length + 1)
    rows = np.zeros((height + 1, step + length), int)
    for y in range(height):
        kind, *row = data[y * (length + 1) : (y + 1) * (length + 1)]
        for x, byte in enumerate(row, step):
            left, up, corner = (int(v) for v in (rows[y + 1, x - step], rows[y, x], rows[y, x - step]))
            paeth = min(left, up, corner, key=lambda v: abs(left + up - corner - v))
            rows[y + 1, x] = byte + (0, left, up, (left + up) // 2, paeth)[kind] & 255
    return rows[1:, step:]


def root_of_two(numerator):
    """floor(2^(numerator / 32))."""
    low, high = 0, 2 << numerator // 32
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if middle**32 <= 2**numerator else (low, middle)
    return low


_half = [round(2**31 / (1 + exp(24 - i / 64))) for i in range(1537)]
T = _half + [2**31 - t for t in _half[-2::-1]]
V = [root_of_two(29 * 32 - k) for k in range(513)]
U = [root_of_two(26 * 32 - (512 - k)) for k in range(513)]


def sigmoid(x):
    """S of the page."""
    x = min(max(x, 0), 48 * 2**29 - 1)
    c = x >> 23
    return T[c] + ((T[c + 1] - T[c]) * (x % 2**23) >> 23)


def shares_of(weights):
    """W of the page."""
    sums = [*accumulate(weights, initial=0)]
    return [(b << 16) // sums[-1] - (a << 16) // sums[-1] for a, b in zip(sums, sums[1:])]


class Stream:
    """Symbols under mixtures, which are Python's integers here. trace: what was read, for the example."""

    def __init__(self, data, nbins, precision):
        self.nbins, self.precision, self.trace = nbins, precision, []
        self.size = n = (data[0] >> 6) + 4
        self.state = int.from_bytes(data[:n], "big") % 2 ** (8 * n - 2)
        assert self.state >= 2 ** (22 if n == 4 else 8 * n - 10)
        self.words = np.frombuffer(data[n:], "<u4").tolist()[::-1]

    def refill(self):
        if self.state < 2**32:
            self.state = self.state << 32 | self.words.pop()

    def slot(self):
        self.refill()
        return self.state % 2**self.precision

    def advance(self, start, end):
        self.state = (self.state >> self.precision) * (end - start) + self.slot() - start

    def uniform(self, w):
        unit = 2 ** (self.precision - w)
        value = self.slot() // unit
        self.advance(value * unit, (value + 1) * unit)
        return value

    def mixture(self, weights, means, scales):
        shares = shares_of(weights)
        low = ((sum(s * m for s, m in zip(shares, means)) >> 16) + 32 >> 6) - self.nbins // 2
        speeds = [V[min(max(k, 0), 512)] for k in scales]

        def c(z):
            heights = (sigmoid((64 * z - 32 - m) * v + 24 * 2**29) for m, v in zip(means, speeds))
            mass = sum(s * h for s, h in zip(shares, heights)) >> 16
            return (mass * (2**self.precision - self.nbins - 2) >> 31) + z - low + 1

        slot, state, high = self.slot(), self.state, low + self.nbins
        if c(low) <= slot < c(high):
            z, end = low, high
            while end - z > 1:
                middle = (z + end) // 2
                z, end = (middle, end) if c(middle) <= slot else (z, middle)
            self.advance(c(z), c(z + 1))
            self.trace.append((state, shares, means, scales, low, slot, c(z), c(z + 1), z))
        elif slot < c(low):
            self.advance(0, c(low))
            z = low - 1 - self.distance()
        else:
            self.advance(c(high), 2**self.precision)
            z = high + self.distance()
        return z

    def logistic(self, count, scale, mean=0):
        """`count` symbols around a mean, of the usual settings."""
        usual = self.nbins, self.precision
        self.nbins, self.precision = 4096, 24
        symbols = [self.mixture([1], [64 * mean], [scale]) for _ in range(count)]
        self.nbins, self.precision = usual
        self.trace = self.trace[:-count]
        return symbols

    def corrections(self, scales, coefficients):
        """Scales of the eight classes, and coefficients; given: those of the group before."""
        kind = min(max(self.logistic(1, 192, 1)[0], 0), 4)
        if kind >= 3:
            scales, coefficients = 0 * scales, 0 * coefficients
        if 1 <= kind <= 3:
            scales = clamp(np.cumsum(self.logistic(8, 192)), 8)
        if kind == 1:
            coefficients = clamp(np.array(self.logistic(len(coefficients), 288)), 4096)
        return scales, coefficients

    def distance(self):
        length = self.uniform(5)
        lower = min(length, 16)
        return (1 << length | self.uniform(length - lower) << lower | self.uniform(lower)) - 1

    def maps(self, shape, weights, means, scales, first=0, adapting=None):
        """A group of (channels, rows, columns), from channel `first` on.

        Its mixtures have these axes behind K, or longer ones. adapting: an Adapting, where they adapt.
        """
        z = np.full(shape, self.flat, np.int64)
        channels = shape[0] if not self.luma_alone else int(first == 0)
        for y, x, c in np.ndindex(*shape[1:], channels):
            mixture = [f[:, c, y, x].tolist() for f in (weights, means, scales)]
            if adapting:
                mixture = adapting.moved(first, y, x, *mixture, shape[2])
            z[c, y, x] = self.mixture(*mixture)
            if adapting:
                adapting.learn(int(z[c, y, x]))
        return z

    def finish(self, seal):
        self.refill()
        assert not self.words and self.state == 2**32 + seal


def halved(h, w, times):
    for _ in range(times):
        h, w = h + 1 >> 1, w + 1 >> 1
    return h, w


def depth(height, width):
    return max((max(height, width) - 1).bit_length() - 1, 0)


def clamp(x, m):
    return np.clip(x, -m, m)


def column(values):
    return values.reshape(-1, 1, 1)


def extend(x, h, w, nothing=0):
    """Maps (channels, rows, columns), last row and column replicated; without samples they are `nothing`."""
    if x.size == 0:
        return np.full((len(x), h, w), nothing)
    return np.pad(x, ((0, 0), (0, h - x.shape[1]), (0, w - x.shape[2])), "edge")


def interleaved(ul, ur, dl, dr):
    (channels, h, w), down, right = ul.shape, dl.shape[1], ur.shape[2]
    image = np.zeros((channels, h + down, w + right), np.int64)
    image[:, ::2, ::2], image[:, ::2, 1::2], image[:, 1::2, ::2], image[:, 1::2, 1::2] = ul, ur, dl, dr
    return image


def filtered(taps, x):
    """Rows filtered, in units of both."""
    p = np.pad(x, ((0, 0), (0, 0), (len(taps) // 2,) * 2), "edge")
    return sum(tap * p[:, :, k : k + x.shape[2]] for k, tap in enumerate(taps))


def across(taps, x):
    """The same in units of x."""
    return filtered(taps, x) + 2**15 >> 16


def down(taps, x):
    return across(taps, x.swapaxes(1, 2)).swapaxes(1, 2)


class Model:
    """A frozen model: its tensors, and the options of parameter.json. Maps are (channels, rows, columns)."""

    def __init__(self, tensors, options):
        self.stored, self.options = tensors, options
        self.tensors = {name: np.asarray(t).astype(np.int64) for name, t in tensors.items()}
        self.levels = 1 + max((int(n.split(".")[2]) for n in tensors if n.startswith("pyramid.")), default=0)

    def identity(self):
        o = self.options
        shape = [2, *(o.get(name) for name in OPTIONS)]
        shape += [[n, o[n]] for n, default in LATER_OPTIONS.items() if o.get(n, default) != default]
        digest = hashlib.sha256(json.dumps(shape).encode())
        for name, t in sorted(self.stored.items()):
            digest.update(f"{name} {t.dtype} {t.shape}".encode())
            digest.update(t.astype(t.dtype.newbyteorder("<")).tobytes())
        return digest.digest()

    def moved(self, data):
        """The model with moves of biases."""
        stream, t, model = Stream(data, 4096, 24), 0, Model(self.stored, self.options)
        for name in sorted(n.removesuffix(".shift") for n in self.tensors if n.endswith(".shift")):
            b, e = (model.tensors[f"{name}.{part}"] for part in ("bias", "exponent"))
            (t,) = clamp(stream.logistic(1, 192, int(t)), 8)
            v = clamp(np.array(stream.logistic(len(b), 192 + 16 * int(t))), 256)
            b += v * (128 if ".out." in name else 8) << np.maximum(e, 0) >> np.maximum(-e, 0)
            assert (abs(b) < 2**24).all()
        stream.finish(0)
        return model

    def has(self, name):
        return name in self.tensors

    def sums(self, name, q):
        """floor(2^-e (sum W q + b))."""
        weight, bias, e = (self.tensors[f"{name}.{part}"] for part in ("weight", "bias", "exponent"))
        (_, _, rows, columns), (_, h, w) = weight.shape, q.shape
        q = np.pad(q, ((0, 0), (rows // 2,) * 2, (columns // 2,) * 2), "edge")
        total = column(bias)
        for y, x in np.ndindex(rows, columns):
            total = total + np.einsum("oi,ihw->ohw", weight[:, :, y, x], q[:, y : y + h, x : x + w])
        return total >> column(np.maximum(e, 0)) << column(np.maximum(-e, 0))

    def narrow(self, name, x, onto=0, low=0, high=255):
        s = column(self.tensors[f"{name}.shift"])
        return clamp(onto + self.sums(name, np.clip(2 * x + (1 << s) >> s + 1, low, high)), 32767)

    def wide(self, name, x, low, high, limit):
        return clamp(self.sums(name, np.clip(x, low, high)), limit)

    def network(self, name, x, limit):
        x = self.wide(f"{name}.first", x, -4096, 4096, 32767)
        for n in count():
            if not self.has(f"{name}.hidden.{n}.weight"):
                return clamp(self.sums(f"{name}.last", np.maximum(x, 0)), limit)
            x = self.wide(f"{name}.hidden.{n}", x, 0, 32767, 32767)

    def merge(self, bands, i):
        """The image of level i of its bands ul, ur, dl, dr."""
        name = f"pyramid.levels.{min(i, self.levels - 1)}"
        if self.options.get("lifting", "none") == "none":
            return self.couple(bands, f"{name}.networks")
        if self.options["lifting"] in ("linear", "wavelet"):
            return self.lift_both(bands, name)
        if self.options["lifting"] == "luma":
            luma = self.lift_both([band[:1] for band in bands], f"{name}.luma")
            ul, *others = (band[1:] for band in bands)
            means = (mean + 2 >> 2 for mean in interpolated(4 * ul))
            others = [band + mean[:, : band.shape[1], : band.shape[2]] for band, mean in zip(others, means)]
            return np.concatenate([luma, interleaved(ul, *others)])
        ul, ur, dl, dr = (band.swapaxes(1, 2) for band in bands)
        left, right = (self.lift(*halves, f"{name}.lifts") for halves in ((ul, dl), (ur, dr)))
        return self.lift(left.swapaxes(1, 2), right.swapaxes(1, 2), f"{name}.lifts")

    def couple(self, bands, name):
        (_, h, w), bands = bands[0].shape, list(bands)
        last = max((t for t in range(1000) if self.has(f"{name}.{t}.last.bias")), default=-1)
        for t in range(last, -1, -1):
            k = t % 4
            others = [extend(band, h, w, 128) - 128 for j, band in enumerate(bands) if j != k]
            shift = self.network(f"{name}.{t}", np.concatenate(others), 2**16)
            bands[k] = bands[k] - shift[:, : bands[k].shape[1], : bands[k].shape[2]]
        return interleaved(*bands)

    def lift_both(self, bands, name):
        """The image whose rows and columns are lifted at once."""
        (_, h, w), bands = bands[0].shape, list(bands)
        last = max(t for t in range(1000) if self.has(f"{name}.filters.{t}.taps"))
        for t in range(last, -1, -2):
            (p, a), (u, b) = (
                [self.tensors[f"{name}.filters.{n}.{part}"] for part in ("taps", "bias")] for n in (t - 1, t)
            )
            for band in 0, 2, 1, 3:
                x = [clamp(extend(each, h, w), 2**16) for each in bands]
                ul, ur, dl, dr = (256 * each for each in x)
                if band == 0:
                    y = across(u, ur - down(u, dr)) + down(u, dl) + (b >> 8)
                elif band == 1:
                    y, seen, n = across(p, ul) - down(u, dr) + (a >> 8), (0, 3), 1
                elif band == 2:
                    y, seen, n = down(p, ul) - across(u, dr) + (a >> 8), (0, 3, 1), 2
                else:
                    y, seen, n = across(p, dl - down(p, ul)) + down(p, ur) + (a >> 8), (0, 1, 2), 0
                if band and self.options["lifting"] == "wavelet":
                    network = f"{name}.networks.{3 * (t // 2) + n}"
                    y = y + self.network(network, np.concatenate([x[k] for k in seen]), 2**24)
                shift = clamp(y + 128 >> 8, 2**16)[:, : bands[band].shape[1], : bands[band].shape[2]]
                bands[band] = bands[band] + (shift if band else -shift)
        return interleaved(*bands)

    def lift(self, low, high, name):
        """The rows whose halves these are."""
        halves, (channels, h, w) = [low, high], low.shape
        last = max(t for t in range(1000) if self.has(f"{name}.{t}.taps"))
        for t in range(last, -1, -1):
            source, target = halves[t % 2], halves[1 - t % 2]
            if target.size == 0:
                continue
            if self.options["lifting"] == "haar":
                source = np.pad(source, ((0, 0), (0, 0), (0, w - source.shape[2])))
            v = clamp(extend(source, h, w), 2**16)
            taps, bias = (self.tensors[f"{name}.{t}.{part}"] for part in ("taps", "bias"))
            line = bias + filtered(taps, v)
            if self.has(f"{name}.{t}.network.last.bias"):
                line = line + (self.network(f"{name}.{t}.network", v, 2**28) << 4)
            shift = clamp(line + 2**15 >> 16, 2**16)[:, :, : target.shape[2]]
            halves[1 - t % 2] = target - shift if t % 2 else target + shift
        image = np.zeros((channels, h, w + halves[1].shape[2]), np.int64)
        image[:, :, ::2], image[:, :, 1::2] = halves
        return image

    def rgb(self, image):
        """(height, width, 3) bytes."""
        if self.options.get("HUE"):
            y, co, cg = image[0], image[1] - 128, image[2] - 128
            t = y - (cg >> 1)
            b = t - (co >> 1)
            image = np.stack([b + co, cg + t, b])
        return np.clip(image, 0, 255).astype(np.uint8).transpose(1, 2, 0)

    def top(self, stream, h, w):
        fields = (np.tile(self.tensors[f"top.{name}"], (h, w)) for name in ("weight", "mean", "scale"))
        return stream.maps((3, h, w), *fields)

    def details(self, stream, coarse, sizes, i):
        """The bands ur, dl, dr of level i, of these (height, width)."""
        if self.has("detail.level"):
            return self.details_by_band(stream, coarse, sizes, i, "detail")
        if self.has("detail.levels.0.level"):
            last = max(n for n in range(20) if self.has(f"detail.levels.{n}.level"))
            return self.details_by_band(stream, coarse, sizes, i, f"detail.levels.{min(i, last)}")
        means, scales = (self.constants_or_network(f"detail.{name}", coarse, i) for name in ("mean", "scale"))
        fields = ((m[None], s[None]) for m, s in zip(np.split(means, 3), np.split(scales, 3)))
        bands = [stream.maps((3, *size), np.ones_like(m), m, s) for size, (m, s) in zip(sizes, fields)]
        for band, others in zip(bands, stream.smooth or ()):
            band[1:] = others
        return bands

    def constants_or_network(self, name, coarse, i):
        if not self.has(f"{name}.level0"):
            return self.network(name, coarse - 128, 2**24)
        values = self.tensors[f"{name}.level{i}" if self.has(f"{name}.level1") else f"{name}.level0"]
        return np.broadcast_to(values, (9, *coarse.shape[1:]))

    def details_by_band(self, stream, coarse, sizes, i, prior):
        (_, height, width), entering = coarse.shape, (-16384, 16383, 2**20)
        known = samples(coarse)
        trunk = companded(self.wide(f"{prior}.enter", known, *entering))
        trunk = self.blocks(f"{prior}.trunk", trunk + column(self.tensors[f"{prior}.level"][min(i, 4)]))
        corrected = stream.corrected and height * width >= 4096
        errors, sets = np.zeros((3, *coarse.shape), int), {}
        adapting = None
        if stream.adaptive and height * width >= 256:
            adapting = Adapting(height, width, stream.nbins if stream.weighing else 0, stream.nearby)
        bands = []
        means = 3 * [0 * coarse]
        if self.options.get("differences"):
            lifting, means = self.options.get("lifting", "none"), interpolated(samples(coarse))
            if lifting != "none":
                left = [mean - 4 * (mean + 2 >> 2) if lifting == "luma" else 0 * mean for mean in means]
                means = [np.concatenate([0 * part[:1], part[1:]]) - 512 for part in left]
        for size, name, near in zip(sizes, (f"{prior}.bands.{band}" for band in range(3)), means):
            base = self.wide(f"{name}.base", known, *entering)
            entered = self.wide(f"{name}.enter", np.concatenate([known, base + 32 >> 6]), *entering)
            f = self.narrow(f"{name}.trunk", trunk, onto=companded(entered))
            g = np.split(self.narrow(f"{name}.hidden", self.blocks(f"{name}.blocks", f)), 3)
            band = np.zeros((3, *size), np.int64)
            if adapting:
                adapting.begin(len(bands))
            for top in range(0, height, 64):
                rows = slice(top, top + 64)
                for c in range(3):
                    before = counted(band[:c], near[:c])[:, rows]
                    fields = self.channel(name, c, base[:, rows], g[c][:, rows], before, near[:, rows])
                    part = band[c : c + 1, rows]
                    corrigible = corrected and part.size and not (c and stream.luma_alone)
                    if corrigible:
                        fields = [f[:, 0, : part.shape[1], : part.shape[2]] for f in fields]
                        m, s = (share(fields[0], f) for f in fields[1:])
                        x = features([coarse, *bands, band], errors, c, top, m)
                        if top == 0:
                            sets[c] = np.zeros(8, int), np.zeros(len(x), int)
                        if top % (max(16384 // (64 * width), 1) * 64) == 0:
                            sets[c] = stream.corrections(*sets[c])
                        fields = [f[:, None] for f in corrected_fields(fields, s, x, *sets[c])]
                    if adapting:
                        adapting.top = top
                    part[:] = stream.maps(part.shape, *fields, first=c, adapting=adapting)
                    if c and stream.smooth:
                        part[:] = stream.smooth[len(bands)][c - 1, rows]
                    if corrigible:
                        rows_of_m, columns = m.shape
                        error = clamp(64 * part[0] - m, 2**20)
                        errors[len(bands), c, top : top + rows_of_m, :columns] = error
            bands.append(band)
            known = np.concatenate([known, counted(band, near)])
        return bands

    def channel(self, name, c, base, g, before, near):
        """Weights, means and scales of a channel, (K, 1, rows, columns), given those before it."""
        m, o = base[c], g
        if c:
            r = clamp(64 * before - base[:c], 2**20)
            m = m + self.wide(f"{name}.linear.{c - 1}", r, -(2**20), 2**20, 2**20)[0]
            r = np.concatenate([companded(r), abs(companded(r))])
            o = self.narrow(f"{name}.beside.{c - 1}", r, onto=g, low=-2047, high=2047)
        m = m + 64 * near[c]
        logits, offsets, octaves = np.split(self.narrow(f"{name}.out.{c}", o), 3)
        scales, powers = np.clip((octaves + 4 >> 3) + 192, 0, 512), np.array(U)
        means = ((m << 16) + offsets * powers[scales] + 2**31 >> 17) + 1 >> 1
        weights = powers[512 - np.minimum(logits.max(0) - logits + 4 >> 3, 512)] >> 10
        return weights[:, None], means[:, None], scales[:, None]

    def blocks(self, name, h):
        for n in count():
            if not self.has(f"{name}.{n}.wide.weight"):
                return h
            h = self.narrow(f"{name}.{n}.last", self.narrow(f"{name}.{n}.wide", h), onto=h)


class Adapting:
    """The mixtures of a level, moved from symbol to symbol.

    window: nbins if they are weighed, or 0; nearby: whether there is what is learned nearby.
    """

    def __init__(self, height, width, window=0, nearby=False):
        self.window, self.nearby = window, nearby
        # two rows above, one below, and two columns on both sides
        self.u = np.zeros((3, 3, height + 3, width + 4), int)
        self.top = 0

    def begin(self, band):
        self.band, (_, channels, height, width) = band, self.u.shape
        self.t = np.full((channels, height, width), 22)
        first = ((-4000, 6000), (6000, -4600), (-2600, -3000))[band]
        self.a = [[*first] + [0] * (4 + c + band) for c in range(channels)]
        self.n = [[64] * 8 for _ in range(channels)]
        self.total = [[64 * 22] * 8 for _ in range(channels)]
        self.seen = [0] * channels
        self.g, self.h = [2**16] * channels, [2**16] * channels
        self.logits, self.widths = defaultdict(int), defaultdict(int)
        self.evidence = defaultdict(int)
        self.trust = [[3 * 2**23] * 3 for _ in range(channels)]
        self.learned = [None] * channels

    def moved(self, c, y, x, weights, means, scales, width):
        if x == 0:
            if self.nearby:
                self.begin_row(c, width)
            usual = steps((sum(self.total[c]) << 12) // sum(self.n[c]))
            averages = ((total << 12) // n for total, n in zip(self.total[c], self.n[c]))
            self.shifts = [
                clamp((1 if self.nearby else 3) * (steps(average) - usual) >> 2, 48) for average in averages
            ]
            self.gain = min(max(256 * self.g[c] // self.h[c], 0), 256)
            self.rate = 12 + 40960 // (self.seen[c] + 1024)
        self.c, (row, column) = c, (self.top + y + 2, x + 2)
        around = [(0, -1), (-1, 0), (-1, -1), (-1, 1), (0, -2), (-2, 0)]
        u = [self.u[self.band, c, row + i, column + j] for i, j in around]
        u += [self.u[self.band, b, row, column] for b in range(c)]
        u += [self.u[b, c, row, column] for b in range(self.band)]
        self.x, self.at = [int(v) for v in u], (row, column)
        sizes = [int(self.t[c, row + i, column + j]) for i, j in around]
        size = 2 * sum(sizes[:2]) + sum(sizes[2:])
        self.j = sum(size >= limit for limit in (64, 104, 144, 176, 232, 304, 432))
        scales = [min(max(s, 0), 512) for s in scales]
        self.m, self.s = (int(share(*map(column_of, (weights, f)))[0]) for f in (means, scales))
        total = sum(a * u for a, u in zip(self.a[c], self.x))
        moved = total * self.gain + 128 >> 8
        self.p, self.q = total + 2**15 >> 16, moved + 2**15 >> 16
        self.first, added = self.q, 0
        if self.nearby:
            further, added = self.look_nearby(c, x)
            moved += further
            self.q = moved + 2**15 >> 16
        step, shift = int(moved * U[self.s] + 2**29 >> 30), int(self.shifts[self.j])
        means = [int(clamp(m + step, 2**30)) for m in means]
        scales = [s + shift + added for s in scales]
        if self.window:
            self.o = min(max(self.s + shift - 144 >> 5, 0), 7)
            weights = self.weighed(c, *self.at, shares_of(weights))
            scales = [s + (self.widths[c, self.o, k] + 2**17 >> 18) for k, s in enumerate(scales)]
        self.mixture = weights, means, [min(max(s, 0), 512) for s in scales]
        return weights, means, scales

    def begin_row(self, c, width):
        if self.learned[c] is None:
            self.learned[c] = [[0] * 27 for _ in range(width)]
        row = self.learned[c]
        for x in reversed(range(width - 1)):
            row[x] = [32 * right + 32 * here + 32 >> 6 for right, here in zip(row[x + 1], row[x])]

    def look_nearby(self, c, x):
        row, (y, column) = self.learned[c], self.at
        beside = row[max(x - 1, 0)]
        row[x] = self.local = [36 * left + 27 * here + 32 >> 6 for left, here in zip(beside, row[x])]
        around = [
            int(self.u[self.band, b, y + i, column + j])
            for b in range(c)
            for i, j in [(0, -1), (-1, 0), (0, 1), (1, 0)]
        ]
        self.further = self.x + [0] * (16 - len(self.x)) + around
        said = sum(a * u for a, u in zip(self.local, self.further))
        self.said = said + 2**15 >> 16
        gain = min(max(256 * (2**9 + self.local[25]) // (2**11 + self.local[26]), 0), 256)
        return said * gain + 128 >> 8, self.local[24] + 2**11 >> 12

    def learn_nearby(self, e):
        rest = e - self.first
        pull = clamp(rest - self.said, 64)
        for f, u in enumerate(self.further):
            self.local[f] = int(clamp(self.local[f] + 2 * pull * u, 2**20))
        said = clamp(self.said, 64)
        self.local[25] += int(said * clamp(rest, 64))
        self.local[26] += int(said * said)

    def weighed(self, c, row, column, weights):
        """W of the page, from W as they were."""
        where = [[(0, -1)], [(-1, 0)], [(-1, -1), (-1, 1), (0, -2), (-2, 0)]]
        factors, self.near = [], []
        for k in range(len(weights)):
            near = [sum(self.evidence[c, row + i, column + j, k] for i, j in places) for places in where]
            heard = sum(trust * x for trust, x in zip(self.trust[c], near))
            h = int(clamp(2**12 * self.logits[c, self.o, k] + heard + 2**23 >> 24, 2**11))
            factors.append(256 + h % 256 << (h >> 8) + 8)
            self.near.append(near)
        sums = list(accumulate(w * f for w, f in zip(weights, factors)))
        ends = [*(s * (2**60 // sums[-1]) >> 44 for s in sums[:-1]), 2**16]
        return [b - a for a, b in zip([0, *ends], ends)]

    def weigh(self, z):
        """Learn of a symbol what `weighed` is about."""
        c, o, (weights, means, scales) = self.c, self.o, self.mixture
        low = ((sum(w * m for w, m in zip(weights, means)) >> 16) + 32 >> 6) - self.window // 2
        z = min(max(z, low - 1), low + self.window)
        masses, pulls = [], []
        for m, s in zip(means, scales):
            a, b = (
                min(max((64 * z + side - m) * V[s] + 24 * 2**29, 0), 48 * 2**29 - 1) for side in (-32, 32)
            )
            left, right = sigmoid(a), sigmoid(b)
            slopes = [(x - 24 * 2**29) * (y * (2**31 - y) >> 31) for x, y in ((a, left), (b, right))]
            masses.append(right - left)
            pulls.append(slopes[0] - slopes[1] >> 29)
        p = max(sum(w * q >> 16 for w, q in zip(weights, masses)), 2**7)
        turns = [((w * q >> 16) * (2**60 // p) >> 44) - w for w, q in zip(weights, masses)]
        total = 0
        for k, (w, q, d) in enumerate(zip(weights, masses, turns)):
            pull = int(clamp(w * pulls[k] >> 16, 4 * p)) * (2**60 // p) >> 44
            self.evidence[(c, *self.at, k)] = int(clamp(steps(q + 2**7, 16) - steps(p, 16), 48))
            self.logits[c, o, k] = int(clamp(self.logits[c, o, k] + d, 2**23))
            self.widths[c, o, k] = int(clamp(self.widths[c, o, k] + pull, 2**24))
            total += pull
        if self.nearby:
            self.local[24] += int(clamp(total, 2**18) >> 3)
        for f in range(3):
            turn = sum(d * near[f] for d, near in zip(turns, self.near)) >> 1
            self.trust[c][f] = int(clamp(self.trust[c][f] + turn, 2**28))

    def learn(self, z):
        c = self.c
        e = clamp(64 * z - self.m, 2**20) * V[self.s] + 2**24 >> 25
        self.u[(self.band, c, *self.at)] = u = clamp(e, 64)
        self.t[(c, *self.at)] = t = min(abs(e - self.q), 96)
        self.n[c][self.j] += 1
        self.total[c][self.j] += t
        if self.n[c][self.j] == 8192:
            self.n[c][self.j] >>= 1
            self.total[c][self.j] >>= 1
        p, r = clamp(self.p, 64), clamp(e - self.p, 64)
        self.g[c] += p * u
        self.h[c] += p * p
        self.a[c] = [clamp(a + (r * x * self.rate + 128 >> 8), 2**20) for a, x in zip(self.a[c], self.x)]
        self.seen[c] += 1
        if self.nearby:
            self.learn_nearby(e)
        if self.window:
            self.weigh(z)


def steps(x, parts=32):
    """The logarithm of x to the base 2, in 32nds or other parts, with lines between powers of two."""
    x = max(int(x), 1)
    octave = x.bit_length() - 1
    return parts * octave + ((x - 2**octave) * parts >> octave)


def column_of(values):
    return np.array(values)[:, None]


def share(weights, values):
    """The mean of values by weight, as the page has it."""
    sums = np.concatenate([np.zeros_like(weights[:1]), np.cumsum(weights, 0)])
    shares = np.diff((sums << 16) // sums[-1], axis=0)
    return (shares * values).sum(0) >> 16


def features(bands, errors, c, top, m):
    """X of the page, for the strip from row `top` on, of means m: (features, rows, columns)."""
    _, height, width = bands[0].shape
    rows, columns = m.shape

    def at(band, y, x):
        band = extend(128 + clamp(band[c : c + 1] - 128, 2**14), height, width, 128)[0]
        ys, xs = np.arange(top + y, top + y + rows), np.arange(x, x + columns)
        return 64 * band[np.clip(ys, 0, height - 1)][:, np.clip(xs, 0, width - 1)]

    before = len(bands) - 2
    middle = at(bands[0], 0, 0)
    found = [at(bands[0], y, x) - middle for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x]
    found.append(middle - m)
    for band in bands[1:-1]:
        found += [at(band, y, x) - m for y, x in ((0, 0), (-1, 0), (0, -1), (0, 1), (1, 0))]
    here = slice(top, top + rows), slice(columns)
    found += [errors[(before, b, *here)] for b in range(c)] + [errors[(b, c, *here)] for b in range(before)]
    return clamp(np.array([*found, np.full_like(m, 64)]), 2**20)


def corrected_fields(fields, s, x, scales, coefficients):
    weights, means, old = fields
    new = old + 4 * scales[np.clip(s - 144 >> 5, 0, 7)]
    if coefficients.any():
        means = clamp(means + (np.einsum("f,fyx->yx", coefficients, x) + 32 >> 6), 2**30)
    return weights, means, new


def samples(v):
    return 4 * clamp(v - 128, 4096)


def interpolated(x):
    """What samples beside, below, and beside and below, are near: means of two, of two and of four."""
    rows, columns = (
        extend(x, x.shape[1] + 1, x.shape[2])[:, 1:],
        extend(x, x.shape[1], x.shape[2] + 1)[..., 1:],
    )
    corners = extend(rows, x.shape[1], x.shape[2] + 1)[..., 1:]
    return x + columns >> 1, x + rows >> 1, x + rows + columns + corners >> 2


def smooth(coarse, sizes, lifting):
    """Chroma of the details between that of a coarse image."""
    means = (mean + 2 >> 2 for mean in interpolated(4 * coarse[1:]))
    return [mean[:, :h, :w] * (lifting == "none") for mean, (h, w) in zip(means, sizes)]


UNITS = (2**16, 2**16, 128, 128), (10000, 13584, 156, 137)


class Made:
    """Luma and chroma, of the block of a head."""

    def __init__(self, block):
        self.conversion, self.by_rows, siting = block[0] & 3, block[0] >> 2 & 1, block[0] >> 3 & 7
        self.siting, self.odd = min(siting, 3), (max(siting - 3, 0) & 1, max(siting - 3, 0) >> 1)
        self.steps = [-1 if block[0] >> bit & 1 else 1 for bit in (6, 7)]
        self.rest = zlib.decompress(block[1:]) if block[1:] else b""

    def samples(self, image):
        *_, n1, n2 = UNITS[self.conversion]
        y, p1, p2 = image
        c2 = 128 - p2
        return np.clip([y, c2 - (p1 - 128) + n1, c2 + n2], 0, 255)

    def cropped(self, c, h, w):
        """Chroma of pixels; c: of the image, others beside them in the block."""
        if self.siting < 3:
            return self.upsampled(c[::2, ::2] if self.siting else c, h, w)
        beside = [(1 - odd, 1 if odd else (n + 1) % 2) for n, odd in zip((h, w), self.odd)]
        c = np.pad(c[::2, ::2], beside, "edge")
        (above, below), (left, right) = beside
        for i, j in np.ndindex(c.shape):
            if not (above <= i < len(c) - below and left <= j < len(c[0]) - right):
                c[i, j], self.rest = c[i, j] + self.rest[0] & 255, self.rest[1:]
        y, x = (2 - odd for odd in self.odd)
        return self.upsampled(c, y + h, x + w)[y:, x:]

    def upsampled(self, c, h, w):
        """Chroma of pixels; c: its samples."""
        if self.siting == 0:
            return c
        out = np.zeros((h, w), int)
        down, right = (n - 1 for n in c.shape)
        for y, x in np.ndindex(h, w):
            i, j = y >> 1, x >> 1
            if self.siting == 1:
                k, m = min(i + y % 2, down), min(j + x % 2, right)
                out[y, x] = c[i, j] + c[i, m] + c[k, j] + c[k, m] + 2 >> 2
            else:
                k, m = min(max(i - 1 + 2 * (y % 2), 0), down), min(max(j - 1 + 2 * (x % 2), 0), right)
                half = 8 - (y if self.by_rows else x) % 2
                out[y, x] = 9 * c[i, j] + 3 * c[i, m] + 3 * c[k, j] + c[k, m] + half >> 4
        return out

    def colours(self, y, c1, c2):
        u, f, n1, n2 = UNITS[self.conversion]
        c1, c2 = c1 - n1, c2 - n2
        if self.conversion == 0:
            r, b = (a * c + 2**15 >> 16 << 16 for a, c in ((91881, c2), (116130, c1)))
            g = 2**15 - 22554 * c1 - 46802 * c2
        else:
            r, b = 18215 * c2, 22179 * c1
            g = -1940 * (b // u) - 5090 * (r // u)
        rgb = np.stack([(f * y + o) // u for o in (r, g, b)], 2)
        return np.clip(rgb, 0, 255).astype(np.uint8)

    def turned(self, rgb):
        return np.ascontiguousarray(rgb[:: self.steps[0], :: self.steps[1]])

    def picture(self, image, level):
        y, *chroma = self.samples(image)
        if level:
            return self.turned(self.colours(y, *chroma))
        rgb = self.colours(y, *(self.cropped(c, *y.shape) for c in chroma))
        columns = np.frombuffer(self.rest, np.uint8).reshape(7, -1).astype(int)
        at = (columns[:4].T @ [1, 2**8, 2**16, 2**24] + 1).cumsum() - 1
        rgb.reshape(-1, 3)[at] = columns[4:].T
        return self.turned(rgb)


def counted(band, near):
    """Samples of a band from what they are near, which is as large as the coarse image."""
    r = clamp(samples(band) - near[:, : band.shape[1], : band.shape[2]], 16384)
    return extend(r, *near.shape[1:])


def companded(u):
    a = abs(u) + 256
    n = np.frexp(a)[1] - 9
    return np.sign(u) * (64 * (n - 1) + (a * 128 + (1 << n + 8) >> n + 9))


def decode(data, model=None):
    """The pixels (height, width, samples) of a file, its head, metadata and stream."""
    head, at = read_head(data)
    kind, width, height = (head[name][2] for name in ("kind", "width", "height"))
    mode, method = mode_of(kind), METHODS[kind >> 3 & 3]
    _, _, plane = head.get("plane", (0, b"", b""))
    metadata = read_metadata(head["metadata"][2]) if "metadata" in head else {}
    if method != FLOW:
        assert at == len(data)
        colours = len(metadata.get(b"p", b"")) // 3
        deep = kind >> 7 and method != WEBP
        pixels = read_plane(method, plane, mode, height, width, colours, deep)
        return whole(pixels, mode, head), head, metadata, None
    assert head["model"][2] == model.identity()[:8]
    nbins, precision = head["settings"][2] if "settings" in head else (4096, 24)
    corrected, adaptive, weighing, nearby = (bool(precision & flag) for flag in (32, 256, 512, 1024))
    precision %= 32
    made = Made(head["luma and chroma"][2]) if "luma and chroma" in head else None
    if "moves" in head:
        model = model.moved(head["moves"][2])
    stream = Stream(data[at:], nbins, precision)
    stream.luma_alone, stream.flat = kind & 7 in LUMA_ALONE, 128
    stream.corrected, stream.adaptive = corrected, adaptive
    stream.weighing, stream.nearby = weighing, nearby
    stream.smooth = None
    levels = depth(height, width)
    image = model.top(stream, *halved(height, width, levels))
    if model.options.get("lifting", "none") != "none":
        stream.flat = 0
    for i in reversed(range(levels)):
        h, w = halved(height, width, i)
        sizes = (h + 1 >> 1, w >> 1), (h >> 1, w + 1 >> 1), (h >> 1, w >> 1)
        if i == 0 and made and made.siting:
            stream.luma_alone = True
            stream.smooth = smooth(image, sizes, model.options.get("lifting", "none"))
        image = model.merge([image, *model.details(stream, image, sizes, i)], i)
        if f"level {i}" in head:
            rgb = made.picture(image, i) if made else model.rgb(image)
            assert zlib.crc32(rgb.tobytes()) == head[f"level {i}"][2]
    pixels = made.picture(image, 0) if made else model.rgb(image)
    stream.finish(zlib.crc32(pixels.tobytes(), head["checksum"][2]))
    if mode in ("L", "LA"):
        pixels = pixels[:, :, :1]
    if mode in ("LA", "RGBA"):
        pixels = np.concatenate([pixels, read_unmarked(plane, "L", height, width)], 2)
    return whole(pixels, mode, head), head, metadata, stream


def whole(pixels, mode, head):
    """Pixels with their low bytes, if they have some."""
    if "values" not in head:
        return pixels
    low = read_unmarked(head["low plane"][2], mode, *pixels.shape[:2])
    return joined(pixels, low, head["values"][2])


def open_model(folder):
    options = json.loads((folder / "parameter.json").read_text())
    return Model(load_file(folder / "frozen.safetensors"), options)


def example():
    """The rows of the tables in the page's example."""
    rows = []

    def row(*cells):
        rows.append(f"| {' | '.join(map(str, cells))} |")

    def meaning(name, v):
        if name == "kind":
            return f"mode {mode_of(v)}, method {METHODS[v >> 3 & 3]}"
        if name in ("width", "height"):
            return v
        texts = {"magic": "NWF, version 2", "model": "the identity begins so"}
        return texts.get(name, "CRC-32 of all before" if name == "checksum" else f"{len(v)} bytes")

    for name in ("raw", "flow"):
        data = (FIXTURES / f"{name}.nwf").read_bytes()
        _, head, _, stream = decode(data, open_model(FIXTURES))
        for field, (at, part, v) in head.items():
            row(at, f"`{part.hex(' ')}`", field, meaning(field, v))
    _, at = read_head(data)
    first = Stream(data[at:], 4096, 24)
    row(at, f"`{data[at : at + first.size].hex(' ')}`", "first state", first.state)
    for n in range(2):
        start = at + first.size + 4 * n
        row(start, f"`{data[start : start + 4].hex(' ')}`", f"word {n}", first.words[-1 - n])
    for c, (state, *fields) in enumerate(stream.trace[:3]):
        cells = (", ".join(map(str, f)) if isinstance(f, list) else f for f in fields)
        row(c, state, *cells)
    return rows


if __name__ == "__main__":
    print("\n".join(example()))
