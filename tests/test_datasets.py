"""Every data set, in every layout in which it is published, comes back pixel for pixel, or says why not."""

import hashlib
import http.server
import io
import os
import pickle
import re
import shutil
import tarfile
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from utils.data import datasets
from utils.data.datasets import SIDES, TARGETS, choose_sides, load
from utils.data.images import halve, image_files, read_rgb


def pixels(count, size, seed=0):
    """Draw rows of pixels, as the published sets hold them: (count, 3 * size * size) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3 * size * size), np.uint8)


def dump(path, content, protocol=2):
    """Write a pickle, with the folders that lead to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol))


def images_of(*shards):
    """Join the rows (N, 3 * S * S) of shards into the tensor (N, 3, S, S) that should come back."""
    rows = np.concatenate(shards)
    size = int((rows.shape[1] // 3) ** 0.5)
    return torch.from_numpy(rows.reshape(-1, 3, size, size))


def write_cifar(folder):
    """Write a small CIFAR-10 and return what load should give for its two parts."""
    batches = {f"data_batch_{i}": pixels(2, 32, i) for i in range(1, 6)} | {"test_batch": pixels(3, 32)}
    for name, rows in batches.items():
        dump(folder / name, {b"data": rows, b"labels": [0] * len(rows), b"batch_label": b"a batch"})
    *train, test = batches.values()
    return {"train": images_of(*train), "test": images_of(test)}


def write_photo(path, height, width, seed=0):
    """Write a PNG of noise and return it as (3, H, W)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    x = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(x).save(path)
    return torch.from_numpy(x).permute(2, 0, 1)


def message(*args, **options):
    """Return the error of a load that must fail; it is one line."""
    with pytest.raises(ValueError) as caught:
        load(*args, progress=False, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_targets_and_parts_are_named():
    assert list(TARGETS) == ["photos", "CIFAR", "ImageNet32", "ImageNet64", "joint"]
    assert "photos, CIFAR, ImageNet32, ImageNet64, joint nor a folder" in message("nothing", "train")
    assert "need train or test" in message("photos", "val")
    assert "size 0" in message("photos", "train", size=0)


def test_photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (train,), (test,) = load("photos", "train"), load("photos", "test")
    for x in (train, test):
        assert x.dtype == torch.uint8 and x.shape[1:] == (3, 32, 32) and x.is_contiguous()
    assert len(train) > 10_000 and len(test) > 1_000
    assert torch.equal(test, load("photos", "test")[0])


def test_photos_are_split_by_photograph(monkeypatch):
    read = []
    monkeypatch.setattr(datasets, "read_rgb", lambda path: read.append(path) or read_rgb(path))
    load("photos", "test", size=256)
    assert {path.stem for path in read} == datasets.TEST_PHOTOS
    load("photos", "train", size=256)
    assert sorted(read) == image_files(datasets.PHOTOS)


def test_photos_at_several_scales(tmp_path, monkeypatch):
    photo = write_photo(tmp_path / "lake-sherburne.png", 19, 13)
    monkeypatch.setattr(datasets, "PHOTOS", tmp_path)
    (x,) = load("photos", "test", size=3)
    half, quarter = halve(photo), halve(halve(photo))
    corners = [(photo, r, c) for r in (0, 3, 6, 9, 12, 15) for c in (0, 3, 6, 9)]
    corners += [(half, r, c) for r in (0, 3, 6) for c in (0, 3)] + [(quarter, 0, 0)]
    assert torch.equal(x, torch.stack([image[:, r : r + 3, c : c + 3] for image, r, c in corners]))


def test_photos_overlap_by_a_quarter_where_they_train(tmp_path, monkeypatch):
    photo = write_photo(tmp_path / "one.png", 7, 10)
    monkeypatch.setattr(datasets, "PHOTOS", tmp_path)
    (x,) = load("photos", "train", size=4)
    corners = [(r, c) for r in (0, 3) for c in (0, 3, 6)]
    assert torch.equal(x, torch.stack([photo[:, r : r + 4, c : c + 4] for r, c in corners]))


def test_photos_too_small():
    text = message("photos", "test", size=1000)
    assert text == f"{datasets.PHOTOS}: no image holds 1000x1000 pixels; the largest is 960x540"


@pytest.mark.parametrize("folder", ["cifar", "CIFAR", "cifar10", "."])
def test_cifar_is_found(tmp_path, folder):
    expected = write_cifar(tmp_path / folder / "cifar-10-batches-py")
    for part in ("train", "test"):
        (x,) = load("CIFAR", part, tmp_path, size=64)
        assert torch.equal(x, expected[part])


def test_cifar_must_be_whole(tmp_path):
    write_cifar(tmp_path / "cifar")
    (tmp_path / "cifar" / "data_batch_5").unlink()
    assert "CIFAR: no data_batch_5; put" in message("CIFAR", "train", data=tmp_path)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serve a small CIFAR-10 archive on this machine; gives the archive's path and what it holds."""
    source = tmp_path / "served"
    expected = write_cifar(source / "cifar-10-batches-py")
    archive = source / "cifar.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(source / "cifar-10-batches-py", "cifar-10-batches-py")
        stray = tarfile.TarInfo("../stray")
        stray.size = 1
        tar.addfile(stray, io.BytesIO(b"x"))
        link = tarfile.TarInfo("cifar-10-batches-py/test_batch")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)

    class Handler(http.server.SimpleHTTPRequestHandler):
        before_reply = staticmethod(lambda: None)

        def __init__(self, *args):
            super().__init__(*args, directory=source)

        def do_GET(self):
            self.before_reply()
            super().do_GET()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setattr(datasets, "CIFAR_ADDRESS", f"http://127.0.0.1:{httpd.server_port}/{archive.name}")
        monkeypatch.setattr(datasets, "CIFAR_MD5", hashlib.md5(archive.read_bytes()).hexdigest())
        yield Handler, expected
        httpd.shutdown()
        thread.join()


def test_cifar_is_downloaded_once(tmp_path, server, monkeypatch):
    _, expected = server
    data = tmp_path / "a" / "data"
    assert torch.equal(load("CIFAR", "train", data, progress=False)[0], expected["train"])
    monkeypatch.setattr(datasets, "CIFAR_ADDRESS", "http://127.0.0.1:9/gone")
    assert torch.equal(load("CIFAR", "test", data)[0], expected["test"])
    assert [path.name for path in data.iterdir()] == ["cifar-10-batches-py"]
    batches = sorted(path.name for path in (data / "cifar-10-batches-py").iterdir())
    assert batches == [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    assert not list(tmp_path.rglob("stray"))


def test_cifar_may_be_downloaded_by_two_at_once(tmp_path, server):
    handler, expected = server
    data = tmp_path / "data"
    handler.before_reply = staticmethod(lambda: write_cifar(data / "cifar-10-batches-py"))
    assert torch.equal(load("CIFAR", "train", data, progress=False)[0], expected["train"])
    assert [path.name for path in data.iterdir()] == ["cifar-10-batches-py"]


def test_cifar_download_shows_its_progress_on_a_terminal(tmp_path, server, capsys, monkeypatch):
    load("CIFAR", "test", tmp_path / "log")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    load("CIFAR", "test", tmp_path / "quiet", progress=False)
    assert capsys.readouterr().err == ""
    load("CIFAR", "test", tmp_path / "shown")
    assert "CIFAR: 100%" in capsys.readouterr().err


def test_damaged_download_leaves_nothing(tmp_path, server, monkeypatch):
    monkeypatch.setattr(datasets, "CIFAR_MD5", "0" * 32)
    assert f"not {'0' * 32}" in message("CIFAR", "train", data=tmp_path / "data")
    assert not (tmp_path / "data").exists()
    (tmp_path / "data").mkdir()
    assert f"not {'0' * 32}" in message("CIFAR", "train", data=tmp_path / "data")
    assert (tmp_path / "data").exists() and not list((tmp_path / "data").iterdir())


@pytest.mark.parametrize("page", ["absent", "served-as-text"])
def test_download_of_something_else(tmp_path, server, monkeypatch, page):
    (tmp_path / "served" / "served-as-text").write_text("<html>Please log in</html>")
    address = datasets.CIFAR_ADDRESS.replace("cifar.tar.gz", page)
    monkeypatch.setattr(datasets, "CIFAR_ADDRESS", address)
    digest = hashlib.md5((tmp_path / "served" / "served-as-text").read_bytes()).hexdigest()
    monkeypatch.setattr(datasets, "CIFAR_MD5", digest)
    assert f"put cifar-10-batches-py from {address} into" in message("CIFAR", "train", data=tmp_path / "data")


def test_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(datasets, "CIFAR_ADDRESS", "http://127.0.0.1:9/cifar.tar.gz")
    text = message("CIFAR", "train", data=tmp_path / "data")
    assert text.startswith("CIFAR: download failed (") and text.endswith(
        f"put cifar-10-batches-py from http://127.0.0.1:9/cifar.tar.gz into {tmp_path / 'data'}"
    )


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("size", [32, 64])
def test_imagenet_pickles(tmp_path, size, protocol):
    rows = pixels(3, size)
    content = {"data": rows, "labels": [1, 2, 3], "mean": rows.mean(0), "one": rows.mean()}
    dump(tmp_path / f"ImageNet{size}" / "val_data", content, protocol)
    (x,) = load(f"ImageNet{size}", "test", tmp_path)
    assert torch.equal(x, images_of(rows))


def test_npz_and_pickles_are_equal(tmp_path):
    rows = [pixels(2, 32, 1), np.asfortranarray(pixels(3, 32, 2))]
    for name, save in (("packed", np.savez_compressed), ("plain", np.savez)):
        folder = tmp_path / name / "Imagenet32_train_npz"
        folder.mkdir(parents=True)
        for i, part in enumerate(rows, 1):
            save(folder / f"train_data_batch_{i}.npz", data=part, labels=[0] * len(part))
            dump(tmp_path / "pickles" / "Imagenet32_train" / f"train_data_batch_{i}", {"data": part})
    for name in ("packed", "plain", "pickles"):
        (x,) = load("ImageNet32", "train", tmp_path / name)
        assert torch.equal(x, images_of(*rows))


def test_all_shards_are_read_in_the_order_of_their_numbers(tmp_path):
    rows = [pixels(1 + i % 3, 64, i) for i in range(1, 12)]
    for i, part in enumerate(rows, 1):
        # as the archives of ImageNet64 unpack: in two folders
        folder = tmp_path / f"Imagenet64_train_part{1 + i % 2}" / "inside"
        dump(folder / f"train_data_batch_{i}", {"data": part})
    assert torch.equal(load("ImageNet64", "train", tmp_path)[0], images_of(*rows))


def test_absent_and_missing_shards(tmp_path):
    for data in (tmp_path, tmp_path / "absent"):
        text = message("ImageNet64", "test", data=data)
        assert text == (
            "ImageNet64: no val_data; put train_data_batch_1 and so on and val_data, "
            f"as published (pickled or .npz), into {data / 'ImageNet64'}"
        )
    dump(tmp_path / "ImageNet64" / "train_data_batch_1", {"data": pixels(1, 64)})
    dump(tmp_path / "ImageNet64" / "train_data_batch_3", {"data": pixels(1, 64)})
    assert "ImageNet64: no train_data_batch_2; put" in message("ImageNet64", "train", data=tmp_path)


def test_a_shard_that_is_there_twice(tmp_path):
    dump(tmp_path / "ImageNet32" / "val_data", {"data": pixels(1, 32)})
    np.savez(tmp_path / "ImageNet32" / "val_data.npz", data=pixels(1, 32))
    text = message("ImageNet32", "test", data=tmp_path)
    assert "keep one of" in text and "val_data.npz" in text


def test_joint_is_all_three(tmp_path):
    expected = [write_cifar(tmp_path / "cifar")["test"]]
    for size in (32, 64):
        rows = pixels(2, size)
        dump(tmp_path / f"ImageNet{size}" / "val_data", {"data": rows})
        expected.append(images_of(rows))
    joint = load("joint", "test", tmp_path)
    assert len(joint) == 3 and all(map(torch.equal, joint, expected))


def write_published(tmp_path):
    """Write the test parts of the published sets and return what load should give for each."""
    expected = {"CIFAR": write_cifar(tmp_path / "cifar")["test"]}
    for size in (32, 64):
        rows = pixels(2, size, size)
        dump(tmp_path / f"ImageNet{size}" / "val_data", {"data": rows})
        expected[f"ImageNet{size}"] = images_of(rows)
    return expected


def test_joined_targets_of_one_size_are_one_tensor(tmp_path):
    expected = write_published(tmp_path)
    folder = tmp_path / "folder"
    photos = [write_photo(folder / f"{i}.png", 64, 64, i) for i in range(2)]
    (x,) = load(f"ImageNet64+{folder}", "test", tmp_path, size=64)
    assert torch.equal(x, torch.cat([expected["ImageNet64"], photos[0][None]]))
    (x,) = load("ImageNet32+CIFAR", "test", tmp_path)
    assert torch.equal(x, torch.cat([expected["ImageNet32"], expected["CIFAR"]]))


def test_joined_targets_of_several_sizes(tmp_path):
    expected = write_published(tmp_path)
    large, small = load("ImageNet64+photos+CIFAR", "test", tmp_path, size=32)
    assert torch.equal(large, expected["ImageNet64"])
    assert torch.equal(small, torch.cat([load("photos", "test")[0], expected["CIFAR"]]))
    assert [x.shape[-1] for x in load("CIFAR+photos", "test", tmp_path, size=48)] == [32, 48]
    small, large = load("joint+CIFAR", "test", tmp_path)
    names = "CIFAR", "ImageNet32", "CIFAR"
    assert torch.equal(small, torch.cat([expected[name] for name in names])) and len(large) == 2


def test_a_folder_may_have_a_plus_in_its_name(tmp_path):
    folder = tmp_path / "one+two"
    photos = [write_photo(folder / f"{i}.png", 4, 4, i) for i in range(2)]
    (x,) = load(folder, "test", size=4)
    assert torch.equal(x, photos[0][None])


@pytest.mark.parametrize("target", ["photos+nothing", "photos+", "+photos", "photos++CIFAR", ""])
def test_every_joined_target_is_one(target):
    text = message(target, "test")
    assert text.startswith(
        f"target {'nothing' if 'nothing' in target else ''!r}: neither one of photos, CIFAR"
    )


@pytest.mark.parametrize(
    ("target", "size", "sides"),
    [
        ("photos", None, (32, 32)),
        ("photos", 48, (48, 48)),
        ("CIFAR", None, (32, 32)),
        ("ImageNet64", 64, (64, 64)),
        ("joint", None, (32, None)),
        ("CIFAR+ImageNet32", None, (32, 32)),
        ("CIFAR+ImageNet32", 32, (32, 32)),
        ("CIFAR+ImageNet64", None, (32, None)),
        ("photos+ImageNet64", None, (64, 64)),
        ("photos+ImageNet64", 64, (64, 64)),
        ("photos+ImageNet64", 32, (32, None)),
        ("photos+some/folder", None, (32, 32)),
        ("some/folder+CIFAR", 16, (16, None)),
        ("photos+joint", None, (32, None)),
        ("photos+joint", 32, (32, None)),
        ("photos+CIFAR+ImageNet64", 64, (64, None)),
    ],
)
def test_sides(target, size, sides):
    assert choose_sides(target, size) == sides


@pytest.mark.parametrize("target", ["CIFAR", "CIFAR+ImageNet32", "joint", "CIFAR+ImageNet64"])
@pytest.mark.parametrize("size", [16, 64])
def test_sides_of_published_sets_are_their_own(target, size):
    with pytest.raises(ValueError, match=rf"-size {size}: the images of {re.escape(target)} have their own"):
        choose_sides(target, size)


def test_sides_are_those_of_the_images(tmp_path):
    write_published(tmp_path)
    for target, sides in SIDES.items():
        assert {x.shape[-1] for x in load(target, "test", tmp_path)} == set(sides)
    assert SIDES.keys() == TARGETS.keys() - {"photos"}


def shard_error(tmp_path, content, name="val_data"):
    """Return the error of a shard with the given bytes; it names the file."""
    path = tmp_path / "ImageNet32" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    text = message("ImageNet32", "test", data=tmp_path)
    assert text.startswith(f"{path}: not a whole shard of images (")
    return text


class Command:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_malicious_pickle_is_refused_without_running(tmp_path, protocol):
    marker = tmp_path / "was_run"
    content = pickle.dumps({"data": Command(marker)}, protocol)
    assert "it asks for" in shard_error(tmp_path, content)
    assert not marker.exists()
    pickle.loads(content)
    assert marker.exists()  # the pickle does bite


def test_malicious_objects_in_arrays_are_refused_without_running(tmp_path):
    marker = tmp_path / "was_run"
    array = np.array([Command(marker)], object)
    assert "it asks for" in shard_error(tmp_path, pickle.dumps({"data": array}))
    (tmp_path / "ImageNet32" / "val_data").unlink()
    file = io.BytesIO()
    np.savez(file, data=array)
    assert "allow_pickle=False" in shard_error(tmp_path, file.getvalue(), "val_data.npz")
    assert not marker.exists()


class Forged:
    """Pickles as an array of pointers to objects, made of the file's own bytes: numpy itself follows them."""

    class Dtype:
        """A dtype of objects that claims to hold none."""

        def __reduce__(self):
            return np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0)

    def __reduce__(self):
        function, arguments, _ = np.zeros(1).__reduce__()
        return function, arguments, (1, (1, 3072), Forged.Dtype(), False, b"\x01" * 8 * 3072)


def test_forged_array_is_refused(tmp_path):
    assert "data are 'O8', not uint8" in shard_error(tmp_path, pickle.dumps({"data": Forged()}, 2))


@pytest.mark.parametrize("content", [b"\x80\x02Nr\x00\x00\x10\x00.", b"Np1048576\n."], ids=["binary", "text"])
def test_memo_larger_than_its_pickle_is_refused(tmp_path, content):
    assert f"a memo of {1 << 20} objects in {len(content)} bytes" in shard_error(tmp_path, content)


@pytest.mark.parametrize(
    "data",
    [pixels(2, 32).astype(np.int16), pixels(2, 32)[:, 1:], pixels(2, 32).reshape(2, 3, 32, 32)],
    ids=["int16", "narrow", "images"],
)
def test_other_data_are_refused(tmp_path, data):
    assert "not uint8" in shard_error(tmp_path, pickle.dumps({"data": data}, 2))
    (tmp_path / "ImageNet32" / "val_data").unlink()
    file = io.BytesIO()
    np.savez(file, data=data)
    assert "not uint8 (N, 3072)" in shard_error(tmp_path, file.getvalue(), "val_data.npz")


@pytest.mark.parametrize("content", [{}, {"data": None}, [pixels(1, 32)], {"data": b"bytes"}])
def test_pickles_without_an_array_are_refused(tmp_path, content):
    assert "no array under 'data'" in shard_error(tmp_path, pickle.dumps(content, 2))


def test_damaged_shards_are_refused(tmp_path):
    file = io.BytesIO()
    np.savez_compressed(file, data=pixels(4, 32))
    pickled = pickle.dumps({"data": pixels(4, 32)}, 2)
    for name, whole in (("val_data", pickled), ("val_data.npz", file.getvalue())):
        for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
            shard_error(tmp_path, whole[:length], name)
        shard_error(tmp_path, b"text" + whole[4:], name)
        shutil.rmtree(tmp_path / "ImageNet32")


def test_shard_that_claims_more_rows_than_it_has(tmp_path):
    whole = pickle.dumps({"data": pixels(2, 32)}, 4)
    forged = whole.replace(b"K\x02M\x00\x0c\x86", b"K\x03M\x00\x0c\x86")  # the shape (2, 3072) -> (3, 3072)
    assert forged != whole
    assert "cannot reshape" in shard_error(tmp_path, forged)


@pytest.mark.parametrize("workers", [0, 3])
def test_folder_is_split_by_file(tmp_path, workers):
    photos = [write_photo(tmp_path / f"{i:02}.png", 9, 13, i) for i in range(21)]
    expected = {"train": [], "test": []}
    for i, photo in enumerate(photos):
        patches = [photo[:, r : r + 4, c : c + 4] for r in (0, 4) for c in (0, 4, 8)]
        expected["test" if i in (0, 10, 20) else "train"] += patches
    for part, patches in expected.items():
        (x,) = load(str(tmp_path), part, size=4, workers=workers)
        assert torch.equal(x, torch.stack(patches))


@pytest.mark.parametrize("name", ["test", "val"])
def test_folder_with_parts(tmp_path, name):
    for i in range(3):
        write_photo(tmp_path / "train" / "more" / f"{i}.png", 4, 4, i)
    held = write_photo(tmp_path / name / "0.png", 4, 4, 9)
    assert len(load(tmp_path, "train", size=4)[0]) == 3
    assert torch.equal(load(tmp_path, "test", size=4)[0], held[None])
    (tmp_path / name / "0.png").unlink()
    assert f"{tmp_path / name}: no image files" in message(tmp_path, "test", size=4)


def test_small_images_of_a_folder_are_skipped(tmp_path):
    write_photo(tmp_path / "train" / "0.png", 3, 90)
    large = write_photo(tmp_path / "train" / "1.png", 4, 5)
    (tmp_path / "val").mkdir()
    assert torch.equal(load(tmp_path, "train", size=4)[0], large[None, :, :, :4])
    text = message(tmp_path, "train", size=6)
    assert text == f"{tmp_path}: no image holds 6x6 pixels; the largest is 5x4"


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize(("scales", "count"), [(1, 28), (2, 34), (3, 35), (9, 35)])
def test_folder_at_several_scales(tmp_path, part, scales, count):
    photos = [write_photo(tmp_path / f"{i}.png", 12, 21, i) for i in range(3)]
    expected = []
    for photo in photos[:1] if part == "test" else photos[1:]:
        half = halve(photo)
        corners = [(photo, r, c) for r in range(0, 10, 3) for c in range(0, 19, 3)]
        corners += [(half, r, c) for r in (0, 3) for c in (0, 3, 6)]
        corners += [(halve(half), 0, 0)]
        expected += [image[:, r : r + 3, c : c + 3] for image, r, c in corners[:count]]
    (x,) = load(tmp_path, part, size=3, scales=scales)
    assert torch.equal(x, torch.stack(expected))


def test_scales_of_photos_are_all_that_there_are():
    assert torch.equal(load("photos", "test", scales=1)[0], load("photos", "test", scales=3)[0])
    assert message("photos", "test", scales=0) == "scales 0: need at least 1"


@pytest.mark.parametrize("part", ["train", "test"])
def test_too_few_images_to_split(tmp_path, part):
    assert "0 image files; need 2" in message(tmp_path, part)
    write_photo(tmp_path / "one.png", 32, 32)
    assert "1 image files; need 2" in message(tmp_path, part)


def test_bad_image_in_a_folder_is_named(tmp_path):
    write_photo(tmp_path / "0.png", 32, 32)
    (tmp_path / "1.png").write_text("text")
    assert f"{tmp_path / '1.png'}: not an image" in message(tmp_path, "train", workers=2)
