"""Progressive loading and super-resolution, as figures and a table: progressive.py."""

import sys
from pathlib import Path

import torch
from tqdm import tqdm

from flow.folder import find_folder, open_frozen, picture_folder, target_name, trained
from flow.zoom import AVERAGED, enlarge, interpolations, load_file, load_image, measure, restore
from utils.data.datasets import draw
from utils.data.images import picture
from utils.options import naming, pick_device
from utils.show.plots import save_figure, save_rows
from utils.show.quality import psnr
from utils.show.sheets import contact_sheet, labelled, save_gif, save_image


def test_images(options, count, size):
    """Draw test images of the target."""
    return draw(count, options["target"], options["data"], options["size"] or size, options["seed"])


def is_nwf(path):
    """Whether a file is one of the codec's, by its suffix, large or small letters."""
    return Path(path).suffix.lower() == ".nwf"


def sources(options, model, name, size, generator):
    """The images to load: a name for each, where it is from, and its Stages, made as they are asked for."""
    if options["img"] is None:
        target = target_name(options["target"])
        for i, image in enumerate(test_images(options, options["num"], size)):
            yield f"{target}_{i}", target, load_image(model, image, options["baseScale"], generator)
    for i, path in enumerate(map(Path, options["img"] or ())):
        if is_nwf(path):
            yield f"{path.stem}_{i}", path, load_file(model, name, path.read_bytes())
        else:
            yield f"{path.stem}_{i}", path, load_image(model, picture(path), options["baseScale"], generator)


def details(options, scale):
    """What a caption says of details; scale: the option that makes them samples."""
    if options[scale] is None:
        return "the prior's means"
    files = scale == "baseScale" and any(map(is_nwf, options["img"] or ()))
    return f"samples of the prior, base scale {options[scale]:g}{' (.nwf files: its means)' if files else ''}"


def loaded(key, place, stages):
    """All Stages of an image; errors name where it is from, and a line if it ends before its last level."""
    with naming(place):
        stages = list(tqdm(stages, key, unit=" levels", delay=2, leave=False, disable=None))
        if not stages:
            raise ValueError("the file is cut before its first level ends")
    if level := stages[-1].level:
        print(f"{place}: the file is cut: loaded down to level {level}", file=sys.stderr)
    return stages


def shown(stage, method="nearest"):
    """The coarse band of a Stage, as large as the image."""
    factor, size = 2**stage.level, stage.image.shape[-2:]
    return interpolations(stage.coarse[None], size, factor, [method])[method][0]


def rows_of(name, stages):
    """The table of an image's Stages; PSNR is against the last, none where a file was cut before it."""
    *_, whole = stages
    rows = []
    for stage in stages:
        height, width = stage.coarse.shape[-2:]
        images = {"psnr": stage.image, "bicubic": shown(stage, "bicubic")}
        near = {key: None if whole.level else psnr(image, whole.image) for key, image in images.items()}
        size = {"height": height, "width": width, "bytes": stage.bytes}
        rows.append({"image": name, "level": stage.level} | size | near)
    return rows


def labels_of(row):
    """What stands beneath a coarse band, and beneath what became of it."""
    read = f"{row['width']}x{row['height']}, {row['bytes']:,} bytes"
    if row["psnr"] is None:
        return read, ""
    return read, f"{row['psnr']:.1f} dB (bicubic {row['bicubic']:.1f})" if row["level"] else "lossless"


def show_loading(images, caption, out, options):
    """Contact sheet, animation, table and single images of progressive loading. images: name -> Stages."""
    rows, sheet, moments = [], [], []
    levels = sorted({stage.level for stages in images.values() for stage in stages}, reverse=True)
    for name, stages in images.items():
        rows += (table := rows_of(name, stages))
        labels = [labels_of(row) for row in table]
        pairs = [(shown(stage), stage.image) for stage in stages]
        for kind in range(2):
            cells = {s.level: (p[kind], label[kind]) for s, p, label in zip(stages, pairs, labels)}
            sheet.append([cells.get(level) for level in levels])
        moments.append([(torch.cat(pair, -2), "\n".join(label)) for pair, label in zip(pairs, labels)])
        for stage in stages:
            save_image(stage.coarse, out / "progressive" / f"{name}_level_{stage.level}_coarse.png")
            save_image(stage.image, out / "progressive" / f"{name}_level_{stage.level}.png")
    longest = max(map(len, moments))
    headings = ["the image" if level == 0 else f"level {level}" for level in levels]
    figure = contact_sheet(sheet, caption, headings, ["coarse band", "completed"] * len(images))
    save_figure(figure, out, "progressive", options["show"], options["jpg"])
    paced = ([cells[0]] * (longest - len(cells)) + cells for cells in moments)
    save_gif([labelled(moment) for moment in zip(*paced)], out / "progressive.gif")
    print(out / "progressive.gif")
    save_rows(out, "progressive", rows)
    print(out / "progressive")


