"""The .nwf file: a picture <-> bytes. docs/format.md is its definition.

    magic | kind | width | height | [settings] | [model] | [moves] | [luma and chroma] | [metadata]
    | level checksums | [plane] | checksum | stream

All before the stream is the head. A photograph goes through the flow into the stream, its alpha channel
into the plane; a picture for which deflate, WebP or no compression at all is smaller is a plane as a whole.
"""

import math
import zlib
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from flow.codec import ycc
from flow.codec.deep import Deep, joined, parted, unpack_plane
from flow.codec.pictures import attach, colours, pack_metadata, unpack_metadata
from flow.codec.planes import (
    CHANNELS,
    DEFAULT_EFFORT,
    DEFLATE,
    FLOW,
    QUICK,
    RAW,
    WEBP,
    may_deflate_below,
    pack_planes,
    searched,
    smallest_plane,
    subsample,
    unmarked_plane,
    unpack_deflate,
    unpack_raw,
    unpack_webp,
)
from flow.codec.stream import (
    DEFAULT,
    Settings,
    can_adapt,
    can_be_planes,
    can_correct,
    decode_levels,
    encode,
    has_luma_alone,
    pixels,
)
from flow.codec.tuning import count_steps, learn, tuned
from flow.pyramid import finest
from source.distribution import drawing
from source.rans import Decoder
from utils.arithmetic.crew import crew, submit
from utils.arithmetic.polyphase import depth, level_sizes
from utils.data.images import MAX_PIXELS

MAGIC = b"NWF\x02"
MODES = tuple(CHANNELS)
# Grey whose stream holds luma alone; beside the numbers of MODES.
LUMA = {6: "L", 7: "LA"}
HAS_METADATA, HAS_SETTINGS, IS_DEEP = 1 << 5, 1 << 6, 1 << 7
# Beside the precision of the probabilities: the stream has corrections; the model's biases are moved; the
# picture is made of luma and chroma; mixtures adapt; weigh their components; and learn nearby.
CORRECTED, TUNED, MADE = 1 << 5, 1 << 6, 1 << 7
ADAPTIVE, WEIGHING, NEARBY = 1 << 8, 1 << 9, 1 << 10
IDENTITY_BYTES = 8
# Where more than one byte of so many is for exceptions, the picture is tried without its luma and chroma.
EXCEPTIONAL = 10
# A model is not tuned to a picture for which another method is smaller than its stream by more than this.
WORTH_TUNING = 1.1
# What a stream may promise for each of its bytes, lest a few bytes claim memory and hours: as deflate has it.
VALUES_PER_BYTE = 1032
# Coarse images of so many pixels have a checksum, which is then less than a percent of what it guards.
CHECKED_PIXELS = 1 << 10
# Added to what a cut stream lacks: as far from it as no means are.
OTHER_GUESS = 1 << 10


class Corrupt(ValueError):
    """A file that is not as it was written; picture: what its sound levels show, if asked for, or None."""

    picture = None


class Head(NamedTuple):
    """What stands before the stream, which begins at `end`.

    moves: of the model's biases, see flow/codec/tuning.py. form, exceptions: of a picture made of luma and
    chroma, see flow/codec/ycc.py; None and none otherwise. level_checksums: level -> that of its image.
    deep: whether samples have 16 bits. low: of these, unless the plane has them whole, the values that occur
    and the plane of what is below 8 bits.
    """

    mode: str
    method: int
    size: tuple
    settings: Settings
    model: str
    moves: bytes
    form: ycc.Form | None
    exceptions: bytes
    metadata: bytes
    level_checksums: dict
    plane: bytes
    deep: bool
    low: tuple
    checksum: int
    end: int


