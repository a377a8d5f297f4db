"""Generation, progressive loading and super-resolution: the numbers behind the pictures, and the scripts."""

import csv
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import easyGenerate
import progressive
from flow import Codec
from flow.codec.container import _pack_flow, pack, read_head
from flow.codec.stream import DEFAULT, decode_levels, encode
from flow.figures.loading import details, sources
from flow.folder import write_options
from flow.model import build
from flow.zoom import (
    AVERAGED_SCALE,
    BEST_PSNR,
    coarse_bands,
    enlarge,
    load_file,
    load_image,
    measure,
    prefixes,
    restore,
)
from source.rans import Decoder, Truncated
from tests.conftest import make_wild, noise
from utils.arithmetic.integers import centre
from utils.files import save_tensors
from utils.show.interpolation import KERNELS, interpolated
from utils.show.quality import psnr, ssim
from utils.show.sheets import labelled, magnified, save_gif, tiled, to_pillow

LEGALL = dict(hchnl=4, lifting="legall", simplePrior=True)
WILD = {
    "paper": dict(hchnl=4, HUE=True),
    "rgb": dict(hchnl=4, repeat=2),
    "heavy": dict(hchnl=4, heavy=True, size=16),
    "positions": dict(hchnl=4, simplePrior=True, diffDetail=True, size=16),
}


def legall():
    """LeGall 5/3 with details expected to be small, as a trained prior of it would have them."""
    model = build(LEGALL)
    nn.init.constant_(model.detail.mean, centre(0.0))
    nn.init.constant_(model.detail.logscale, -3.5)
    return model


def write_folder(folder, options, model):
    write_options(folder, options)
    tensors = {f"model.{name}": p for name, p in model.state_dict().items()}
    save_tensors(folder / "savings" / "best_test.safetensors", tensors, {"epoch": 3})
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("model"), LEGALL, legall())


@pytest.fixture(scope="module")
def image(photo):
    return photo[0, :, 300:364, 250:298].to(torch.uint8)


def test_psnr():
    x = noise(3, 8, 8).clamp(max=254).to(torch.uint8)
    assert psnr(x, x) == math.inf
    assert psnr(x, x + 1) == pytest.approx(10 * math.log10(65025))


def test_ssim_of_equal_images_and_of_flat_ones():
    x = noise(3, 16, 12).to(torch.uint8)
    assert ssim(x, x) == pytest.approx(1)
    a = (0.01 * 255) ** 2
    flat = [torch.full((3, 11, 11), v, dtype=torch.uint8) for v in (50, 200)]
    assert ssim(*flat) == pytest.approx((2 * 50 * 200 + a) / (50**2 + 200**2 + a))
    with pytest.raises(ValueError, match="10x11"):
        ssim(x[:, :11, :10], x[:, :11, :10])


def test_ssim_of_one_window():
    """The formula, weight by weight, where there is one position only."""
    x, y = (noise(1, 11, 11, seed=s).to(torch.uint8) for s in (1, 2))
    line = torch.exp(-(torch.arange(-5, 6).double() ** 2) / (2 * 1.5**2))
    w = line[:, None] * line / line.sum() ** 2
    mx, my = ((w * v).sum() for v in (x, y))
    vx, vy, vxy = (
        (w * (p - mp) * (q - mq)).sum() for p, mp, q, mq in ((x, mx, x, mx), (y, my, y, my), (x, mx, y, my))
    )
    a, b = 2.55**2, 7.65**2
    expected = (2 * mx * my + a) * (2 * vxy + b) / ((mx**2 + my**2 + a) * (vx + vy + b))
    assert ssim(x, y) == pytest.approx(expected.item())


def test_grids():
    x = noise(3, 3, 2, 4).to(torch.uint8)
    grid = tiled(x, 2)
    assert grid.shape == (3, 5, 9)
    assert torch.equal(grid[:, :2, 5:], x[1]) and torch.equal(grid[:, 3:, :4], x[2])
    assert (grid[:, 3:, 4:] == 255).all() and (grid[:, 2] == 255).all()
    large = magnified(grid, 20)
    assert large.shape == (3, 10, 18) and torch.equal(large[:, ::2, 1::2], grid)


def test_animation(tmp_path):
    frames = [labelled([(noise(3, 8, 8, seed=s).to(torch.uint8), "a\nb")] * 2) for s in range(3)]
    save_gif(frames, tmp_path / "a.gif", 0.5)
    with Image.open(tmp_path / "a.gif") as gif:
        assert (gif.n_frames, gif.size) == (3, frames[0].size)
        times = [gif.seek(i) or gif.info["duration"] for i in range(3)]
    assert times == [500, 500, 1500]


