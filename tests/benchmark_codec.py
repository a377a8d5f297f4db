"""Time and memory of encoding to bytes and decoding from them; now, and beside the repository's own past.

    python tests/benchmark_codec.py                      the model of the box and two untrained ones
    python tests/benchmark_codec.py -models model -effort 5            with corrections; without, if not said
    python tests/benchmark_codec.py -models model -against c1c5e26     beside an earlier commit
    python tests/benchmark_codec.py -side 1024 4096      larger photographs: time and memory for each pixel
    python tests/benchmark_codec.py -ways                ways to sum products, and whether bytes are equal
    python tests/benchmark_codec.py -jobs                easyEncode.py on 25 pictures, by one job and by two
    python tests/benchmark_codec.py -steady 20 -against c1c5e26        the slowest of fresh processes

A 512x512 photograph, and 32x32 patches one by one and in batches. Times are for an image: the best of -runs,
and after a stroke their median. Memory is the peak of a process of its own, less what it holds after imports
and a tiny image. "networks" is their share of a run on one thread, where nothing is done beside them.

-against checks a commit out into a git worktree in a temporary folder and runs the benchmark_codec.py of that
commit there for each case, with the model of its own box. Both sides take turns for -rounds, each time one
run in a fresh process; the best of each is shown, and the past divided by now. Commits before d455f87 print a
table (of -case MODEL,photograph or MODEL,patches), whose memory is less its earlier peak: rather too small.

-steady starts processes that decode the photograph with the model in the box, after their imports and one
image: as they are; beside a busy loop at low priority; with all their threads on one core from then on. Those
that take longer than a minute are ended. Slowest far from fastest: threads wait for each other.
"""

import json
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from flow.codec.stream import DEFAULT, can_adapt, can_correct, decode, encode  # noqa: E402
from flow.folder import find_folder, open_frozen  # noqa: E402
from flow.model import build  # noqa: E402
from source.bands import FixedBand  # noqa: E402
from source.rans import Decoder  # noqa: E402
from utils.arithmetic import passes, products  # noqa: E402
from utils.arithmetic.crew import in_tiles  # noqa: E402
from utils.arithmetic.dense import available, instructions  # noqa: E402
from utils.data.datasets import load  # noqa: E402
from utils.data.images import PHOTOS, image_files, read_rgb  # noqa: E402
from utils.options import CUDA, Option, parse, pick_device, script  # noqa: E402

SIDE, TINY = 512, 32
# The methods in which networks compute; on one thread, tiles are computed as soon as they are asked for.
NETWORKS = (in_tiles, "__init__"), (in_tiles, "result"), (FixedBand, "mixture")
UNTRAINED = {
    "paper": dict(hchnl=350, repeat=3, nhidden=3, HUE=True),
    "small": dict(hchnl=64, repeat=2, nhidden=1, HUE=True),
}
MODELS = "model", *UNTRAINED
# The first commit whose processes take cases and answer as those of today.
SAME_CASES = "d455f87"
PICTURES, PICTURE_SIDE = 25, 256
TENSORS = "tensors"
OPTIONS = CUDA | {
    "folder": Option(None, "folder of the model that is called model (default: that in the box)"),
    "models": Option(None, f"some of {', '.join(MODELS)} (default: all)", many=True),
    "threads": Option(torch.get_num_threads(), "threads of the CPU", least=1, most=1024),
    "effort": Option(1, "that of the encoder; 1: no corrections", least=1, most=6),
    "runs": Option(5, "runs in a process", least=1, most=10**6),
    "count": Option(100, "32x32 patches", least=1, most=10**6),
    "batch": Option(50, "32x32 patches coded together", least=1, most=10**6),
    "against": Option(None, "a commit: measure it too"),
    "rounds": Option(3, "processes of either side, where two things take turns", least=1, most=10**6),
    "side": Option(None, "sides to which the photograph is enlarged", many=True),
    "ways": Option(False, "compare the ways to sum products"),
    "jobs": Option(False, "compare one job and two"),
    "steady": Option(None, "compare so many processes that do the same", kind=int, least=1, most=10**6),
    "case": Option(None, "internal: what this process is to measure"),
}
PASSED_ON = "threads", "effort", "runs", "count", "batch", "cuda"
PAST_LINE = re.compile(
    r"(?P<model>\S+) +(?P<images>\S+) +encode (?P<encode>[\d.]+) s an image, .*"
    r"; decode (?P<decode>[\d.]+) s an image, .*; (?P<memory>\d+) MiB"
)