def pack(
    picture,
    model=None,
    identity="",
    settings=DEFAULT,
    effort=DEFAULT_EFFORT,
    progress=None,
    learned=None,
    undo=True,
):
    """A picture, as flow.codec.pictures reads them -> the bytes of the smallest .nwf file. Inverse: unpack.

    model, identity: frozen, and the hash of its integers in hex; without them the flow is no choice.
    effort: 1 .. 9: how much to adapt to the picture: at 1 nothing; from 2 on with corrections, looked for at
    twice as many positions with each; from 7 on the model is tuned to it, about a minute a megapixel at 9,
    half of that with each below. Above 5, WebP is searched for where it is not far from the smallest.
    progress: called with how many of the flow's values (three for each pixel) are done since: coded,
    or, where the model may be tuned, seen for that, which takes most of the time.
    learned: gives the model in real numbers; without it, the highest efforts do not tune it to the picture.
    undo: look for the luma and chroma that the picture was made of, see flow/codec/ycc.py.
    """
    _check_size(*picture.size)
    metadata = pack_metadata(picture)
    low, deep = (), picture if isinstance(picture, Deep) else None
    if deep:
        picture, low, values = parted(deep)
        low = values, smallest_plane(low, effort)
    with crew():
        # beside the flow, as they take a part of its time
        planes, whole = submit(pack_planes, picture), submit(deep.planes, QUICK) if deep else None
        steps, flows, below = 0, [], sum(map(len, low))
        if model is not None and picture.mode not in ("1", "P"):
            found = _found(picture, model, effort) if undo and not low else None
            steps = count_steps(model, picture.size, effort) if learned else 0
            alpha = _alpha_plane(picture, effort)
            pack_flow = partial(
                _pack_flow, picture, metadata, model, identity, settings, effort, low, alpha, found=found
            )
            flows.append(pack_flow(None if steps else progress))
            if found and EXCEPTIONAL * len(found.exceptions) > sum(map(len, flows[0])):
                flows.append(pack_flow(found=None))
        planes = {m: plane for m, plane in planes.result().items() if m == WEBP or not low}
        least = min(map(len, planes.values()), default=math.inf)
        if steps and sum(map(len, flows[0])) - below < WORTH_TUNING * least:
            halved = bool(found and found.form.halved)
            (image,) = _seen(picture, model, found)
            if moves := learn(model, learned(), image, steps, progress, halved):
                flows.append(pack_flow(moves=moves))
        files = [head + stream for head, stream in flows if plausible(picture.size, len(stream))]
        smallest = min([least, *(len(file) - below for file in files)])
        if deep:
            look = whole.result()
            whole = deep.planes() if may_deflate_below(look, smallest + below) else look
            smallest = min(smallest, *(len(plane) - below for plane in whole.values()))
            files = [_head(deep, method, metadata, plane=plane) for method, plane in whole.items()] + files
        for method, plane in searched(picture, planes, smallest, effort).items():
            files.append(_head(picture, method, metadata, plane=plane, low=low))
    return min(files, key=len)


def unpack(data, model=None, identity="", levels=0, partial=False, progress=None):
    """The bytes of a .nwf file -> its picture. Inverse: pack.

    model, identity: as for pack; needed if the flow made the file.
    levels: leave out so many of the finest levels: the picture is the coarse band below them, for which the
    first part is enough, and a quarter of the work and memory with each of them.
    partial: decode a file that was cut, with the prior's means in place of what it lacks.
    progress: called with how many of the flow's values (three for each pixel) were read since.
    Raises ValueError for anything but the exact bytes that pack wrote; but with levels or partial, what lies
    behind the last level checksum in use goes unchecked. With partial, Corrupt has what is sound.
    """
    head = read_head(data)
    most = depth(*head.size)
    if not 0 <= levels <= most:
        raise ValueError(f"{levels} levels to leave out: this picture has {most}")
    info = unpack_metadata(head.metadata, head.mode)
    if head.method == FLOW:
        stream = data[head.end :]
        try:
            picture = _unpack_flow(head, stream, model, identity, levels, partial, progress)
        except Corrupt as error:
            if error.picture:
                error.picture = _completed(error.picture, head, info, levels, partial)
            raise
    elif len(data) > head.end:
        raise ValueError("corrupt file: it does not end where it should")
    else:
        count = len(info.get("palette", b"")) // 3
        picture = _picture_of(head, count, levels)
    return _completed(picture, head, info, levels, partial)


def _completed(picture, head, info, levels, partial):
    """The picture of a plane or stream with what its head has besides: the rest of 16 bits, metadata."""
    if head.low:
        values, low = head.low
        low = None if levels else unmarked_plane(low, head.mode, head.size)
        picture = joined(picture, low, values, partial)
    if head.deep and levels:
        info.pop("transparency", None)  # a value of 16 bits, and picture has 8
    attach(picture, info)
    return picture.image() if isinstance(picture, Deep) else picture


