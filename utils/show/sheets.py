"""Pictures for the eye: grids of images, contact sheets, animations. Images are uint8 tensors (3, H, W)."""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from utils.files import replacing

WHITE = 255
# In inches where matplotlib draws, in pixels where Pillow does.
LABEL_INCHES = 0.16
LABEL_SIZE, LABEL_HEIGHT, CELL_WIDTH = 14, 40, 192


def to_pillow(image):
    """(3, H, W) uint8 -> Image of Pillow's. Inverse: from_pillow."""
    return Image.fromarray(image.permute(1, 2, 0).cpu().numpy())


def from_pillow(picture):
    """Undo to_pillow."""
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).contiguous()


def tiled(images, columns, gap=1):
    """Images (N, 3, H, W) in rows of so many, on white: (3, H', W')."""
    images = torch.nn.functional.pad(images, (0, gap, 0, gap), value=WHITE)
    missing = -len(images) % columns
    images = torch.cat([images, images.new_full((missing, *images.shape[1:]), WHITE)])
    rows = (torch.cat(list(row), -1) for row in images.split(columns))
    return torch.cat(list(rows), -2)[..., :-gap, :-gap]


def magnified(image, width=1024):
    """An image with each pixel as a block, all of one whole size, that makes it no wider than asked."""
    factor = max(width // image.shape[-1], 1)
    return image.repeat_interleave(factor, -1).repeat_interleave(factor, -2)


def save_image(image, path):
    """Write an image as a PNG, pixel by pixel."""
    with replacing(path) as temporary:
        to_pillow(image).save(temporary, format="PNG")


def contact_sheet(rows, caption, headings=(), names=(), inches=1.6):
    """A figure of rows of (image, label) or None: labels beneath, headings of columns, names of rows."""
    columns = len(rows[0])
    heights = [max(image.shape[-2] / image.shape[-1] for image, _ in filter(None, row)) for row in rows]
    heights = [inches * h + LABEL_INCHES for h in heights]
    width = max(int(columns * inches * 11), 40)
    caption = "\n".join(textwrap.fill(line, width) for line in caption.splitlines())
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(columns * inches, sum(heights) + 0.2 * caption.count("\n") + 0.6),
        squeeze=False, height_ratios=heights, layout="constrained",
    )  # fmt: skip
    for panels, row in zip(axes, rows):
        for panel, entry in zip(panels, row):
            panel.set(xticks=[], yticks=[])
            panel.set_frame_on(False)
            if entry:
                panel.imshow(entry[0].permute(1, 2, 0).cpu().numpy())
                panel.set_xlabel(entry[1], fontsize=8)
    for panel, heading in zip(axes[0], headings):
        panel.set_title(heading, fontsize=10)
    for panel, name in zip(axes[:, 0], names):
        panel.set_ylabel(name, fontsize=10)
    figure.suptitle(caption, fontsize=10)
    return figure


def labelled(cells):
    """Pairs of image and label side by side, magnified, labels of two lines beneath: an Image of Pillow's."""
    cells = [(to_pillow(magnified(image, CELL_WIDTH)), label) for image, label in cells]
    font = ImageFont.load_default(LABEL_SIZE)
    widths = [max(picture.width, CELL_WIDTH) + 4 for picture, _ in cells]
    height = max(picture.height for picture, _ in cells) + LABEL_HEIGHT
    canvas = Image.new("RGB", (sum(widths), height), "white")
    draw = ImageDraw.Draw(canvas)
    for (picture, label), left in zip(cells, np.cumsum([0, *widths])):
        canvas.paste(picture, (int(left), 0))
        draw.text((int(left) + 4, picture.height + 2), label, "black", font)
    return canvas


def save_gif(frames, path, seconds=0.9):
    """Write Images of Pillow's as an animation that rests on the last of them and begins again."""
    first, *rest = (frame.quantize(256, Image.Quantize.MEDIANCUT) for frame in frames)
    times = [int(1000 * seconds)] * len(rest) + [int(3000 * seconds)]
    with replacing(path) as temporary:
        first.save(temporary, format="GIF", save_all=True, append_images=rest, duration=times, loop=0)
