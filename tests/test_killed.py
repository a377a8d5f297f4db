"""Training and the coding of a folder, killed at random moments: all files whole, and the end the same.

Three moments of each; the variable NWF_KILLS gives another number:

    NWF_KILLS=10 python -m pytest tests/test_killed.py
"""

import json
import os
import random
import subprocess
import sys

import pytest
from PIL import Image
from test_training import assert_same_training, contents

from utils.box import BOX, ROOT
from utils.data.datasets import PHOTOS
from utils.files import load_tensors

KILLS = int(os.environ.get("NWF_KILLS", 3))
# Starts scripts in children that are forked when all is imported, so that a start takes no seconds, and kills
# them. Reads [script, arguments, seconds or null], writes [status, seconds].
SERVER = """
import importlib, json, os, signal, sys, time
import flow.codec.evaluate, flow.codec.files, flow.start, flow.training, utils.data.crops
for line in sys.stdin:
    script, argv, limit = json.loads(line)
    start = time.monotonic()
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = 0
        try:
            importlib.import_module(script).main(argv)
        except SystemExit as end:
            status = end.code
        os._exit(status or 0)
    if limit is not None:
        time.sleep(limit)
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([status, time.monotonic() - start]), flush=True)
"""


@pytest.fixture(scope="module")
def run():
    """Run a script with arguments, killed after so many seconds, if any; returns its status and seconds."""
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-c", SERVER], cwd=ROOT, env=environment, **pipes) as server:

        def ask(script, argv, limit=None):
            server.stdin.write(json.dumps([script, [str(a) for a in argv], limit]) + "\n")
            server.stdin.flush()
            return json.loads(server.stdout.readline())

        yield ask


def killed(run, tmp_path, script, argv_of, check, seed):
    """Kill a script at random moments, go on each time, begin anew when it has finished; check all folders.

    argv_of: folder -> arguments to begin, or to go on where there is something. check: folder, finished.
    """
    draw, left, begun = random.Random(seed), KILLS, 0
    whole = tmp_path / "whole"
    status, seconds = run(script, argv_of(whole))
    assert status == 0
    while left:
        folder, status, begun = tmp_path / str(begun), -9, begun + 1
        while status:
            limit = draw.uniform(0.2, 1) * seconds if left else None  # before, it but starts
            status, _ = run(script, argv_of(folder), limit)
            assert status in ((0, -9) if left else (0,)), "only a kill ends it early"
            left -= status == -9
            check(folder, whole, status == 0)


@pytest.fixture
def images(tmp_path):
    """Eleven small pieces of a photograph."""
    folder = tmp_path / "images"
    folder.mkdir()
    with Image.open(PHOTOS / "casa-mila.png") as photo:
        for i in range(11):
            photo.crop((40 * i, 60, 40 * i + 24, 68 + 4 * i)).convert("RGB").save(folder / f"{i:02}.png")
    return folder


def test_training(run, images, tmp_path):
    options = "-size 8 -hchnl 4 -batch 8 -epoch 6 -lr 0.01 -savePeriod 2".split()

    def argv_of(folder):
        load = ["-load"] if (folder / "parameter.json").exists() else []
        return ["-target", images, *options, "-folder", folder, *load]

    def check(folder, whole, finished):
        for path in folder.rglob("[!.]*"):
            if path.suffix in (".safetensors", ".xz"):
                load_tensors(path)
            elif path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".csv":
                lines, wanted = (f.read_text().splitlines() for f in (path, whole / path.relative_to(folder)))
                rows = [[line.split(",")[:4] for line in table] for table in (lines, wanted)]  # without times
                assert rows[0] == rows[1][: len(lines)]
            elif path.suffix == ".png":
                with Image.open(path) as picture:
                    picture.load()
            else:
                assert path.is_dir()
        if finished:
            assert_same_training(folder, whole)
            assert not list(folder.rglob(".*"))

    killed(run, tmp_path, "easymain", argv_of, check, seed=0)


def test_coding_a_folder(run, images, tmp_path):
    def argv_of(folder):
        return ["-folder", BOX / "paper", "-img", images, "-out", folder, "-jobs", 2]

    def check(folder, whole, finished):
        found, wanted = contents(folder), contents(whole)
        made = {path: data for path, data in found.items() if not path.name.startswith(".")}
        assert all(wanted[path] == data for path, data in made.items())
        assert not finished or found == wanted

    killed(run, tmp_path, "easyEncode", argv_of, check, seed=1)