def read_head(data):
    """The Head at the beginning of a file.

    Raises CutHead if the data end before it does, ValueError if they cannot be a file's.
    """
    if len(data) < len(MAGIC) and MAGIC.startswith(data):
        raise CutHead("the file is cut within its head", len(data) + 1)
    if data[:3] != MAGIC[:3]:
        raise ValueError("not a .nwf file")
    if data[3:4] != MAGIC[3:]:
        raise ValueError(f"a .nwf file of version {data[3:4].hex() or 'none'}: this program reads 02")
    reader = _Reader(data, len(MAGIC))
    kind = reader.take(1)[0]
    mode, method = kind & 7, kind >> 3 & 3
    flow, luma = method == FLOW, mode in LUMA
    if (luma and not flow) or (kind & HAS_SETTINGS and not flow):
        raise ValueError(f"corrupt file: {kind} is no kind of picture")
    mode = LUMA[mode] if luma else MODES[mode]
    if kind & IS_DEEP and mode in ("1", "P"):
        raise ValueError(f"corrupt file: mode {mode} has no samples of 16 bits")
    if flow and mode in ("1", "P"):
        raise ValueError(f"corrupt file: mode {mode} does not go through the flow")
    size = reader.varint(), reader.varint()
    _check_size(*size)
    settings, flags = DEFAULT._replace(luma=luma), 0
    if kind & HAS_SETTINGS:
        nbins, flags = reader.varint(), reader.varint()
        precision = flags & ~(CORRECTED | TUNED | MADE | ADAPTIVE | WEIGHING | NEARBY)
        adapting = [bool(flags & flag) for flag in (ADAPTIVE, WEIGHING, NEARBY)]
        if adapting != sorted(adapting, reverse=True):
            raise ValueError("corrupt file: how its mixtures adapt makes no sense")
        settings = Settings(nbins, precision, luma, bool(flags & CORRECTED), False, *adapting)
    model = reader.take(IDENTITY_BYTES).hex() if flow else ""
    moves = reader.block() if flags & TUNED else b""
    if flags & TUNED and not moves:
        raise ValueError("corrupt file: it has no moves where there should be some")
    form, exceptions = None, b""
    if flags & MADE:
        made = reader.block()
        if not made or mode not in ("RGB", "RGBA") or kind & IS_DEEP:
            raise ValueError("corrupt file: its luma and chroma make no sense")
        form, exceptions = ycc.form_of(made[0]), made[1:]
        settings = settings._replace(halved=form.halved)
    metadata = reader.block() if kind & HAS_METADATA else b""
    checked = _checked_levels(*size) if flow else ()
    checksums = {level: int.from_bytes(reader.take(4), "big") for level in checked}
    plane = reader.block() if not flow or mode in ("LA", "RGBA") else b""
    deep = bool(kind & IS_DEEP)
    low = (reader.block(), reader.block()) if deep and method in (FLOW, WEBP) else ()
    checksum = zlib.crc32(data[: reader.position])
    if int.from_bytes(reader.take(4), "big") != checksum:
        raise ValueError("corrupt file: the checksum of its head is another")
    end = reader.position
    return Head(
        mode, method, size, settings, model, moves, form, exceptions, metadata, checksums, plane, deep, low,
        checksum, end,
    )  # fmt: skip


class CutHead(ValueError):
    """The data end within the head of a file, which has `least` bytes or more."""

    def __init__(self, message, least=0):
        super().__init__(message)
        self.least = least


class _Reader:
    """Takes the fields of a head, one after the other. Raises CutHead where the data end."""

    def __init__(self, data, position):
        self.data, self.position = data, position

    def take(self, size):
        """The next bytes."""
        start, self.position = self.position, self.position + size
        if self.position > len(self.data):
            raise CutHead("the file is cut within its head, or corrupt", self.position)
        return self.data[start : self.position]

    def varint(self):
        """The next number; inverse of _varint."""
        value = 0
        for shift in range(0, 35, 7):
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("corrupt file: a number is too long")

    def block(self):
        """The next bytes with their length before them; inverse of _block."""
        return self.take(self.varint())


def _varint(value):
    """An integer >= 0 as groups of seven bits, low ones first; the high bit tells that more follow."""
    groups = []
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])


def _block(data):
    return _varint(len(data)) + data


def _head(
    picture,
    method,
    metadata,
    settings=DEFAULT,
    model=b"",
    moves=b"",
    made=b"",
    checksums=b"",
    plane=None,
    low=(),
):
    """The head of a file, checksum included."""
    flags = CORRECTED * settings.corrected | TUNED * bool(moves) | MADE * bool(made)
    flags |= ADAPTIVE * settings.adaptive | WEIGHING * settings.weighing | NEARBY * settings.nearby
    numbers = settings.nbins, settings.precision | flags
    other = numbers != DEFAULT[:2]
    mode = 5 + CHANNELS[picture.mode] if settings.luma else MODES.index(picture.mode)
    kind = mode | method << 3 | HAS_METADATA * bool(metadata) | HAS_SETTINGS * other
    kind |= IS_DEEP * (bool(low) or isinstance(picture, Deep))
    head = MAGIC + bytes([kind]) + b"".join(map(_varint, picture.size))
    head += b"".join(map(_varint, numbers)) * other + model
    head += b"".join(_block(block) for block in (moves, made, metadata) if block) + checksums
    head += b"".join(_block(block) for block in (plane, *low) if block is not None)
    return head + zlib.crc32(head).to_bytes(4, "big")