@pytest.mark.parametrize("name", WILD)
def test_coarse_bands_are_those_of_the_pyramid(name):
    model, x = make_wild(build(WILD[name]), 0.1), noise(2, 3, 16, 16)
    bands = coarse_bands(model, x, 3)
    assert torch.equal(bands[0], model.from_images(x)) and torch.equal(bands[3], model.transform(x)[0])
    assert [b.shape[-1] for b in bands] == [16, 8, 4, 2]


@pytest.mark.parametrize("name", WILD)
def test_loading_ends_with_the_image(name):
    model, x = make_wild(build(WILD[name]), 0.1).freeze(), noise(3, 16, 16).to(torch.uint8)
    loaded = list(load_image(model, x, -1.0, torch.Generator().manual_seed(0)))
    assert [stage.level for stage in loaded] == [3, 2, 1, 0]
    assert torch.equal(loaded[-1].image, x) and not torch.equal(loaded[-2].image, x)
    for stage, band in zip(loaded[::-1], coarse_bands(model, x[None], 3)):
        assert torch.equal(stage.coarse, model.to_images(band)[0].clamp(0, 255).to(torch.uint8))
    (encoder,) = encode(model, x[None])
    assert loaded[-1].bytes == len(encoder.finish())


def test_each_level_brings_it_nearer(image):
    loaded = list(load_image(legall().freeze(), image))
    near = [psnr(stage.image, image) for stage in loaded]
    assert near == sorted(near) and near[-2] > 25 and near[-1] == math.inf
    counts = [stage.bytes for stage in loaded]
    assert counts == sorted(set(counts))


def test_no_byte_less_will_do(image):
    model = legall().freeze()
    (encoder,) = encode(model, image[None])
    stream, size = encoder.finish(), image.shape[-2:]
    for level, count in prefixes(model, stream, size):
        *_, (_, _, complete) = decode_levels(model, [Decoder(stream[:count])], size, skip=level)
        assert complete
        with pytest.raises(Truncated):
            list(decode_levels(model, [Decoder(stream[: count - 1])], size, skip=level))
    assert list(prefixes(model, stream[:-1], size)) == list(prefixes(model, stream, size))[:-1]


@pytest.mark.usefixtures("without_webp")
def test_files_load_as_images_do(image):
    model, name = legall().freeze(), "0123456789abcdef"
    image = image // 2 + (noise(3, 64, 48) / 8).to(torch.uint8)  # grainy, lest deflate be smaller
    data = pack(to_pillow(image), model, name)
    expected, start = list(load_image(model, image)), read_head(data).end
    for part, wanted in ((data, expected), (data[:-9], expected[:-1])):
        found = list(load_file(model, name, part))
        assert [(s.level, s.bytes) for s in found] == [(s.level, s.bytes + start) for s in wanted]
        assert all(torch.equal(s.coarse, w.coarse) for s, w in zip(found, wanted))
        # not equal: a prefix brings some symbols of the next level along
        assert all(psnr(s.image, w.image) > 30 for s, w in zip(found, wanted))
        assert all(torch.equal(s.image, image) for s in found if not s.level)
    assert expected[-1].bytes + start == len(data)
    with pytest.raises(ValueError, match="without levels"):
        list(load_file(model, name, pack(Image.new("RGB", (64, 64)), model, name)))


def test_enlarging_keeps_pixels_at_even_places(image):
    large = enlarge(build({"repeat": 0, "simplePrior": True}), image[None], 2)
    assert large.shape == (1, 3, 256, 192) and torch.equal(large[0, :, ::4, ::4], image)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 2), (9, 4)])
def test_enlarges_any_size(size):
    model, x = make_wild(build(WILD["paper"]), 0.05), noise(2, 3, *size).to(torch.uint8)
    assert enlarge(model, x, 2).shape == (2, 3, 4 * size[0], 4 * size[1])


def test_enlarging_is_of_the_finest_level():
    model, x = make_wild(build(WILD["heavy"]), 0.1), noise(1, 3, 16, 16).to(torch.uint8)
    expected = enlarge(model, x, 2)
    model.pyramid.levels = model.pyramid.levels[:1]
    assert torch.equal(enlarge(model, x, 2), expected)


@pytest.mark.parametrize("method", KERNELS)
@pytest.mark.parametrize("factor", [2, 4])
def test_interpolation_is_of_samples_at_even_pixels(method, factor):
    x, (height, width) = noise(2, 3, 5, 6), (5 * factor - 1, 6 * factor)
    large = interpolated(x, (height, width), factor, method)
    assert torch.allclose(large[..., ::factor, ::factor], x.double(), atol=1e-9)
    flat = interpolated(torch.full((1, 2), 7.0), (3, 9), factor, method)
    assert torch.allclose(flat, torch.full_like(flat, 7), atol=1e-9)
    ramp = interpolated(torch.arange(9.0).expand(9, 9), (9 * factor, 9 * factor), factor, method)
    error = (ramp - torch.arange(9.0 * factor) / factor)[..., 3 * factor : -3 * factor].abs().max()
    assert error < {"nearest": 0.51, "bicubic": 1e-9, "Lanczos": 0.02}[method]