# Where a process finds the codec and the reader of pictures: now, and in the past.
MODULES = {"now": ("flow.codec.stream", "utils.data.images"), "past": ("flow.codec", "utils.images")}
CONDITIONS = {"as it is": "", "beside a busy loop": "busy()", "on one core": "one_core()"}
LIMIT = 60
STEADY = """
import os, signal, subprocess, sys, time
sys.path.insert(0, ".")
import torch
from {coder} import decode, encode
from {reader} import read_rgb
from flow.folder import open_frozen
from source.rans import Decoder

def busy():
    loop = "import os\\nos.nice(19)\\nparent = os.getppid()\\nwhile os.getppid() == parent: pass"
    subprocess.Popen([sys.executable, "-c", loop])
    time.sleep(0.2)

def one_core():
    core = min(os.sched_getaffinity(0))
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), [core])

torch.set_num_threads({threads})
model = open_frozen("etc/model")[0]
image = read_rgb("etc/photos/roman-colosseum.png")[None, :, :{side}, :{side}]
(data,) = [encoder.finish() for encoder in encode(model, image)]
size = tuple(image.shape[-2:])
decode(model, [Decoder(data)], size)
{condition}
signal.alarm({limit})
start = time.perf_counter()
decode(model, [Decoder(data)], size)
print(time.perf_counter() - start)
"""


class Case(NamedTuple):
    """What one process measures: a photograph of `side` by a model, or patches (side 0), `batch` together."""

    model: str
    side: int
    batch: int = 1

    def __str__(self):
        if self.side:
            return f"{self.model}, {self.side}x{self.side}"
        return f"{self.model}, {TINY}x{TINY}" + (f", {self.batch} together" if self.batch > 1 else "")


class Figures(NamedTuple):
    """Seconds an image, run by run; the networks' share of both; bytes of memory; bytes an image."""

    encode: list
    decode: list
    networks: list
    memory: int
    size: float


class Past(NamedTuple):
    """What the past printed of a case: seconds an image, and memory in MiB."""

    encode: float
    decode: float
    memory: float


def show(label, *cells):
    """Print a row of a table, whose columns are narrower where there are many."""
    width = 18 if len(cells) < 7 else 11
    print(f"{label:28}" + "".join(f"{cell:>{width}}" for cell in cells), flush=True)


def duration(seconds):
    """Seconds in words."""
    return f"{seconds:.3f} s" if seconds >= 0.1 else f"{1e3 * seconds:.2f} ms"


def best_and_median(seconds):
    """Several times in words."""
    median = duration(statistics.median(seconds))
    return duration(min(seconds)).removesuffix(median[median.index(" ") :]) + f"/{median}"


def mebibytes(size):
    """A size in words."""
    return f"{size / 2**20:.0f} MiB"


def resident(field):
    """Bytes of this process: VmRSS, now; VmHWM, at its peak, not its parent's as getrusage may give."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[field].split()[0])


def forget_peak():
    """Let the peak be what there is now. Returns that, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def timed(work, *args, **kwargs):
    """Run work(...). Returns its result and its seconds."""
    start = time.perf_counter()
    result = work(*args, **kwargs)
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


def photograph(side=SIDE):
    """The corner of a photograph, (1, 3, side, side) uint8, enlarged if that is larger."""
    pixels = read_rgb(PHOTOS / "roman-colosseum.png")[:, : min(side, SIDE), : min(side, SIDE)]
    picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    picture = picture.resize((side, side), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]


def open_case_model(name, folder):
    """The frozen model of a case."""
    return build(UNTRAINED[name]).freeze() if name in UNTRAINED else open_frozen(find_folder(folder))[0]


def settings_of(model, size, effort):
    """Whether there are corrections, and mixtures adapt."""
    corrected = effort > 1 and can_correct(model, size)
    return DEFAULT._replace(corrected=corrected).adapting(can_adapt(model, size))


def encode_all(model, batches, effort):
    """Batches of images -> lists of streams."""
    settings = settings_of(model, tuple(batches[0].shape[-2:]), effort)
    return [
        [e.finish() for e in encode(model, batch.to(model.device), settings, effort=effort)]
        for batch in batches
    ]


