"""The wavelet pyramid of a picture, learned beside LeGall 5/3 and Haar: simpleBigWavelet.py."""

from pathlib import Path

from tqdm import tqdm

from flow.analysis import (
    COLOURS,
    TITLES,
    check_levels,
    classical_model,
    coarse_psnr,
    common_limit,
    entropy,
    mosaic,
    pyramid,
    shown_pyramid,
    tones_of,
)
from flow.folder import find_folder, open_frozen, picture_folder, trained
from utils.arithmetic.polyphase import depth
from utils.data.images import IN_THE_BOX, picture
from utils.options import pick_device
from utils.show.plots import plt, save_figure, save_rows, show_image

SHOWN = ("haar", "legall", "learned")
RESIDUALS = "learned, less prior"
LEVELS = 3
# Panels are so wide, in inches, and their height over width within these bounds.
WIDE, SHAPES = 5, (0.3, 2)


def measure(wavelet, coarse, details):
    """Rows of the table: wavelet, level, band, size, energy, bits; the last is of all bands together."""
    bands = [(len(details), "coarse", coarse)]
    for level in reversed(range(len(details))):
        bands += [(level + 1, *pair) for pair in zip(("ur", "dl", "dr"), details[level])]
    rows = [
        {
            "wavelet": wavelet,
            "level": level,
            "band": name,
            "height": band.shape[-2],
            "width": band.shape[-1],
            "energy": band.var((0, 2, 3), correction=0).mean().item() if band.numel() else 0.0,
            "bits": entropy(band),
        }
        for level, name, band in bands
    ]
    weights = [row["height"] * row["width"] for row in rows]
    means = {k: sum(w * r[k] for w, r in zip(weights, rows)) / sum(weights) for k in ("energy", "bits")}
    size = {"height": sum(weights), "width": 1}
    return [*rows, {"wavelet": wavelet, "level": 0, "band": "all", **size, **means}]


def name_of(row):
    """The name of a row's band in tables."""
    return row["band"] if row["band"] in ("all", "coarse") else f"{row['band']} {row['level']}"


def print_table(tables):
    """Print energy and bits of every band, a column for each wavelet."""
    print(" " * 10 + "".join(f"{TITLES.get(name, name):>24}" for name in tables))
    print("band      " + "energy   bits/coeff.".rjust(24) * len(tables))
    for rows in zip(*tables.values()):
        print(f"{name_of(rows[0]):10}" + "".join(f"{r['energy']:15.1f}{r['bits']:9.3f}" for r in rows))


def print_near(near):
    """Print PSNR of the coarse bands; near: wavelet -> one for each level, the nearest first."""
    print("\nlearned coarse bands beside linear low passes, PSNR in dB at levels 1, 2, ...")
    for wavelet, values in near.items():
        print(f"{TITLES[wavelet]:10}" + "".join(f"{value:8.2f}" for value in values))


def name_bands(axes, coarse, details):
    """Write the name of each band into its upper left corner."""
    style = dict(color="white", fontsize=8, va="top", bbox=dict(color="black", alpha=0.55, pad=1.5, lw=0))
    style |= dict(xytext=(3, -3), textcoords="offset points")
    top, left = coarse.shape[-2:]
    axes.annotate("coarse", (0, 0), **style)
    for level, (ur, dl, _) in reversed(list(enumerate(details, 1))):
        for name, y, x in (("ur", 0, left), ("dl", top, 0), ("dr", top, left)):
            axes.annotate(f"{name} {level}", (x, y), **style)
        top, left = top + dl.shape[-2], left + ur.shape[-1]


def draw(model, bands, tables, caption):
    """The three pyramids, in one range of grey."""
    tones = {name: tones_of(model, details) for name, (_, details) in bands.items()}
    limit = common_limit([band for details in tones.values() for detail in details for band in detail])
    coarse, details = bands["learned"]
    height, width = mosaic(coarse, details).shape[-2:]
    size = len(SHOWN) * WIDE, WIDE * min(max(height / width, SHAPES[0]), SHAPES[1]) + 0.8
    figure, panels = plt.subplots(1, len(SHOWN), figsize=size, layout="constrained")
    for axes, name in zip(panels, SHOWN):
        coarse, details = bands[name]
        show_image(axes, shown_pyramid(model, coarse, tones[name], limit)[0])
        name_bands(axes, coarse, details)
        axes.set_title(f"{TITLES[name]}: {tables[name][-1]['bits']:.3f} bits per coefficient", fontsize=13)
    note = f"details less their means: grey is 0, white and black are ±{limit:.0f} tones in all three"
    figure.suptitle(f"{caption}\n{note}", fontsize=11)
    return figure


def draw_bits(tables, caption):
    """The bits of the bands as bars."""
    labels = [name_of(row) for row in tables["learned"]]
    figure, axes = plt.subplots(figsize=(max(10, 1.1 * len(labels)), 5), layout="constrained")
    for k, (name, rows) in enumerate(tables.items()):
        places = [i + 0.21 * (k - (len(tables) - 1) / 2) for i in range(len(labels))]
        bits, style = [row["bits"] for row in rows], dict(label=TITLES.get(name), color=COLOURS.get(name))
        if name == RESIDUALS:
            style = dict(label="learned, less the prior's means", color="white", hatch="///")
            style["edgecolor"] = COLOURS["learned"]
        bars = axes.bar(places, bits, 0.19, **style)
        axes.bar_label(bars, fmt="%.2f", fontsize=7, rotation=90, padding=2)
    axes.set_xticks(range(len(labels)), labels)
    axes.set(ylabel="bits per coefficient", xlabel="band and level (1: the finest)")
    axes.margins(x=0.01, y=0.25)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(ncols=2, loc="upper right", fontsize=9)
    axes.set_title(caption, fontsize=10)
    return figure


def write_figures(options):
    """Decompose, measure, draw and save."""
    folder, device = find_folder(options["folder"], "wavelet"), pick_device(options["cuda"])
    image = picture(options["img"])[None].to(device)
    check_levels("depth", options["depth"], image)
    model, _, _ = open_frozen(folder, device=device)
    bands, tables = {}, {}
    for wavelet in tqdm(SHOWN, "pyramids", delay=1, leave=False, disable=None):
        chosen = model if wavelet == "learned" else classical_model(wavelet, model.ycocg).to(device)
        coarse, details, residuals = pyramid(chosen, image, options["depth"])
        bands[wavelet] = coarse, details
        tables[wavelet] = measure(wavelet, coarse, details)
    tables[RESIDUALS] = measure(RESIDUALS, coarse, residuals)
    near = coarse_psnr(model, image, min(LEVELS, depth(*image.shape[-2:])))
    stem = Path(options["img"] or IN_THE_BOX).stem
    colours = "YCoCg-R" if model.ycocg else "RGB"
    caption = f"{stem}, in {colours}\nmodel: {trained(folder)}"
    out, name = picture_folder(options["out"], folder), f"simpleBigWavelet_{stem}_depth_{options['depth']}"
    print_table(tables)
    print_near(near)
    save_rows(out, name, [row for rows in tables.values() for row in rows])
    save_figure(draw(model, bands, tables, caption), out, name, options["show"], options["jpg"])
    save_figure(draw_bits(tables, caption), out, f"{name}_bits", options["show"])