def test_bicubic_is_keys_cubic_convolution():
    impulse = interpolated(torch.eye(7)[3:4], (1, 14), 2, "bicubic")
    assert torch.allclose(impulse[0, 3:10], torch.tensor([-1, 0, 9, 16, 9, 0, -1]).double() / 16)


@pytest.mark.parametrize("name", ["paper", "legall"])
def test_restoring_is_from_the_model_s_own_coarse_band(name, photo):
    model = make_wild(build(WILD["paper"]), 0.02) if name == "paper" else legall()
    x = photo[..., 100:165, 100:164].to(torch.uint8)
    for levels in (1, 2):
        top, details = model.transform(x, levels)
        back = restore(model, x, levels)
        assert {b.shape for b in back.values()} == {x.shape} and {b.dtype for b in back.values()} == {x.dtype}
        step = 2**levels
        near = back["nearest"][..., ::step, ::step]
        assert torch.equal(near, model.to_images(top).clamp(0, 255).to(torch.uint8))
        single = restore(model, x, levels, AVERAGED_SCALE, torch.Generator().manual_seed(0))["learned"]
        assert psnr(single, back["learned"]) + 6 < psnr(back["averaged"], back["learned"]) < math.inf
        if name == "legall":  # whose means are 0
            expected = model.inverse(top, [[torch.zeros_like(b) for b in detail] for detail in details])
            assert torch.equal(back["learned"], expected.clamp(0, 255).to(torch.uint8))


def test_measure(photo):
    model, x = legall(), photo[..., 100:164, 100:165].to(torch.uint8)
    means = measure(model, torch.cat([x, x.flip(-1)]), 1, batch=1)
    back = [restore(model, y, 1)["bicubic"][0] for y in (x, x.flip(-1))]
    expected = sum(map(psnr, back, (x[0], x[0].flip(-1)))) / 2
    assert means["bicubic"][0] == pytest.approx(expected) and list(means) == [*KERNELS, "learned", "averaged"]
    assert (
        means["nearest"][0] + 2 < means["learned"][0] < 60 and means["nearest"][1] < means["learned"][1] < 1
    )
    flat = measure(model, torch.full((1, 3, 16, 16), 9, dtype=torch.uint8), 2)
    assert flat["bicubic"] == pytest.approx((BEST_PSNR, 1))


def samples(folder, out, *extra):
    easyGenerate.main(["-folder", folder, "-out", str(out), "-num", "2", *extra])
    (path,) = out.glob("*.npz")
    assert {p.suffix for p in out.glob(f"{path.stem}*")} == {".png", ".pdf", ".npz"}
    with np.load(path) as file:
        return file["images"]


def test_samples_are_seeded(folder, tmp_path):
    first, again, other = (
        samples(folder, tmp_path / str(i), "-size", "12", "-seed", seed) for i, seed in enumerate("001")
    )
    assert first.shape == (4, 12, 12, 3) and first.dtype == np.uint8
    assert (first == again).all() and (first != other).any()


def test_generation_keeps_coarse_bands(folder, tmp_path):
    """With no level to generate what comes out is what the data set holds, and near it with one."""
    kept = samples(folder, tmp_path / "0", "-from", "coarse", "-depth", "0", "-size", "24")
    redone = samples(folder, tmp_path / "1", "-from", "coarse", "-depth", "1", "-size", "24", "-mean")
    x, y = (torch.from_numpy(a).movedim(-1, -3) for a in (kept, redone))
    assert 20 < psnr(x, y) < math.inf


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_progressive_script(folder, image, tmp_path, capsys):
    to_pillow(image).convert("L").save(tmp_path / "grey.png")
    to_pillow(image[:, :5, :7]).save(tmp_path / "tiny.png")
    names = [str(tmp_path / name) for name in ("grey.png", "tiny.png")]
    progressive.main(["-folder", folder, "-out", str(tmp_path / "pic"), "-exdepth", "1", "-img", *names])
    written = [line for line in capsys.readouterr().out.splitlines() if line]
    assert len(written) == 11 and all((tmp_path / line).exists() for line in written)
    rows = rows_of(tmp_path / "pic" / "progressive.csv")
    assert [row["psnr"] for row in rows if row["level"] == "0"] == ["inf", "inf"]
    assert [row["image"] for row in rows] == ["grey_0"] * 6 + ["tiny_1"] * 3
    for name, size in (("superresolution", (7, 5)), ("enlarged", (14, 10))):
        with Image.open(tmp_path / "pic" / name / "tiny_1_learned.png") as large:
            assert large.size == size
    with Image.open(tmp_path / "pic" / "progressive" / "grey_0_level_2_coarse.png") as coarse:
        assert coarse.size == (12, 16)


