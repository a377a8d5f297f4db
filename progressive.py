"""Load images progressively, and enlarge them beyond their size.

    python progressive.py -folder opt/NAME                  test images of -target
    python progressive.py -folder opt/NAME -img FILE...     pictures, or .nwf files from their first bytes
    python progressive.py -folder opt/NAME -measure 100     PSNR and SSIM of super-resolution, in a table

Progressive loading: the coarse levels are an image's own, the finest k come from the prior, for every k; with
the bytes that the codec needs so far, and PSNR. Super-resolution by 2^exdepth: the prior's details around the
image itself, taken for a coarse band, whose colours it is given first. Each for sampled details, with
-baseScale (-exBaseScale) added to their logscales, or for the prior's means (-mean; .nwf files: always).
"""

import utils.interrupt  # noqa: F401

# isort: split
from pathlib import Path

import torch
from tqdm import tqdm

from flow.folder import find_folder, open_frozen, picture_folder, target_name, trained
from flow.zoom import enlarge, load_file, load_image, measure
from utils.arithmetic.polyphase import level_sizes
from utils.data.datasets import draw
from utils.data.images import picture
from utils.options import (
    BASE_SCALE,
    CUDA,
    DATA_FOLDER,
    FIGURE,
    FOLDER,
    SIDE,
    Option,
    parse,
    pick_device,
    refuse,
    script,
)
from utils.show.plots import save_figure, save_rows
from utils.show.quality import psnr
from utils.show.sheets import FILTERS, contact_sheet, labelled, resized, save_gif, save_image

OPTIONS = FOLDER | DATA_FOLDER | {
    "num": Option(4, "test images to draw", least=1),
    "target": Option("photos", "data set or folder of the test images"),
    "size": SIDE._replace(help=f"{SIDE.help} (default: as in training, or 32)"),
    "img": Option(None, "pictures or .nwf files in place of test images", many=True),
    "baseScale": BASE_SCALE._replace(default=-2.0),
    "exBaseScale": BASE_SCALE._replace(default=-2.0, help="the same for super-resolution"),
    "mean": Option(False, "the means of the details, in place of samples"),
    "exdepth": Option(2, "super-resolution by 2^exdepth; 0: none", least=0, most=10),
    "exsize": Option(
        128, "super-resolution is of the middle of an image, at most so many pixels a side",
        least=1, most=8192,
    ),
    "measure": Option(
        None, "measure super-resolution on so many test images, in place of all else", kind=int, least=1
    ),
} | FIGURE | CUDA  # fmt: skip
MEASURED_WITHOUT = "num", "img", "baseScale", "exBaseScale", "mean", "exdepth", "exsize", "show"


def test_images(options, count, size):
    """Draw test images of the target."""
    return draw(count, options["target"], options["data"], options["size"] or size, options["seed"])


def sources(options, model, name, size, generator):
    """The images to load: a name for each, and its Stages, made as they are asked for."""
    base_scale = None if options["mean"] else options["baseScale"]
    if options["img"] is None:
        target = target_name(options["target"])
        for i, image in enumerate(test_images(options, options["num"], size)):
            yield f"{target}_{i}", load_image(model, image, base_scale, generator)
    for i, path in enumerate(map(Path, options["img"] or ())):
        if path.suffix == ".nwf":
            yield f"{path.stem}_{i}", load_file(model, name, path.read_bytes())
        else:
            yield f"{path.stem}_{i}", load_image(model, picture(path), base_scale, generator)


def details(options, scale):
    """What a caption says of details; scale: the option that sampling them takes."""
    if options["mean"]:
        return "the prior's means"
    files = scale == "baseScale" and any(Path(path).suffix == ".nwf" for path in options["img"] or ())
    return f"samples of the prior, base scale {options[scale]:g}{' (.nwf files: its means)' if files else ''}"


def loaded(key, stages):
    """All Stages of an image, which an error names."""
    try:
        return list(tqdm(stages, key, unit=" levels", delay=2, leave=False, disable=None))
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


def rows_of(name, stages):
    """The table of an image's Stages; PSNR is against the last, none where a file was cut before it."""
    *_, whole = stages
    rows = []
    for level, image, count in stages:
        height, width = level_sizes(*image.shape[-2:], level)[-1]
        near = None if whole.level else psnr(image, whole.image)
        rows.append(dict(image=name, level=level, height=height, width=width, bytes=count, psnr=near))
    return rows


def label_of(row):
    """What stands beneath a panel: what was read of it, and how near that brought it."""
    near = "" if row["psnr"] is None else f", {row['psnr']:.1f} dB" if row["level"] else ", lossless"
    return f"{row['width']}x{row['height']} read\n{row['bytes']:,} bytes{near}"