def _check_size(width, height):
    if not 1 <= width * height <= MAX_PIXELS:
        raise ValueError(f"{width}x{height} pixels: need 1 .. {MAX_PIXELS:,} in all")


def plausible(size, count):
    """Whether a stream of so many bytes may be decoded to an image of this size."""
    return 3 * size[0] * size[1] <= VALUES_PER_BYTE * count


def check_plausible(size, stream):
    """Raise ValueError if a stream is too short for an image of this (width, height)."""
    if not plausible(size, len(stream)):
        raise ValueError(f"the file is cut or corrupt: {len(stream)} bytes for {size[0]}x{size[1]} pixels")


def _picture_of(head, colours, levels):
    """The picture of a plane; colours: those in its palette."""
    if head.deep and not head.low:
        picture = unpack_plane(head.plane, head.method, head.mode, head.size)
        if not levels:
            return picture
        picture = picture.high()
    elif head.method == DEFLATE:
        picture = unpack_deflate(head.plane, head.mode, head.size, colours)
    else:
        picture = {RAW: unpack_raw, WEBP: unpack_webp}[head.method](head.plane, head.mode, head.size)
    return subsample(picture, 1 << levels)


def _checked_levels(width, height):
    """The levels that have a checksum, coarsest first."""
    sizes = level_sizes(height, width, depth(height, width))
    return [i for i in reversed(range(1, len(sizes))) if sizes[i][0] * sizes[i][1] >= CHECKED_PIXELS]


def _level_checksum(model, form, x):
    """The checksum of a coarse band, as far as 0..255 shows it."""
    return zlib.crc32(_array(model, form, x))


def _array(model, form, x, exceptions=None):
    """What the pyramid sees of one image, or a coarse band of it, (1, 3, H, W) -> a picture (H, W, 3), uint8.

    form: of luma and chroma, or None; exceptions: of a whole image made of them.
    """
    images = pixels(model, x, form and form.samples)
    array = images[0].permute(1, 2, 0).contiguous().cpu().numpy()
    if form is None:
        return array
    return ycc.shown(form, array) if exceptions is None else ycc.made(form, array, exceptions)


def _seen(picture, model, found):
    """A picture as the pyramid sees it: (1, 3, H, W)."""
    if found:
        return found.planes().to(model.device)
    return model.from_images(torch.from_numpy(colours(picture)).permute(2, 0, 1)[None].to(model.device))


def _found(picture, model, effort):
    """The luma and chroma of a picture in colour, where they are known and serve the model; or None."""
    if picture.mode not in ("RGB", "RGBA") or not can_be_planes(model):
        return None
    return ycc.find(colours(picture), effort)


def _alpha_plane(picture, effort):
    """The plane of a picture's alpha channel; None without one."""
    return smallest_plane(picture.getchannel("A"), effort) if picture.mode in ("LA", "RGBA") else None


def _pack_flow(
    picture,
    metadata,
    model,
    identity,
    settings,
    effort=DEFAULT_EFFORT,
    low=(),
    alpha=None,
    progress=None,
    moves=b"",
    found=None,
):
    """The head and the stream of a picture in colour or grey, perhaps with alpha. Inverse: _unpack_flow.

    alpha: its plane, where it is known. found: the luma and chroma that it was made of, if it was.
    """
    form = found and found.form
    alpha = alpha or _alpha_plane(picture, effort)
    array, checksums = colours(picture), {}

    def watch(level, x):
        checksums[level] = _level_checksum(model, form, x)

    images = found.planes() if found else torch.from_numpy(array).permute(2, 0, 1)[None]
    images = images.to(model.device)
    settings = settings.adapting(can_adapt(model, array.shape[:2]))._replace(
        luma=picture.mode in ("L", "LA") and has_luma_alone(model, images),
        halved=bool(form and form.halved),
        corrected=effort > 1 and can_correct(model, array.shape[:2]),
    )
    network = tuned(model, moves) if moves else model
    (encoder,) = encode(network, images, settings, watch, progress, effort, bool(found))
    checksums = b"".join(checksums[level].to_bytes(4, "big") for level in _checked_levels(*picture.size))
    identity = bytes.fromhex(identity)[:IDENTITY_BYTES]
    made = form.pack() + found.exceptions if found else b""
    head = _head(picture, FLOW, metadata, settings, identity, moves, made, checksums, alpha, low)
    # the head's checksum goes into the seal, so that no head fits another's stream
    return head, encoder.finish(zlib.crc32(array, zlib.crc32(head[:-4])))