@pytest.mark.usefixtures("by_flow")
def test_files_that_are_cut_or_damaged_are_told(folder, image, tmp_path, capsys):
    """As far as they are whole, they are loaded; refused where they are known to be wrong."""
    file = tmp_path / "it.nwf"
    data = Codec(folder).compress(to_pillow(image // 2 + (noise(3, 64, 48) / 8).to(torch.uint8)))
    argv = ["-folder", folder, "-out", str(tmp_path / "pic"), "-exdepth", "0", "-img", str(file)]
    for changed, level in ((data, 0), (data[: len(data) * 2 // 3], 1), (data[:-1], 1)):
        file.write_bytes(changed)
        progressive.main(argv)
        told = f"{file}: the file is cut: loaded down to level {level}\n"
        assert capsys.readouterr().err == told * (level > 0)
        assert rows_of(tmp_path / "pic" / "progressive.csv")[-1]["level"] == str(level)
    begin = read_head(data).end
    for changed, words in (
        (data + b"\0", "its end is not"),
        (data[:-2] + bytes([data[-2] ^ 1]) + data[-1:], "corrupt"),
        (b"junk", "not a .nwf"),
        (data[: begin + 3], "cut"),
    ):
        file.write_bytes(changed)
        with pytest.raises(SystemExit) as end:
            progressive.main(argv)
        error = capsys.readouterr().err
        assert end.value.code == 2 and error.count("\n") == 1
        assert error.startswith(f"progressive.py: {file}: ") and words in error


def test_a_sound_file_of_clipped_colours_is_loaded_behind_a_transform(image):
    """Guesses at what several levels lack may make up for each other, and are not taken for pixels."""
    model, key = legall().freeze(), "0" * 64
    picture = to_pillow((4 * image.int() - 300).clamp(0, 255).to(torch.uint8))
    data = b"".join(_pack_flow(picture, b"", model, key, DEFAULT))
    stages = list(load_file(model, key, data))
    assert stages[-1].level == 0 and len(stages) > 4
    assert np.array_equal(stages[-1].image.permute(1, 2, 0).numpy(), np.asarray(picture))


def test_files_are_known_by_their_suffix_in_any_letters(tmp_path):
    options = {"img": [str(tmp_path / "IMAGE.NWF")], "baseScale": 0.0}
    (tmp_path / "IMAGE.NWF").write_bytes(b"")
    ((_, _, stages),) = sources(options, None, "", 32, None)
    assert stages.__name__ == "load_file" and "its means" in details(options, "baseScale")


def test_measure_script(folder, tmp_path):
    progressive.main(["-folder", folder, "-out", str(tmp_path), "-measure", "3"])
    rows = rows_of(tmp_path / "superresolution_measured.csv")
    assert len(rows) == 10 and {row["images"] for row in rows} == {"3"}


@pytest.mark.parametrize(
    "script, argv",
    [
        (easyGenerate, ["-num", "0"]),
        (easyGenerate, ["-size", "-1"]),
        (easyGenerate, ["-baseScale", "nan"]),
        (easyGenerate, ["-from", "coarse", "-target", "nothing"]),
        (easyGenerate, ["-from", "coarse", "-depth", "9"]),
        (easyGenerate, ["-from", "coarse", "-num", "1000"]),
        (easyGenerate, ["-folder", "nowhere"]),
        (easyGenerate, ["-seed", "-1"]),
        (progressive, ["-num", "0"]),
        (progressive, ["-exBaseScale", "21"]),
        (progressive, ["-exdepth", "-1"]),
        (progressive, ["-target", "nothing"]),
        (progressive, ["-img", "nothing.png"]),
        (progressive, ["-img", "nothing.nwf"]),
        (progressive, ["-img", __file__]),
        (progressive, ["-measure", "2", "-size", "8"]),
        (progressive, ["-folder", "nowhere"]),
    ],
)
def test_bad_input_is_one_line(script, argv, folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        script.main(["-folder", folder, "-out", str(tmp_path), *argv])
    message = capsys.readouterr().err.strip()
    assert caught.value.code == 2 and message and "\n" not in message


def test_a_model_of_positions_enlarges_nothing(tmp_path, capsys):
    folder = write_folder(tmp_path / "model", WILD["positions"], make_wild(build(WILD["positions"]), 0.05))
    progressive.main(["-folder", folder, "-num", "1", "-size", "16", "-exdepth", "2"])
    assert "super-resolution" in capsys.readouterr().out
    assert not (tmp_path / "model" / "pic" / "superresolution.png").exists()