def decode_all(model, coded, size, effort):
    """Inverse of encode_all."""
    settings = settings_of(model, size, effort)
    return [decode(model, [Decoder(stream) for stream in streams], size, settings).cpu() for streams in coded]


def code(model, batches, runs=1, effort=1):
    """Code batches so many times. Returns their streams, and the seconds of each run to encode and to decode.

    Raises ValueError if an image came back changed.
    """
    times = []
    for _ in range(runs):
        coded, encoding = timed(encode_all, model, batches, effort)
        back, decoding = timed(decode_all, model, coded, tuple(batches[0].shape[-2:]), effort)
        if not all(map(torch.equal, batches, back)):
            raise ValueError("images came back changed")
        times.append((encoding, decoding))
    return coded, *map(list, zip(*times))


@contextmanager
def watched(spent):
    """Within: spent[0] grows by the seconds in NETWORKS."""
    plain = {(kind, name): getattr(kind, name) for kind, name in NETWORKS}

    def watch(method):
        def timed_method(*args, **kwargs):
            result, seconds = timed(method, *args, **kwargs)
            spent[0] += seconds
            return result

        return timed_method

    for (kind, name), method in plain.items():
        setattr(kind, name, watch(method))
    try:
        yield
    finally:
        for (kind, name), method in plain.items():
            setattr(kind, name, method)


def share_of_networks(work, *args):
    """Run work(...) on one thread. Returns how much of its time the networks take, 0 .. 1."""
    threads, spent = torch.get_num_threads(), [0.0]
    torch.set_num_threads(1)
    try:
        with watched(spent):
            _, seconds = timed(work, *args)
    finally:
        torch.set_num_threads(threads)
    return spent[0] / seconds


def measure(case, options):
    """The Figures of a case, in this process."""
    torch.set_num_threads(options["threads"])
    model = open_case_model(case.model, options["folder"]).to(pick_device(options["cuda"]))
    if case.side:
        batches = [photograph(case.side)]
    else:
        batches = load("photos", "test", size=TINY, progress=False)[0][: options["count"]].split(case.batch)
    count = sum(map(len, batches))
    code(model, [batches[0][:1, :, :TINY, :TINY]])
    before = forget_peak()
    parts = [batch[:, :, :SIDE, :SIDE] for batch in batches]
    effort = options["effort"]
    streams, *_ = code(model, parts, effort=effort)
    coded, encoding, decoding = code(model, batches, options["runs"], effort)
    memory = resident("VmHWM") - before
    networks = [
        share_of_networks(encode_all, model, parts, effort),
        share_of_networks(decode_all, model, streams, tuple(parts[0].shape[-2:]), effort),
    ]
    encoding, decoding = ([seconds / count for seconds in way] for way in (encoding, decoding))
    return Figures(encoding, decoding, networks, memory, sum(map(len, sum(coded, []))) / count)


def output(command, cwd=ROOT):
    """What a command prints. Raises ValueError if it fails."""
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise ValueError(f"{' '.join(map(str, command))}: ended with status {done.returncode}")
    return done.stdout


def measure_afresh(case, options, tree=ROOT):
    """The Figures of a case, from a process of its own; tree: the files of a commit, since SAME_CASES."""
    command = [sys.executable, tree / "tests" / "benchmark_codec.py", "-case", ",".join(map(str, case))]
    given = [name for name in PASSED_ON if options[name] != OPTIONS[name].default]
    command += [word for name in given for word in (f"-{name}", str(options[name]))]
    command += ["-folder", options["folder"]] if options["folder"] else []
    return Figures(*json.loads(output(command)))


def cases(options):
    """The Cases of the models that are asked for."""
    images = (SIDE, 1), (0, 1), (0, options["batch"])
    return [Case(model, *which) for model in options["models"] or MODELS for which in images]


def compare_cases(options):
    """A row for each case."""
    show("best/median", "encode", "decode", "networks", "memory")
    for case in cases(options):
        figures = measure_afresh(case, options)
        shares = "/".join(f"{share:.0%}" for share in figures.networks)
        times = map(best_and_median, (figures.encode, figures.decode))
        show(str(case), *times, shares, mebibytes(figures.memory))


