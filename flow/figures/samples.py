"""Samples of a model, and what its prior makes of real coarse bands: easyGenerate.py."""

import matplotlib.pyplot as plt
import torch
from tqdm import tqdm

from flow.folder import find_folder, open_model, picture_folder, trained
from flow.zoom import coarse_bands
from utils.arithmetic.polyphase import depth
from utils.data.datasets import draw
from utils.options import pick_device
from utils.show.plots import save_arrays, save_figure
from utils.show.sheets import magnified, save_image, tiled


def generate(model, options, side, real, generator):
    """Draw num x num images, row by row; real: the test images that lend their coarse bands, or None."""
    count, levels, rows = options["num"], None if real is None else options["depth"], []
    base_scale = None if options["mean"] else options["baseScale"]
    for row in tqdm(range(count), "rows", delay=2, leave=False, disable=None):
        top = None
        if real is not None:
            top = coarse_bands(model, real[row * count : (row + 1) * count].to(model.device), levels)[-1]
        rows.append(model.sample(count, side, side, base_scale, generator, top, levels))
    return torch.cat(rows).to("cpu", torch.uint8)


def write_figures(options):
    """Write generate_....png and .pdf, generate_..._pixels.png and generate_....npz."""
    device = pick_device(options["cuda"])
    generator = torch.Generator(device).manual_seed(options["seed"])
    folder = find_folder(options["folder"])
    model, architecture = open_model(folder, device=device)
    out = picture_folder(options["out"], folder)
    side, real, count = options["size"] or architecture["patch"], None, options["num"]
    if options["from"] == "coarse":
        real = draw(count**2, options["target"], options["data"], side, options["seed"])
        side, levels = real.shape[-1], options["depth"]
        if levels > depth(side, side):
            raise ValueError(f"-depth {levels}: images of {side}x{side} have {depth(side, side)} levels")
    images = generate(model, options, side, real, generator)

    details, name = "the prior's means", "generate_mean"
    if not options["mean"]:
        scale = f"{options['baseScale']:g}"
        details, name = f"samples of the prior, base scale {scale}", f"generate_baseScale_{scale}"
    if real is None:
        panels = {f"{side}x{side}: top from its mixture, details: {details}": images}
    else:
        left = -(-side // 2**levels)
        name += f"_coarse_{levels}"
        panels = {"test images": real, f"{left}x{left} kept, details of {levels} levels: {details}": images}
    size = 6 * len(panels), 6.5
    figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, layout="constrained")
    for panel, (title, content) in zip(axes[0], panels.items()):
        panel.imshow(magnified(tiled(content, count)).permute(1, 2, 0).numpy())
        panel.set_title(title, fontsize=10)
        panel.set_axis_off()
    figure.suptitle(f"model: {trained(folder)}", fontsize=9)
    save_figure(figure, out, name, options["show"], options["jpg"])
    save_image(magnified(tiled(images, count)), out / f"{name}_pixels.png")
    print(out / f"{name}_pixels.png")
    save_arrays(out, name, images=images.permute(0, 2, 3, 1).numpy())
