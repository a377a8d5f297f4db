"""What easyEncode.py does with files: pictures to .nwf and back, and what such files hold."""

import json
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import torch

from flow.codec.api import Codec
from flow.codec.container import FLOW, Corrupt, read_head
from flow.codec.dataset import nwf_files
from flow.codec.deep import Deep
from flow.codec.formats import SUFFIXES, in_format
from flow.codec.info import describe
from flow.codec.jobs import STREAM, Made, Sizes, of_all, plan, progress_of, run, share
from flow.codec.options import weights_of
from flow.codec.pictures import as_picture, png_size, read_picture
from flow.codec.stream import DEFAULT, Settings
from utils.data.images import image_files
from utils.options import EXPECTED, line_of, pick_device


def encode_files(options):
    """Pictures -> .nwf files. Returns how many failed."""
    names = options["img"]
    verify = options["verify"] or (any(Path(name).is_dir() for name in names) and not options["noVerify"])
    planned = plan(names, image_files, options["out"], ".nwf", {".nwf"})
    settings = Settings(options["nbins"], options["precision"])
    jobs, codec, at_once = open_jobs(options, planned, settings)

    def work(source):
        file = _StandardInput(_read(source)) if source == STREAM else source
        picture = read_picture(file)
        with progress_of(3 * picture.width * picture.height * (1 + verify), len(jobs) == 1) as progress:
            data = codec.compress(picture, options["effort"], progress)
            if verify:
                check_equal(codec.decompress(data, progress=progress), picture)
        size = len(file.getbuffer()) if source == STREAM else source.stat().st_size
        return Made(data, Sizes(len(data), count_values(picture), size, png_size(picture)))

    return of_all(run(jobs, work, options["force"], at_once))


def check_equal(back, picture):
    """Raise ValueError unless a picture came back as it was, with all that it shows by."""
    if isinstance(picture, Deep):
        back = as_picture(back)
    same = all(getattr(back, part) == getattr(picture, part) for part in ("mode", "size", "info"))
    if picture.mode == "P":
        same = same and back.getpalette() == picture.getpalette()
    if not same or not np.array_equal(np.asarray(back), np.asarray(picture)):
        raise ValueError("came back changed, and is not kept: please report this picture")


def decode_files(options):
    """.nwf files -> files of the format asked for. Returns how many failed."""
    out = Path(options["out"])
    named = None if out.is_dir() else SUFFIXES.get(out.suffix.lower())
    form = options["format"] or named or "png"
    if named not in (None, form):
        raise ValueError(f"-format {form}: -out {out} names another")
    planned = plan(options["decode"], nwf_files, out, f".{form}", SUFFIXES)
    jobs, codec, at_once = open_jobs(options, planned)

    def work(source):
        data, notes, wrong, done = _read(source), [], False, 0
        head = read_head(data)
        total = 3 * -(-head.size[0] >> options["levels"]) * -(-head.size[1] >> options["levels"])

        def count(values):
            nonlocal done
            done += values
            progress(values)

        with progress_of(total, len(jobs) == 1) as progress:
            try:
                picture = codec.decompress(data, options["levels"], options["partial"], count)
            except Corrupt as error:
                if not error.picture:
                    raise
                picture, wrong = error.picture, True
                notes.append(f"{error}; what lies behind it is left out")
        whole = head.method != FLOW or done == total
        if options["partial"] and not wrong and not whole:
            share = f"{1 - done / total:.1%}" if done < 0.999 * total else "less than 0.1%"
            notes.append(f"the file is cut, or damaged where it ends: {share} of its values are missing")
        image, lost = in_format(picture, form)
        if lost:
            notes.append(f"a .{form} file does not hold its {', '.join(lost)}")
        sizes = Sizes(len(data))
        if whole and not wrong and not options["levels"]:  # otherwise this is not what the bytes hold
            sizes = Sizes(len(data), count_values(picture), png=len(image) if form == "png" else 0)
        return Made(image, sizes, "; ".join(notes), wrong)

    return of_all(run(jobs, work, options["force"], at_once))


