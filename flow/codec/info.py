"""What a .nwf file holds, told without its picture."""

from flow.codec.container import model_of, read_head
from flow.codec.pictures import unpack_metadata
from flow.codec.planes import DEFLATE, FLOW, RAW, WEBP
from flow.codec.stream import decode_levels
from source.rans import Decoder
from utils.arithmetic.polyphase import depth, level_sizes

METHODS = {RAW: "raw", DEFLATE: "deflate", FLOW: "flow", WEBP: "webp"}


def describe(data, model=None, identity=""):
    """The bytes of a .nwf file -> a dict: size, mode, method, model, levels, side information, metadata.

    model, identity: frozen, and the hash of its integers: only the model that made a file can tell how many
    bytes each of its levels takes; a cut file has those that are whole. All sizes are in bytes.
    Raises ValueError if the head is not whole, or has moves that this model cannot have made.
    """
    head = read_head(data)
    width, height = head.size
    metadata = unpack_metadata(head.metadata, head.mode)
    about = {
        "bytes": len(data),
        "width": width,
        "height": height,
        "mode": head.mode,
        "method": METHODS.get(head.method, head.method),
        "head": head.end,
        "plane": len(head.plane),
        "metadata": {name: value if name == "gamma" else _size(value) for name, value in metadata.items()},
    }
    if head.method == FLOW:
        about |= {"model": head.model, "checksums": 4 * len(head.level_checksums)}
        about |= dict(zip(("nbins", "precision"), head.settings))
        about |= {"corrected": head.settings.corrected, "adaptive": head.settings.adaptive}
        about |= {"weighing": head.settings.weighing, "nearby": head.settings.nearby}
        about |= {"moves": len(head.moves), "levels": None}
        about |= {"colours": head.form.name if head.form else None, "exceptions": len(head.exceptions)}
        if model is not None and identity[: len(head.model)] == head.model:
            about["levels"] = _levels(head, data[head.end :], model_of(head, model, identity))
    return about


def _size(value):
    return len(value) if isinstance(value, (bytes, str)) else value


def _levels(head, stream, model):
    """The levels that are whole in a stream, coarsest first."""
    width, height = head.size
    sizes = level_sizes(height, width, depth(height, width))
    decoder, before, levels = Decoder(stream), 0, []
    for level, _, complete in decode_levels(model, [decoder], (height, width), head.settings, partial=True):
        if not complete:
            break
        taken = decoder.taken if level else len(stream)
        rows, columns = sizes[level]
        levels.append({"level": level, "width": columns, "height": rows, "bytes": taken - before})
        before = taken
    return levels