def show_loading(images, caption, out, show):
    """Contact sheet, animation, table and single images of progressive loading. images: name -> Stages."""
    rows = [rows_of(name, stages) for name, stages in images.items()]
    panels = [
        [(stage.image, label_of(row)) for stage, row in zip(stages, table)]
        for stages, table in zip(images.values(), rows)
    ]
    save_figure(contact_sheet(panels, caption), out, "progressive", show)
    longest = max(map(len, panels))
    paced = ([cells[0]] * (longest - len(cells)) + cells for cells in panels)
    save_gif([labelled(moment) for moment in zip(*paced)], out / "progressive.gif")
    print(out / "progressive.gif")
    save_rows(out, "progressive", sum(rows, []))
    for name, stages in images.items():
        for stage in stages:
            save_image(stage.image, out / "progressive" / f"{name}_level_{stage.level}.png")
    print(out / "progressive")


def enlarged(model, image, options, generator):
    """An image as it is and 2^exdepth times as large by each method: a list of (image, label)."""
    side = options["exsize"]
    top, left = (max(n - side, 0) // 2 for n in image.shape[-2:])
    image, doublings = image[:, top : top + side, left : left + side], options["exdepth"]
    height, width = (n << doublings for n in image.shape[-2:])
    base_scale = None if options["mean"] else options["exBaseScale"]
    (learned,) = enlarge(model, image[None].to(model.device), doublings, base_scale, generator)
    methods = {method: resized(image, (height, width), method) for method in FILTERS}
    methods["learned"] = learned.cpu()
    return [(x, f"{method}, {width}x{height}") for method, x in methods.items()]


def show_enlarged(images, caption, out, show):
    """Contact sheet and single images of super-resolution. images: name -> what `enlarged` gives."""
    save_figure(contact_sheet(list(images.values()), caption, inches=2.4), out, "superresolution", show)
    for name, cells in images.items():
        for image, label in cells:
            save_image(image, out / "superresolution" / f"{name}_{label.split(',')[0]}.png")
    print(out / "superresolution")


def show_measures(model, images, out):
    """Print and save the table of PSNR and SSIM."""
    rows = []
    for doublings in tqdm((1, 2), "factors", delay=2, leave=False, disable=None):
        for method, (near, similar) in measure(model, images, doublings).items():
            rows.append(dict(factor=2**doublings, method=method, psnr=near, ssim=similar, images=len(images)))
    side = images.shape[-1]
    print(f"{len(images)} images of {side}x{side}, made smaller by box means and brought back")
    print("factor  method              PSNR/dB    SSIM")
    for row in rows:
        print(f"{row['factor']:6}  {row['method']:18}{row['psnr']:9.2f}{row['ssim']:8.4f}")
    save_rows(out, "superresolution_measured", rows)


@script
def main(argv=None):
    """Write progressive.png .pdf .gif .csv, superresolution.png .pdf and single images, or the measures."""
    options, typed = parse(__doc__, OPTIONS, argv)
    if "measure" in typed:
        refuse(typed, MEASURED_WITHOUT, "beside -measure")
    refuse(typed, ["num", "target", "size", "data"] if "img" in typed else [], "beside -img")
    refuse(typed, ["exsize", "exBaseScale"] if options["exdepth"] == 0 else [], "beside -exdepth 0")
    device = pick_device(options["cuda"])
    generator = torch.Generator(device).manual_seed(options["seed"])
    folder = find_folder(options["folder"])
    model, architecture, name = open_frozen(folder, device=device)
    out, size = picture_folder(options["out"], folder), architecture["patch"]
    origin = f"; model: {trained(folder)}"
    if options["measure"]:
        return show_measures(model, test_images(options, options["measure"], size), out)
    images = {key: loaded(key, stages) for key, stages in sources(options, model, name, size, generator)}
    caption = f"Progressive loading; details not read: {details(options, 'baseScale')}{origin}"
    show_loading(images, caption, out, options["show"])
    if architecture.get("diffDetail"):
        print("no super-resolution: the prior of a model with -diffDetail knows one size only")
    elif options["exdepth"]:
        bar = tqdm(images.items(), "enlarging", delay=2, leave=False, disable=None)
        large = {key: enlarged(model, stages[-1].image, options, generator) for key, stages in bar}
        factor = 2 ** options["exdepth"]
        caption = f"Super-resolution by {factor}; learned: with {details(options, 'exBaseScale')}{origin}"
        show_enlarged(large, caption, out, options["show"])


if __name__ == "__main__":
    main()
