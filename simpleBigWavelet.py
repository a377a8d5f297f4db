"""Draw the wavelet pyramid of a picture, learned beside LeGall 5/3 and Haar, and measure its bands.

    python simpleBigWavelet.py
    python simpleBigWavelet.py -folder opt/NAME -img FILE -depth 3

Coarse band top left; right of it the details across (ur), below it those down (dl), in the corner both (dr).
The transform is the codec's. A band's energy is its variance; its bits per coefficient are the entropy of its
histogram, channel by channel. All three transforms preserve volume, so that both compare.
"""

import utils.interrupt  # noqa: F401

# isort: split
from pathlib import Path

from tqdm import tqdm

from flow.analysis import (
    COLOURS,
    TITLES,
    check_levels,
    classical_model,
    common_limit,
    entropy,
    in_grey,
    mosaic,
    pyramid,
)
from flow.folder import find_folder, open_frozen, picture_folder, trained
from utils.arithmetic.integers import MIDDLE
from utils.data.images import IN_THE_BOX, picture
from utils.options import CUDA, FIGURE, FOLDER, PICTURE, Option, parse, pick_device, script
from utils.show.plots import plt, save_figure, save_rows, show_image

OPTIONS = FOLDER | PICTURE | {"depth": Option(2, "levels of the pyramid", least=1)} | FIGURE | CUDA
SHOWN = ("learned", "legall", "haar")


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


def draw(model, bands, tables, caption):
    """The three pyramids in one range, and the bits of their bands as bars."""
    limit = common_limit([band for _, details in bands.values() for detail in details for band in detail])
    figure = plt.figure(figsize=(15, 8.6), layout="constrained")
    grid = figure.add_gridspec(2, len(SHOWN), height_ratios=(5, 2.2))
    for k, (name, (coarse, details)) in enumerate(bands.items()):
        tones = [[model.to_images(band + MIDDLE) - MIDDLE for band in detail] for detail in details]
        tones = [[in_grey(band, limit) for band in detail] for detail in tones]
        axes = figure.add_subplot(grid[0, k])
        show_image(axes, mosaic(model.to_images(coarse), tones)[0])
        axes.set_title(f"{TITLES[name]}: {tables[name][-1]['bits']:.3f} bits per coefficient")
    axes = figure.add_subplot(grid[1, :])
    labels = [name_of(row) for row in tables["learned"]]
    for k, name in enumerate(SHOWN):
        places = [i + 0.27 * (k - 1) for i in range(len(labels))]
        bits = [row["bits"] for row in tables[name]]
        bars = axes.bar(places, bits, 0.25, color=COLOURS[name], label=TITLES[name])
        if len(labels) <= 14:
            axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.set_xticks(range(len(labels)), labels)
    axes.set(ylabel="bits per coefficient", xlabel="band and level (1: the finest)")
    axes.margins(x=0.01, y=0.12)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(ncols=3, loc="lower right", bbox_to_anchor=(1, 1), frameon=False)
    figure.suptitle(
        f"{caption}\ndetails: grey is 0, white and black are ±{limit:.0f} tones in all three; "
        "coarse band as it is: nothing in training ties its colours to the picture's",
        fontsize=11,
    )
    return figure


@script
def main(argv=None):
    """Decompose, measure, draw and save."""
    options, _ = parse(__doc__, OPTIONS, argv)
    folder, device = find_folder(options["folder"]), pick_device(options["cuda"])
    image = picture(options["img"])[None].to(device)
    check_levels("depth", options["depth"], image)
    model, _, _ = open_frozen(folder, device=device)
    bands, tables = {}, {}
    for wavelet in tqdm(SHOWN, "pyramids", delay=1, leave=False, disable=None):
        chosen = model if wavelet == "learned" else classical_model(wavelet, model.ycocg).to(device)
        coarse, details, residuals = pyramid(chosen, image, options["depth"])
        bands[wavelet] = coarse, residuals
        tables[wavelet] = measure(wavelet, coarse, residuals)
        if wavelet == "learned":
            tables["learned, with means"] = measure("learned, with means", coarse, details)
    stem = Path(options["img"] or IN_THE_BOX).stem
    colours = "YCoCg-R" if model.ycocg else "RGB"
    caption = f"{stem}, in {colours}; learned details less the prior's means; model: {trained(folder)}"
    out, name = picture_folder(options["out"], folder), f"simpleBigWavelet_{stem}_depth_{options['depth']}"
    print_table(tables)
    save_rows(out, name, [row for rows in tables.values() for row in rows])
    save_figure(draw(model, bands, tables, caption), out, name, options["show"])


if __name__ == "__main__":
    main()
