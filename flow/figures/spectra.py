"""A picture's low-pass and high-pass image and their spectra, learned and LeGall 5/3: legall_lena.py."""

from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator
from tqdm import tqdm

from flow.analysis import (
    COLOURS,
    TITLES,
    check_levels,
    classical_model,
    common_limit,
    in_blocks,
    in_grey,
    low_and_high,
    radial,
    spectrum,
)
from flow.folder import find_folder, open_model, picture_folder, target_name, trained
from utils.data.datasets import load
from utils.data.images import IN_THE_BOX, picture
from utils.options import pick_device
from utils.show.plots import plt, save_arrays, save_figure, show_image


def choose(options, trained_with):
    """The image of -img, uint8 (3, H, W), and its name."""
    if options["img"] != "target":
        return picture(options["img"]), Path(options["img"] or IN_THE_BOX).stem
    data = options["data"] or trained_with.get("data", "data")
    target = trained_with.get("target", "photos")
    images = load(target, "test", data, trained_with["patch"])[0]
    index = np.random.default_rng(options["seed"]).integers(len(images))
    return images[index], f"{target_name(target)}_test_{index}"


def title(name):
    """The words for the name of an image: "legall_low" is "LeGall 5/3, low-pass"."""
    wavelet, _, kind = name.partition("_")
    return f"{TITLES[wavelet]}, {kind}-pass" if kind else name


def draw_surfaces(images, spectra, caption):
    """Images above, their spectra below."""
    limit = common_limit([image for name, image in images.items() if "high" in name])
    surfaces = {name: in_blocks(*s) for name, s in spectra.items()}
    low, high = (f([f(z) for z, _, _ in surfaces.values()]) for f in (np.min, np.max))
    figure, wide = plt.figure(figsize=(5 * len(images), 10.6)), 1 / len(images)
    for k, (name, image) in enumerate(images.items()):
        axes = figure.add_axes((k * wide + 0.005, 0.49, wide - 0.01, 0.37))
        show_image(axes, in_grey(image, limit) if "high" in name else image)
        axes.set_title(title(name), fontsize=20)
        axes = figure.add_axes((k * wide, 0.01, wide - 0.01, 0.47), projection="3d")
        z, y, x = surfaces[name]
        if min(z.shape) > 1:
            # pixels in the PDF too: thousands of facets make it slow to show
            style = dict(rcount=len(x), ccount=len(x[0]), rasterized=True)
            axes.plot_surface(x, y, z, cmap="viridis", vmin=low, vmax=high, **style)
        else:
            axes.plot(x.flat, y.flat, z.flat)
        axes.set(xlim=(-0.5, 0.5), ylim=(-0.5, 0.5), zlim=(low, high))
        axes.set(xticks=(-0.4, 0, 0.4), yticks=(-0.4, 0, 0.4))
        axes.tick_params(labelsize=13, pad=1)
        axes.set_xlabel("across, cycles/pixel", fontsize=14)
        axes.set_ylabel("down, cycles/pixel", fontsize=14)
        axes.zaxis.set_major_locator(MaxNLocator(5))
        axes.set_box_aspect((1, 1, 0.9), zoom=1)
    figure.text(0.005, 0.46, "log(|FFT| + 1):", fontsize=16)
    note = f"high-pass: grey is 0, white and black are ±{limit:.0f} tones in both"
    figure.suptitle(f"{caption}\n{note}", fontsize=18)
    return figure


def draw_curves(curves, levels, caption):
    """The spectra averaged over rings of frequency, in one plot."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for name, (radius, mean) in curves.items():
        colour = COLOURS.get(name.partition("_")[0], "black")
        axes.plot(radius, mean, color=colour, linestyle="--" if "high" in name else "-", label=title(name))
    axes.axvline(0.5 / 2**levels, color="grey", linestyle=":", label="the coarse band's Nyquist frequency")
    axes.set(xlabel="frequency, cycles/pixel", ylabel="mean of log(|FFT| + 1)", xlim=(0, 0.5), ylim=(0, None))
    axes.set_title(caption, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def write_figures(options):
    """Split into low and high, transform, draw and save."""
    folder, device = find_folder(options["folder"], "wavelet"), pick_device(options["cuda"])
    model, trained_with = open_model(folder, device=device)
    image, stem = choose(options, trained_with)
    levels = options["deltaDepth"]
    check_levels("deltaDepth", levels, image)
    images = {"original": image}
    for wavelet in tqdm(("learned", "legall"), "low-pass, high-pass", delay=1, leave=False, disable=None):
        chosen = model if wavelet == "learned" else classical_model(wavelet, model.ycocg).to(device)
        for kind, parts in zip(("low", "high"), low_and_high(chosen, image[None].to(device), levels)):
            images[f"{wavelet}_{kind}"] = parts[0].cpu()
    spectra = {name: spectrum(x) for name, x in images.items()}
    curves = {name: radial(*s) for name, s in spectra.items()}
    out, name = picture_folder(options["out"], folder), f"legall_{stem}_deltaDepth_{levels}"
    numbers = {key: values.numpy() for key, (values, _, _) in spectra.items()}
    numbers |= {f"{key}_radial": mean.numpy() for key, (_, mean) in curves.items()}
    save_arrays(out, name, **numbers, radius=curves["original"][0].numpy())
    caption = f"{stem}, finest {levels} level{'s' * (levels > 1)}\nmodel: {trained(folder)}"
    how = options["show"], options["jpg"]
    save_figure(draw_surfaces(images, spectra, caption), out, f"{name}_surfaces", *how)
    save_figure(draw_curves(curves, levels, caption), out, f"{name}_radial", *how)