def show_files(options):
    """Print what .nwf files hold, as text or, -json, as an object a line. Returns how many failed."""
    failed, codec = 0, None
    for name in map(Path, options["info"]):
        paths = nwf_files(name) if name.is_dir() else [name]
        if not paths:
            print(f"{name}: no .nwf files in this folder", file=sys.stderr)
            failed += 1
        for path in paths:
            try:
                data = _read(path)
                if codec is None and read_head(data).method == FLOW:
                    codec = open_codec(options)
                about = describe(data, codec.model, codec.identity) if codec else describe(data)
            except EXPECTED as error:
                print(line_of(path, error), file=sys.stderr)
                failed += 1
            else:
                print(json.dumps({"file": str(path)} | about) if options["json"] else told(path, about))
    return failed


def told(path, about):
    """What describe gives, in lines for a person."""
    pixels = about["width"] * about["height"]
    lines = [
        f"{path}: {about['width']}x{about['height']} {about['mode']}, {about['bytes']:,} bytes, "
        f"{8 * about['bytes'] / pixels:.3f} bits a pixel, by {about['method']}"
    ]
    side = [f"head {about['head']:,} bytes"]
    if about["plane"]:
        side.append(f"in it {'alpha' if about['method'] == 'flow' else 'pixels'} {about['plane']:,}")
    if about["method"] == "flow":
        side.append(f"checksums of levels {about['checksums']}")
        if about["moves"]:
            side.append(f"moves of biases {about['moves']:,}")
        if about["exceptions"]:
            side.append(f"exceptions {about['exceptions']:,}")
        lines.append(
            f"  model {about['model']}, nbins {about['nbins']}, precision {about['precision']}"
            + ", corrected" * about["corrected"]
            + ", adaptive" * about["adaptive"]
            + ", weighing" * about["weighing"]
            + ", nearby" * about["nearby"]
            + ", tuned" * bool(about["moves"])
            + (f", made of {about['colours']}" if about["colours"] else "")
        )
    lines.append("  " + ", ".join(side))
    if about["metadata"]:
        found = ", ".join(f"{name} {value}" for name, value in about["metadata"].items())
        lines.append(f"  metadata: {found}")
    if about["method"] == "flow" and about["levels"] is None:
        lines.append("  levels: only the model that made the file tells; give its -folder")
    for row in about.get("levels") or ():
        size = f"{row['width']}x{row['height']}"
        lines.append(f"  level {row['level']:2}  {size:>13} {row['bytes']:13,} bytes")
    return "\n".join(lines)


def open_jobs(options, jobs, settings=DEFAULT):
    """The share of the jobs that is this process's, the Codec for them, and how many to work on at once.

    The cores are shared out among those; a GPU takes one after the other.
    """
    if jobs[0].target == STREAM and sys.stdout.isatty():
        raise ValueError("-out -: standard output is a terminal; send it to a file or a program")
    jobs, cores = share(jobs), torch.get_num_threads()
    at_once = options["jobs"] or (1 if options["cuda"] >= 0 else cores)
    threads = max(cores // max(min(at_once, len(jobs)), 1), 1)
    return jobs, open_codec(options, threads, settings), at_once


def open_codec(options, threads=None, settings=DEFAULT):
    """The Codec that the options ask for."""
    return Codec(options["folder"], pick_device(options["cuda"]), threads, weights_of(options), settings)


def count_values(picture):
    """The dimensions in bits per dimension."""
    return picture.width * picture.height * len(picture.getbands())


class _StandardInput(BytesIO):
    """Its bytes, with a name for what is wrong with them."""

    def __str__(self):
        return "standard input"


def _read(source):
    return sys.stdin.buffer.read() if source == STREAM else source.read_bytes()
