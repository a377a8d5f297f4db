"""Pictures as files that others read: what they show is kept without loss, or the format is refused."""

from io import BytesIO

from flow.codec.deep import Deep, pnm_of
from flow.codec.pictures import as_picture, write_png
from flow.codec.planes import WEBP_SIDE

SUFFIXES = {
    ".png": "png",
    **dict.fromkeys((".ppm", ".pgm", ".pbm"), "ppm"),
    **dict.fromkeys((".tif", ".tiff"), "tif"),
    ".webp": "webp",
}
# The modes that formats have; others are shown by one of these, with the same colours.
MODES = {
    "ppm": ("1", "L", "RGB"),
    "tif": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "webp": ("RGB", "RGBA"),
}
KEPT = {"ppm": (), "tif": ("icc_profile", "exif"), "webp": ("icc_profile", "exif")}
SAVED = {
    "ppm": ("PPM", {}),
    "tif": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "webp": ("WEBP", {"lossless": True, "exact": True, "quality": 100}),
}


def in_format(picture, name):
    """A picture as the bytes of a png, ppm, tif or webp file, and the names of the metadata it cannot hold.

    Raises ValueError if the format cannot hold what the picture shows.
    """
    file = BytesIO()
    if name == "png":
        write_png(picture, file)
        return file.getvalue(), []
    if name == "webp" and max(picture.size) >= WEBP_SIDE:
        raise ValueError(
            f"{picture.width}x{picture.height} pixels: a WebP file has {WEBP_SIDE - 1} a side at most"
        )
    deep = isinstance(picture, Deep) or picture.mode == "I;16"
    if deep:
        picture = as_picture(picture)
        if name == "webp" or (name == "tif" and picture.mode != "L"):
            raise ValueError(f"16 bits a sample: no .{name} file of them is written; choose -format png")
    info = dict(picture.info)
    clear = info.pop("transparency", None) is not None or picture.mode in ("LA", "RGBA")
    if clear and name == "ppm":
        raise ValueError("a picture with transparency: a .ppm file has none; choose another -format")
    if deep and name == "ppm":
        return pnm_of(picture), list(info)
    shown = picture = picture.image() if deep else picture
    if picture.mode not in MODES[name] or "transparency" in picture.info:
        shown = picture.convert("RGBA" if clear else "RGB")
    form, how = SAVED[name]
    kept = {tag: info[tag] for tag in KEPT[name] if tag in info}
    shown.info = {}
    shown.save(file, form, **how, **kept)
    return file.getvalue(), [tag for tag in info if tag not in kept]