def compare_sides(options):
    """A row for the photograph, and for each enlargement of it."""
    show("for each pixel; ratios", "encode", "decode", "bytes", "memory", "encode", "decode", "in all")
    first = None
    for side in dict.fromkeys((SIDE, *map(int, options["side"]))):
        case = Case("model", side)
        figures, pixels = measure_afresh(case, options), side**2
        times = [min(seconds) / pixels for seconds in (figures.encode, figures.decode)]
        first = first or times
        cells = [f"{1e6 * seconds:.3f} us" for seconds in times]
        cells += [f"{figures.size / pixels:.3f}", f"{figures.memory / pixels:.0f} bytes"]
        cells += [f"{seconds / at_first:.2f}" for seconds, at_first in zip(times, first)]
        show(str(case), *cells, mebibytes(figures.memory))


def compare_ways(options):
    """A row for each way to sum products that works here, and for passes over tensors."""
    torch.set_num_threads(options["threads"])
    model, image, wanted = open_case_model("model", options["folder"]), photograph(), None
    tried = [products.trials(torch.device("cpu"), wide) for wide in (False, True)]
    show(f"model, {SIDE}x{SIDE}", "encode", "decode", "bytes", "serves for")
    for name in (f"fused, {instructions()}" if available() else "fastest", *products.WAYS, TENSORS):
        fault = next((trial[name].fault for trial in tried if name in trial and trial[name].fault), None)
        if fault:
            show(name, "-", "-", "-", fault)
            continue
        serves = [kind for kind, trial in zip(("narrow", "wide"), tried) if name in trial]
        with computing(name):
            code(model, [image])
            coded, *times = code(model, [image], options["runs"])
        wanted = wanted or coded
        same = "equal" if coded == wanted else "other"
        show(name, *map(best_and_median, times), same, " and ".join(serves) or "all")


@contextmanager
def computing(name):
    """Within: products are summed by this way, or passes are taken over tensors."""
    products.force(name if name in products.WAYS else None)
    passes.compiled(name != TENSORS)
    try:
        yield
    finally:
        products.force()
        passes.compiled(True)


@contextmanager
def checked_out(commit):
    """Within: the files of a commit, in a temporary folder. Raises ValueError if there is no such commit."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "past"
        git = ["git", "-C", str(ROOT), "worktree"]
        done = subprocess.run([*git, "add", "--detach", tree, commit], capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"-against {commit}: {done.stderr.strip().splitlines()[-1]}")
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", tree], check=True)


def read_past(text, case):
    """The Past of a case from what an earlier benchmark_codec.py printed. May raise ValueError."""
    for line in PAST_LINE.finditer(text):
        if (line["model"], line["images"]) == (case.model, past_images(case)):
            return Past(*(float(line[name]) for name in Past._fields))
    raise ValueError(f"the past did not print a line of {case}, but: {' '.join(text.split())[:200]}")


def past_images(case):
    """What the past calls the images of a case."""
    return "photograph" if case.side else "patches"


def answers_alike(tree):
    """Whether the checked out files are no older than SAME_CASES."""
    command = ["git", "-C", tree, "merge-base", "--is-ancestor", SAME_CASES, "HEAD"]
    return not subprocess.run(command, stderr=subprocess.DEVNULL).returncode


def measure_alike(case, options, tree=ROOT):
    """The Past of a case, or the same of now, from a process of its own that answers as those of today."""
    figures = measure_afresh(case, options, tree)
    return Past(figures.encode[0], figures.decode[0], figures.memory / 2**20)


def measure_past(tree, case, options):
    """The Past of a case before SAME_CASES, from a process of its own in the checked out files."""
    command = [sys.executable, "tests/benchmark_codec.py", "-case", f"{case.model},{past_images(case)}"]
    given = options | {"batch": case.batch}
    command += [word for name in ("threads", "count", "batch") for word in (f"-{name}", str(given[name]))]
    command += [] if case.model in UNTRAINED else ["-folder", "etc/model"]
    return read_past(output(command, tree), case)


def compare_with_past(options):
    """A row for each case: now, the past, and their ratio."""
    options = options | {"runs": 1}
    parts = ("now", "past", "ratio") * 3
    with checked_out(options["against"]) as tree:
        show(f"against {options['against']}", *("encode",) * 3, *("decode",) * 3, *("memory",) * 3)
        show("", *parts)
        alike, of_its_box = answers_alike(tree), options | {"folder": None}
        for case in cases(options):
            now, past = [], []
            for _ in range(options["rounds"]):
                now.append(measure_alike(case, options))
                past.append(
                    measure_alike(case, of_its_box, tree) if alike else measure_past(tree, case, options)
                )
            cells = []
            for name in Past._fields:
                ours, theirs = (min(getattr(figures, name) for figures in side) for side in (now, past))
                words = "{:.0f} MiB".format if name == "memory" else duration
                cells += [words(ours), words(theirs), f"{theirs / ours:.2f}" if ours else "-"]
            show(str(case), *cells)


def write_pictures(folder):
    """Write crops of the box's photographs as PNG files."""
    files = image_files(PHOTOS)
    for n in range(PICTURES):
        picture = Image.open(files[n % len(files)]).convert("RGB")
        left = (picture.width - PICTURE_SIDE) * (n // len(files))
        picture.crop((left, 0, left + PICTURE_SIDE, PICTURE_SIDE)).save(folder / f"{n}.png")


def compare_jobs(options):
    """Rows for one job and for two, by whole processes."""
    seconds = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder))
        command = [sys.executable, "easyEncode.py", "-img", folder, "-out", folder, "-force"]
        command += ["-folder", options["folder"]] if options["folder"] else []
        for _ in range(options["rounds"]):
            for jobs, measured in seconds.items():
                measured.append(timed(output, [*command, "-jobs", str(jobs)])[1])
    show(f"{PICTURES} of {PICTURE_SIDE}x{PICTURE_SIDE}", "best/median", "ratio")
    for jobs, measured in seconds.items():
        show(f"-jobs {jobs}", best_and_median(measured), f"{min(seconds[1]) / min(measured):.2f}")