def middle(image, side):
    """The middle of an image, at most so many pixels a side."""
    top, left = (max(n - side, 0) // 2 for n in image.shape[-2:])
    return image[:, top : top + side, left : left + side]


def restored(model, image, options, generator):
    """An image from its own coarse band by each method, and itself: name of a column -> (image, label)."""
    levels, base_scale = options["exdepth"], options["exBaseScale"]
    back = restore(model, image[None].to(model.device), levels, base_scale, generator)
    back = {method: x[0].cpu() for method, x in back.items()}
    return {m: (x, f"{psnr(x, image):.2f} dB") for m, x in back.items()} | {"original": (image, "")}


def enlarged(model, image, options, generator):
    """An image 2^exdepth times as large by each method: name of a column -> (image, label)."""
    image, doublings = image[None].to(model.device), options["exdepth"]
    height, width = (n << doublings for n in image.shape[-2:])
    large = interpolations(image, (height, width), 2**doublings)
    large["learned"] = enlarge(model, image, doublings, options["exBaseScale"], generator)
    return {method: (x[0].cpu(), f"{width}x{height}") for method, x in large.items()}


def show_enlarged(images, caption, out, name, options):
    """Contact sheet and single images; images: name -> what `restored` or `enlarged` gives."""
    headings, *_ = images.values()
    rows = [list(row.values()) for row in images.values()]
    figure = contact_sheet(rows, caption, headings, inches=2.4)
    save_figure(figure, out, name, options["show"], options["jpg"])
    for key, row in images.items():
        for method, (image, _) in row.items():
            save_image(image, out / name / f"{key}_{method}.png")
    print(out / name)


def show_measures(model, images, generator, out):
    """Print and save the table of PSNR and SSIM."""
    rows = []
    for doublings in tqdm((1, 2), "factors", delay=2, leave=False, disable=None):
        for method, (near, similar) in measure(model, images, doublings, generator).items():
            rows.append(dict(factor=2**doublings, method=method, psnr=near, ssim=similar, images=len(images)))
    side = images.shape[-1]
    print(f"{len(images)} images of {side}x{side}, brought back from their coarse bands")
    print("factor  method     PSNR/dB    SSIM")
    for row in rows:
        print(f"{row['factor']:6}  {row['method']:9}{row['psnr']:9.2f}{row['ssim']:8.4f}")
    save_rows(out, "superresolution_measured", rows)


def write_figures(options):
    """Write progressive.png .pdf .gif .csv, superresolution.png .pdf and single images, or the measures."""
    device = pick_device(options["cuda"])
    generator = torch.Generator(device).manual_seed(options["seed"])
    files = any(map(is_nwf, options["img"] or ()))
    folder = find_folder(options["folder"], "model" if files else "wavelet")
    model, architecture, name = open_frozen(folder, device=device)
    out, size = picture_folder(options["out"], folder), architecture["patch"]
    origin = f"\nmodel: {trained(folder)}"
    if options["measure"]:
        return show_measures(model, test_images(options, options["measure"], size), generator, out)
    images = {key: loaded(key, *rest) for key, *rest in sources(options, model, name, size, generator)}
    caption = f"Progressive loading; completed with {details(options, 'baseScale')}{origin}"
    show_loading(images, caption, out, options)
    if architecture.get("diffDetail"):
        print("no super-resolution: the prior of a model with -diffDetail knows one size only")
    elif options["exdepth"]:
        how = f"by {2 ** options['exdepth']}; learned: with {details(options, 'exBaseScale')}{origin}"
        middles = {key: middle(stages[-1].image, options["exsize"]) for key, stages in images.items()}
        for name, work, words in (
            (
                "superresolution",
                restored,
                f"Super-resolution from the coarse band (averaged: {AVERAGED} samples)",
            ),
            ("enlarged", enlarged, "Images taken for coarse bands, enlarged"),
        ):
            bar = tqdm(middles.items(), name, delay=2, leave=False, disable=None)
            large = {key: work(model, image, options, generator) for key, image in bar}
            show_enlarged(large, f"{words} {how}", out, name, options)