def model_of(head, model, identity):
    """The model that made a file, tuned as it was then. Raises ValueError unless it is this one."""
    if model is None or identity[: len(head.model)] != head.model:
        other = f"not with {identity[: len(head.model)]}" if identity else "which is needed"
        raise ValueError(f"made with the model {head.model}, {other}")
    if (head.settings.corrected or head.settings.adaptive) and not can_correct(model):
        raise ValueError("corrupt file: this model has no distributions to correct")
    if head.form and not can_be_planes(model):
        raise ValueError("corrupt file: this model does not tell luma from chroma")
    return tuned(model, head.moves) if head.moves else model


def _unpack_flow(head, stream, model, identity, levels, partial, progress=None):
    """The picture of a stream; see unpack."""
    model = model_of(head, model, identity)
    width, height = head.size
    small = level_sizes(height, width, levels)[-1]
    if not partial:
        check_plausible(small[::-1], stream)
    decoder, sound, cut = Decoder(stream), None, None
    each = decode_levels(model, [decoder], (height, width), head.settings, levels, True, progress)
    try:
        for level, x, complete in each:
            if not complete and not partial:
                _check_known(head, stream, model, level)
                raise ValueError(f"the file is cut, within its level {level}: -partial decodes what is there")
            if not complete and cut is None:
                cut = level
            if complete and level in head.level_checksums:
                if head.level_checksums[level] != _level_checksum(model, head.form, x):
                    raise Corrupt(f"corrupt file: the checksum of its level {level} is another")
                sound = level, x
        array = _array(model, head.form, x, None if levels else head.exceptions)
        if not complete:
            _check_known(head, stream, model, cut)
        elif not levels:
            _check_seal(head, decoder, array)
    except Corrupt as error:
        if sound:
            error.args = (f"{error}; sound down to level {sound[0]}",)
        if sound and partial:
            sizes = level_sizes(height, width, sound[0])
            x = finest(model.synthesise(sound[1], sizes, drawing(), levels))
            array = _array(model, head.form, x, None if levels else head.exceptions)
            error.picture = _with_alpha(head, array, levels)
        raise
    return _with_alpha(head, array, levels)


def _with_alpha(head, array, levels):
    """The picture of an array (H, W, 3), in the mode of its head."""
    picture = Image.fromarray(array)
    if head.mode in ("L", "LA"):
        picture = picture.convert("L")
    if head.mode in ("LA", "RGBA"):
        turned, step = head.form.turned if head.form else np.asarray, 1 << levels
        alpha = turned(np.asarray(unmarked_plane(head.plane, "L", head.size)))
        # from where the coarse band begins
        alpha = Image.fromarray(np.ascontiguousarray(turned(alpha[::step, ::step])))
        picture = Image.merge(head.mode, (*picture.split(), alpha))
    return picture


def _check_seal(head, decoder, array):
    """Raise Corrupt unless the end of a stream, all values of which were read, is as it should be.

    A stream that was cut lacks values: the last of them leaves the seal, and takes no word after it.
    """
    try:
        seal = decoder.finish()
    except ValueError:
        raise Corrupt("corrupt file: its end is not where its pixels end") from None
    if seal != zlib.crc32(array, head.checksum):
        raise Corrupt("corrupt file: the checksum of its pixels is another")


def _check_known(head, stream, model, level):
    """Raise Corrupt if a stream that ends within level 0 was not cut there: for the pixels that it tells.

    A stream with a wrong bit goes on with what the prior makes of noise, and ends early as well, but soon
    tells of a pixel outside 0..255. Which pixels it tells, two guesses at the rest show: they agree on them.
    """
    if level:
        return
    guesses = []
    for shift in (0, OTHER_GUESS):
        decoded = decode_levels(
            model, [Decoder(stream)], head.size[::-1], head.settings, partial=True, shift=shift
        )
        guesses.append(finest(decoded))
    one, other = guesses
    known = (one == other).all(1, keepdim=True)
    if (known & (head.form.outside(one) if head.form else _outside(model.to_images(one)))).any():
        raise Corrupt("corrupt file: it holds values that are no pixels")


def _outside(images):
    """Which pixels are none, (B, 1, H, W)."""
    return ((images < 0) | (images > 255)).any(1, keepdim=True)