def steady_program(name, condition, threads):
    """The code of a process that decodes the photograph under a condition and prints its seconds."""
    values = dict(zip(("coder", "reader"), MODULES[name]), threads=threads, side=SIDE, limit=LIMIT)
    return STEADY.format(condition=CONDITIONS[condition], **values)


def run_limited(tree, program):
    """The seconds that a new process prints; inf if it was ended."""
    done = subprocess.run([sys.executable, "-c", program], cwd=tree, stdout=subprocess.PIPE, text=True)
    if done.returncode == -signal.SIGALRM:
        return float("inf")
    done.check_returncode()
    return float(done.stdout)


def compare_processes(options):
    """A row for each condition, now and in the past."""
    show(f"{options['steady']} processes decode", "fastest", "median", "slowest", "slowest/fastest")
    trees = {"now": ROOT}
    with checked_out(options["against"]) if options["against"] else nullcontext() as tree:
        if tree:
            trees["past"] = tree
        for condition in CONDITIONS:
            seconds = {name: [] for name in trees}
            for _ in range(options["steady"]):
                for name, place in trees.items():
                    program = steady_program(name, condition, options["threads"])
                    seconds[name].append(run_limited(place, program))
            for name, measured in seconds.items():
                show(f"{name}, {condition}", *spread(measured))


def spread(seconds):
    """Fastest, median and slowest of several times, and slowest / fastest, in words; inf: more than LIMIT."""
    fastest, slowest = min(seconds), max(seconds)
    cells = [
        duration(value) if value < float("inf") else f"> {LIMIT} s"
        for value in (fastest, statistics.median_low(seconds), slowest)
    ]
    if fastest == float("inf"):
        return *cells, "-"
    if slowest == float("inf"):
        return *cells, f"> {LIMIT / fastest:.1f}"
    return *cells, f"{slowest / fastest:.2f}"


COMPARISONS = {
    "side": compare_sides,
    "ways": compare_ways,
    "jobs": compare_jobs,
    "steady": compare_processes,
}


@script
def main(argv=None):
    """Measure what is asked for."""
    options, typed = parse(__doc__, OPTIONS, argv)
    unknown = [name for name in options["models"] or () if name not in MODELS]
    if unknown:
        raise ValueError(f"-models {unknown[0]}: need some of {', '.join(MODELS)}")
    if not all(side.isdecimal() and int(side) for side in options["side"] or ()):
        raise ValueError(f"-side {' '.join(options['side'])}: need numbers of pixels")
    if options["case"]:
        model, *numbers = options["case"].split(",")
        print(json.dumps(measure(Case(model, *map(int, numbers)), options)))
        return
    asked = [comparison for name, comparison in COMPARISONS.items() if name in typed]
    for comparison in asked or [compare_with_past if options["against"] else compare_cases]:
        comparison(options)


if __name__ == "__main__":
    main()
