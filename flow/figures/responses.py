"""Frequency responses of a learned wavelet's filters, beside LeGall 5/3, CDF 9/7 and Haar: FIR.py."""

import math

import numpy as np
import torch

from flow.analysis import (
    COLOURS,
    TITLES,
    classical_response,
    down_tap,
    filters,
    frequency_response,
    pass_figures,
)
from flow.folder import find_folder, open_model, picture_folder, trained
from utils.data.images import PHOTOS, image_files, read_rgb
from utils.options import pick_device
from utils.show.plots import plt, save_arrays, save_figure, save_rows

SIDE = 48
# Columns of the bands whose filters stay clear of a patch's borders.
PLACES = torch.arange(SIDE // 4 - 4, SIDE // 4 + 4)
CLASSICAL = {"legall": "--", "cdf97": "-.", "haar": ":"}
SPREAD = (5, 95)
FAMILY = 24


def patches(count, seed):
    """Patches (count, 3, SIDE, SIDE), uint8, at random places of the photographs in turn."""
    photos, draw = [read_rgb(path) for path in image_files(PHOTOS)], np.random.default_rng(seed)
    chosen = []
    for i in range(count):
        photo = photos[i % len(photos)]
        top, left = (draw.integers(n - SIDE + 1) for n in photo.shape[1:])
        chosen.append(photo[:, top : top + SIDE, left : left + SIDE])
    return torch.stack(chosen)


def draw(responses, omega, varied, caption):
    """Low-pass and high-pass family, mean and spread, classical wavelets over them, in both directions."""
    figure, axes = plt.subplots(2, 2, figsize=(13, 9.5), layout="constrained")
    for (direction, curves), row in zip(responses.items(), axes):
        found = pass_figures(*curves)
        for k, (kind, ratio) in enumerate((("low", "|H(π)| / |H(0)|"), ("high", "|H(0)| / peak"))):
            draw_family(row[k], curves[k], omega)
            for wavelet, style in CLASSICAL.items():
                response = gain_of(wavelet, varied) * classical_response(wavelet, omega)[k]
                row[k].plot(omega, response, style, color=COLOURS[wavelet], lw=1.8, label=TITLES[wavelet])
            row[k].set_xticks(np.arange(5) * math.pi / 4, ["0", "π/4", "π/2", "3π/4", "π"])
            row[k].set(xlabel="ω, radians/pixel", ylabel="|H(e$^{iω}$)|", xlim=(0, math.pi), ylim=(0, None))
            row[k].set_title(f"{kind} pass, {direction}: learned {ratio} = {found[f'{kind}_ratio']:.3f}")
            row[k].grid(alpha=0.3)
    axes[0, 0].legend(fontsize=9)
    figure.suptitle(caption, fontsize=11)
    return figure


def draw_family(axes, curves, omega):
    """Single responses, their mean and their spread."""
    family, red = curves[:: max(len(curves) // FAMILY, 1)][:FAMILY], COLOURS["learned"]
    low, high = np.percentile(curves, SPREAD, axis=0)
    axes.fill_between(omega, low, high, color=red, alpha=0.2, lw=0, label="learned, 5 % to 95 %")
    axes.plot(omega, family.T, color="grey", linewidth=0.5, alpha=0.6)
    axes.plot([], [], color="grey", linewidth=0.5, label=f"learned, {len(family)} single responses")
    axes.plot(omega, curves.mean(0), color=red, linewidth=2.5, label=f"learned, mean of {len(curves)}")


def gain_of(wavelet, varied):
    """What a classical wavelet's response is multiplied by."""
    return 1 if varied == "columns" else down_tap(wavelet)


def tell(rows):
    """Print the table: each filter's amplitudes."""
    print(" " * 26 + "low pass, at 0   at pi   ratio   high pass, at 0    peak   ratio")
    for name, direction, varied, *numbers in (row.values() for row in rows):
        widths = zip(numbers, (14, 8, 8, 18, 8, 8))
        print(f"{f'{name}, {direction}, {varied}':26}" + "".join(f"{x:{width}.3f}" for x, width in widths))


def write_figures(options):
    """Differentiate, transform, average, draw and save."""
    folder, device = find_folder(options["folder"], "wavelet"), pick_device(options["cuda"])
    model, _ = open_model(folder, device=device)
    if next(model.pyramid.parameters(), None) is None:
        raise ValueError(f"{folder}: no filters to draw: a model with -repeat 0 only splits pixels")
    images = model.from_images(patches(options["num"], options["seed"]).to(device))
    taps = filters(model.pyramid.level(0), images, PLACES)
    omega, rows = np.linspace(0, math.pi, round(math.pi / options["step"]) + 1), []
    out, channel = picture_folder(options["out"], folder), "luma (Y)" if model.ycocg else "red"
    for varied, text in (("columns", "whole columns of pixels"), ("row", "one row of pixels")):
        numbers, responses = {"omega": omega}, {}
        for direction in ("across", "down"):
            pair = taps[direction, varied]
            responses[direction] = curves = [frequency_response(h, omega).numpy() for h in pair]
            rows.append(dict(wavelet="learned", direction=direction, varied=varied) | pass_figures(*curves))
            for kind, h, family in zip(("low", "high"), pair, curves):
                name = f"{direction}_{kind}"
                numbers |= {f"{name}_impulse_responses": h.numpy(), f"{name}_mean": family.mean(0)}
                numbers[f"{name}_spread"] = np.percentile(family, SPREAD, axis=0)
        caption = (
            f"one level, {channel}, {text} varied; {options['num']} patches of photographs, "
            f"{len(PLACES)} places in each\nmodel: {trained(folder)}"
        )
        save_arrays(out, f"FIR_{varied}", **numbers)
        figure = draw(responses, omega, varied, caption)
        save_figure(figure, out, f"FIR_{varied}", options["show"], options["jpg"])
    for wavelet in CLASSICAL:
        curves = (h[None] for h in classical_response(wavelet, omega))
        rows.append(dict(wavelet=TITLES[wavelet], direction="both", varied="columns") | pass_figures(*curves))
    tell(rows)
    save_rows(out, "FIR", rows)
