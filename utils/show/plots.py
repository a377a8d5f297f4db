"""Figures. matplotlib chooses a window only where there is a screen, and opens it only to show."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from utils.files import replacing, write_table

# How wide, in pixels: a PNG at most, a JPEG always, as a page shows it.
MOST_WIDTH, PAGE_WIDTH = 3000, 1600


def save_figure(figure, folder, name, show=False, jpg=False):
    """Write figure as NAME.png, NAME.pdf and, if asked to, NAME.jpg into a folder, say so, and show it."""
    width = figure.get_figwidth()
    kinds = dict.fromkeys(("png", "pdf"), dict(dpi=min(200, MOST_WIDTH / width)))
    if jpg:
        kinds["jpg"] = dict(dpi=PAGE_WIDTH / width, pil_kwargs=dict(quality=80))
    for kind, how in kinds.items():
        path = Path(folder) / f"{name}.{kind}"
        with replacing(path) as temporary:
            figure.savefig(temporary, format=kind, **how)
        print(path)
    if show:
        plt.show()
    plt.close(figure)


def show_image(axes, image):
    """Draw an image (3, H, W) of real tones, clipped to 0..255, without axes."""
    pixels = image.round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
    axes.imshow(pixels, interpolation="nearest" if max(pixels.shape) < 256 else "antialiased")
    axes.axis("off")


def save_arrays(folder, name, **arrays):
    """Write the numbers of a figure as NAME.npz into a folder, and say so."""
    path = Path(folder) / f"{name}.npz"
    with replacing(path) as temporary:
        np.savez_compressed(temporary, **arrays)
    print(path)


def save_rows(folder, name, rows):
    """Write the numbers of a figure, dicts with the same keys, as NAME.csv into a folder, and say so."""
    path = Path(folder) / f"{name}.csv"
    write_table(path, list(rows[0]), rows)
    print(path)


def loss_curve(history, path):
    """Draw train and test bits per dimension over epochs. history: rows with epoch, train_bpd, test_bpd."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    epochs = [row["epoch"] for row in history]
    for part, colour in (("train", "tab:blue"), ("test", "tab:orange")):
        bits = [row[f"{part}_bpd"] for row in history]
        label = f"{part}, {bits[-1]:.3f} at last" if bits else part
        axes.plot(epochs, bits, color=colour, label=label, marker="." if len(bits) < 30 else None)
    axes.set(xlabel="epoch", ylabel="bits per dimension")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150, format="png")
    plt.close(figure)
