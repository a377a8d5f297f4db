"""Draw the frequency responses of a learned wavelet's filters beside LeGall 5/3, CDF 9/7 and Haar.

    python FIR.py
    python FIR.py -folder opt/NAME -step 0.001 -num 56

One level of the transform. It is not linear: the Jacobian of the first row of [ul | ur] holds, row by row,
impulse responses at one picture and place; ul's are low-pass, ur's high-pass. Their |H(e^iw)| are averaged
over patches of the photographs in etc/photos and over places. Two figures:
    FIR_row       the pixels of the first row are varied, as in the paper; a separable wavelet's response is
                  then multiplied by its vertical filter's central tap
    FIR_columns   whole columns are varied: the response to waves across, of vertical frequency 0
Both are of the first channel that the wavelet sees: red, or the luma Y of a model with -HUE. The slope of a
rounding is taken as 1, as in training.
"""

import utils.interrupt  # noqa: F401

# isort: split
import math

import numpy as np
import torch
from tqdm import tqdm

from flow.analysis import COLOURS, TITLES, classical_response, down_tap, frequency_response, impulse_responses
from flow.folder import find_folder, open_model, picture_folder, trained
from utils.data.images import PHOTOS, image_files, read_rgb
from utils.options import CUDA, FIGURE, FOLDER, Option, parse, pick_device, script
from utils.show.plots import plt, save_arrays, save_figure

OPTIONS = (
    FOLDER
    | {
        "step": Option(0.001, "step between frequencies, in radians per pixel", least=1e-5, most=math.pi),
        "num": Option(28, "patches of photographs", least=1, most=10_000),
    }
    | FIGURE
    | CUDA
)
HEIGHT, WIDTH = 16, 64
# Columns of the bands whose filters stay clear of a patch's borders.
PLACES = torch.arange(WIDTH // 4 - 4, WIDTH // 4 + 4)
SPREAD = (5, 95)
FAMILY = 24


def patches(count, seed):
    """Patches (count, 3, HEIGHT, WIDTH), uint8, at random places of the photographs in turn."""
    photos, draw = [read_rgb(path) for path in image_files(PHOTOS)], np.random.default_rng(seed)
    chosen = []
    for i in range(count):
        photo = photos[i % len(photos)]
        top, left = (draw.integers(n - size + 1) for n, size in zip(photo.shape[1:], (HEIGHT, WIDTH)))
        chosen.append(photo[:, top : top + HEIGHT, left : left + WIDTH])
    return torch.stack(chosen)


def draw(responses, omega, varied, caption):
    """The two plots: low-pass and high-pass family, mean and spread, classical wavelets over them."""
    figure, axes = plt.subplots(1, 2, figsize=(13, 5.4), layout="constrained")
    for k, (kind, curves) in enumerate(responses.items()):
        family = curves[:: max(len(curves) // FAMILY, 1)][:FAMILY]
        low, high = np.percentile(curves, SPREAD, axis=0)
        red = COLOURS["learned"]
        axes[k].fill_between(omega, low, high, color=red, alpha=0.2, lw=0, label="learned, 5 % to 95 %")
        axes[k].plot(omega, family.T, color="grey", linewidth=0.5, alpha=0.6)
        axes[k].plot([], [], color="grey", linewidth=0.5, label=f"learned, {len(family)} single responses")
        axes[k].plot(omega, curves.mean(0), color=red, linewidth=2.5, label=f"learned, mean of {len(curves)}")
        for wavelet, style in (("legall", "--"), ("cdf97", "-."), ("haar", ":")):
            gain = 1 if varied == "columns" else down_tap(wavelet)
            response = gain * classical_response(wavelet, omega)[k]
            axes[k].plot(omega, response, style, color=COLOURS[wavelet], linewidth=1.8, label=TITLES[wavelet])
        axes[k].set_xticks(np.arange(5) * math.pi / 4, ["0", "π/4", "π/2", "3π/4", "π"])
        axes[k].set(xlabel="ω, radians/pixel", ylabel="|H(e$^{iω}$)|", xlim=(0, math.pi), ylim=(0, None))
        axes[k].set_title(kind)
        axes[k].grid(alpha=0.3)
    axes[0].legend(fontsize=9)
    figure.suptitle(caption, fontsize=11)
    return figure


@script
def main(argv=None):
    """Differentiate, transform, average, draw and save."""
    options, _ = parse(__doc__, OPTIONS, argv)
    folder, device = find_folder(options["folder"], "paper"), pick_device(options["cuda"])
    model, _ = open_model(folder, device=device)
    images = model.from_images(patches(options["num"], options["seed"]).to(device))
    parts = tqdm(images.split(4), "Jacobians", delay=1, leave=False, disable=None)
    parts = [impulse_responses(model.pyramid.level(0), part, PLACES) for part in parts]
    low, high = (torch.cat(sides).cpu() for sides in zip(*parts))
    omega = np.arange(0, math.pi, options["step"])
    out, channel = picture_folder(options["out"], folder), "luma (Y)" if model.ycocg else "red"
    for varied, text in (("row", "first row of pixels"), ("columns", "whole columns of pixels")):
        taps = {
            kind: (side[:, :, 0] if varied == "row" else side.sum(2)).flatten(0, 1)
            for kind, side in (("ul, the low-pass family", low), ("ur, the high-pass family", high))
        }
        responses = {kind: frequency_response(h, omega).numpy() for kind, h in taps.items()}
        numbers = {"omega": omega}
        for name, h, curves in zip(("low", "high"), taps.values(), responses.values()):
            numbers |= {f"{name}_impulse_responses": h.numpy(), f"{name}_mean": curves.mean(0)}
            numbers[f"{name}_spread"] = np.percentile(curves, SPREAD, axis=0)
        caption = (
            f"one level, {channel}, {text} varied; {options['num']} patches of photographs, "
            f"{len(PLACES)} places in each\nmodel: {trained(folder)}"
        )
        save_arrays(out, f"FIR_{varied}", **numbers)
        save_figure(draw(responses, omega, varied, caption), out, f"FIR_{varied}", options["show"])


if __name__ == "__main__":
    main()
