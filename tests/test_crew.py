"""Work in tiles on threads: equal to the function of the whole map; threads as many as asked for, no more."""

import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError, wait
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from integers import drawn
from oracle import bordered

from utils.arithmetic import crew as module
from utils.arithmetic.crew import crew, in_crew, in_tiles, size, submit
from utils.box import ROOT


@pytest.fixture(autouse=True)
def threads(monkeypatch):
    """Every test leaves torch's threads as it found them; the smallest of tiles goes to one."""
    monkeypatch.setattr(module, "FEW_PIXELS", 1)
    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before and size() == 1


def working(count):
    """crew() where torch has so many threads."""
    torch.set_num_threads(count)
    return crew()


def neighbours(halo):
    """A function of each pixel's neighbourhood, which weighs its pixels, and of the pixel itself."""

    def function(*maps):
        x = sum(maps)
        padded, total = bordered(x, halo, halo), 0
        for i in range(2 * halo + 1):
            for j in range(2 * halo + 1):
                window = padded[:, i : i + x.shape[1], j : j + x.shape[2]]
                total = total + (3 * i + 7 * j + 1) * window
        return total, x[..., :1].to(torch.int16)

    return function


@settings(max_examples=60)
@given(
    st.integers(1, 3),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.integers(0, 3),
    st.sampled_from([1, 2, 7, 16, 100]),
    st.sampled_from([1, 2, 5]),
    st.data(),
)
def test_tiles_equal_the_function_of_the_whole(batch, size, halo, side, threads, data):
    maps = [drawn((batch, *size, 2), -1000, 1000, k) for k in range(2)]
    top = data.draw(st.integers(0, size[0] - 1))
    rows = data.draw(st.sampled_from([None, (top, data.draw(st.integers(top + 1, size[0])))]))
    before = torch.get_num_threads()
    with working(threads):
        parts = in_tiles(neighbours(halo), halo, *maps, rows=rows, side=side).result()
    torch.set_num_threads(before)
    for part, whole in zip(parts, neighbours(halo)(*maps)):
        wanted = whole if rows is None else whole[:, rows[0] : rows[1]]
        assert part.dtype == wanted.dtype and part.is_contiguous() and torch.equal(part, wanted)


@settings(max_examples=40)
@given(
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.integers(0, 3),
    st.sampled_from([1, 5, 16]),
    st.data(),
)
def test_what_is_there_for_others_alone_is_told(size, halo, side, data):
    x = drawn((1, *size, 2), -1000, 1000)
    top = data.draw(st.integers(0, size[0] - 1))
    rows = top, data.draw(st.integers(top + 1, size[0]))

    def function(part, margins):
        (above, below, left, right), (height, width) = margins, part.shape[1:3]
        assert all(0 <= margin <= halo for margin in margins)
        inside = slice(None), slice(above, height - below), slice(left, width - right)
        outputs = []
        for y in neighbours(halo)(part):
            outputs.append(torch.full_like(y, 77))
            outputs[-1][inside] = y[inside]
        return outputs

    parts = in_tiles(function, halo, x, rows=rows, side=side, margins=True).result()
    for part, whole in zip(parts, neighbours(halo)(x)):
        assert torch.equal(part, whole[:, rows[0] : rows[1]])


def test_tiles_see_no_farther_than_their_halo():
    sizes = []

    def function(x):
        sizes.append(tuple(x.shape[1:3]))
        return (x,)

    in_tiles(function, 2, drawn((1, 10, 9, 1), 0, 9), rows=(3, 10), side=4).result()
    # rows 3 .. 6 and 7 .. 9, columns 0 .. 3, 4 .. 7 and 8
    assert sizes == [(8, 6), (8, 7), (8, 3), (5, 6), (5, 7), (5, 3)]


def test_a_map_that_is_small_for_its_threads_is_cut_for_them():
    seen = []

    def function(x):
        seen.append(x.shape[1:3])
        return (x,)

    x = drawn((1, 100, 100, 1), 0, 9)
    for count, tiles in ((1, 1), (2, 4), (4, 4), (5, 16), (99, 16)):  # none of less than LEAST_SIDE
        with working(count):
            in_tiles(function, 0, x).result()
        assert len(seen) == tiles and max(max(s) for s in seen) == 100 if tiles == 1 else True
        seen.clear()
    torch.set_num_threads(1)


def test_what_is_to_come_of_all_tiles_is_made_once(monkeypatch):
    class Slow:
        """A lock after which a thread is a while away, so that others may pass it by."""

        def __init__(self, make=threading.Lock):
            self.lock = make()

        def acquire(self, blocking):
            return self.lock.acquire(blocking)

        def __enter__(self):
            self.lock.acquire()

        def __exit__(self, *error):
            self.lock.release()
            time.sleep(0.02)

    monkeypatch.setattr(module, "threading", SimpleNamespace(Lock=Slow))
    calls, x = [], drawn((1, 8, 9, 2), 0, 9)

    def then(whole):
        calls.append(whole.clone())
        return "made"

    for count, side in ((1, 4), (3, 4), (3, 99)):
        with working(count):
            assert in_tiles(lambda x: (x + 1,), 0, x, side=side, then=then).result() == "made"
        assert len(calls) == 1 and torch.equal(calls.pop(), x + 1)
    torch.set_num_threads(1)


def test_within_torch_takes_one_thread_and_afterwards_as_many_as_before():
    for count in (1, 3):
        with working(count):
            assert torch.get_num_threads() == 1 and size() == count
            with crew():  # another within changes nothing
                assert torch.get_num_threads() == 1 and size() == count
            assert size() == count and torch.get_num_threads() == 1
            inside = [submit(lambda: (torch.get_num_threads(), size())) for _ in range(9)]
            wait(inside)  # which begins none of them here
            assert {future.result() for future in inside} == {(1, 1)}
        assert torch.get_num_threads() == count and size() == 1
        with pytest.raises(KeyError), crew():
            raise KeyError
        assert torch.get_num_threads() == count and size() == 1
    torch.set_num_threads(1)


@pytest.mark.parametrize("count", [1, 3])
def test_work_is_done_by_as_many_threads_as_there_are(count):
    gate, names = threading.Barrier(count), set()

    def work(last):
        if last:  # waits until all of them work at once
            gate.wait(20)
        names.add(threading.current_thread().name)

    with working(count):
        for future in [submit(work, n < count) for n in range(3 * count)]:
            future.result()
    assert len(names) == count and (count == 1) == (names == {threading.current_thread().name})
    torch.set_num_threads(1)


def test_who_waits_does_what_nobody_has_begun():
    begun, gate, here = threading.Event(), threading.Event(), threading.current_thread()

    def wait_for_others():
        begun.set()
        return gate.wait(20)

    with working(2):
        first = submit(wait_for_others)
        assert begun.wait(20)
        others = [submit(threading.current_thread) for _ in range(4)]
        last = submit(gate.set)  # which has to be begun here, as the crew's other thread waits for it
        assert first.result() and last.done() and not last.exception()
        assert [other.result() for other in others] == 4 * [here]
    torch.set_num_threads(1)


def test_what_was_cancelled_is_not_begun():
    begun, gate, calls = threading.Event(), threading.Event(), []

    def wait_for_gate():
        begun.set()
        gate.wait(20)

    with working(2):
        first, second = submit(wait_for_gate), submit(calls.append, 1)
        assert begun.wait(20)
        assert second.cancel()
        gate.set()
        first.result()
        with pytest.raises(CancelledError):
            second.result()
    assert not calls
    torch.set_num_threads(1)


def test_what_was_done_is_not_taken_for_failed_when_it_is_interrupted():
    """Ctrl-C may come while those who wait are told."""

    def interrupt(_):
        raise KeyboardInterrupt

    task = module._Task(int, (7,))
    task.add_done_callback(lambda _: None)
    task._done_callbacks.append(interrupt)
    with pytest.raises(KeyboardInterrupt):
        task.begin()
    assert task.result() == 7


@pytest.mark.parametrize("outside", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_a_crew_may_change_what_the_caller_made(outside):
    """Tensors of inference_mode, which is a thread's own, may not be changed by others."""
    x = torch.zeros(1, 60, 60, 1)
    with outside(), working(2):
        assert torch.is_grad_enabled() == (outside is torch.enable_grad)
        (y,) = in_tiles(lambda x: (x + 1,), 0, x, side=8).result()
        assert not y.is_inference() and (y == 1).all()
    torch.set_num_threads(1)


def test_each_thread_has_a_crew_of_its_own():
    sizes = []

    def work(count):
        with working(count):
            sizes.append((submit(size).result(), size()))

    with working(2):
        others = [threading.Thread(target=work, args=(count,)) for count in (1, 4)]
        for other in others:
            other.start()
            other.join()
        assert size() == 2
    assert sizes == [(1, 1), (1, 4)]
    torch.set_num_threads(1)


@pytest.mark.parametrize("count", [1, 2])
def test_a_failure_of_a_tile_comes_out(count):
    def function(x):
        if (x == 7).any():
            raise ArithmeticError("seven")
        return (x,)

    x = torch.zeros(1, 30, 30, 1)
    with working(count):
        in_tiles(function, 0, x, side=8).result()
        x[0, -1, -1] = 7
        with pytest.raises(ArithmeticError, match="seven"):
            in_tiles(function, 0, x, side=8).result()
        x[0, -1, -1] = 0
        in_tiles(function, 0, x, side=8).result()  # none of its threads is lost
    torch.set_num_threads(1)


def test_tiles_are_begun_at_once():
    """What comes later is computed while its turn is awaited."""
    begun = threading.Event()

    def function(x):
        begun.set()
        return (x,)

    with working(2):
        tiles = in_tiles(function, 0, torch.zeros(1, 4, 4, 1))
        assert begun.wait(20)
        tiles.result()
    torch.set_num_threads(1)


PROCESS = """
import os, sys, torch
from flow.codec.stream import decode, encode
from flow.model import build
from source.rans import Decoder
from tests.conftest import make_wild, noise
torch.set_num_threads(1)
model, images = make_wild(build({options}), 0.2).freeze(), noise(1, 3, 300, 280)
decode(model, [Decoder(encode(model, images[..., :9, :9])[0].finish())], (9, 9))
before = len(os.listdir("/proc/self/task"))
torch.set_num_threads(2)
stream = encode(model, images)[0].finish()
back = decode(model, [Decoder(stream)], (300, 280))
after = len(os.listdir("/proc/self/task"))
assert torch.equal(back.float(), images) and torch.get_num_threads() == 2
print(after - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
@pytest.mark.parametrize(
    "options", [{"hchnl": 8}, {"prior": "bands", "width": 8, "components": 2, "hchnl": 4}]
)
def test_coding_starts_no_threads_but_the_crew(options):
    """A library's team, once started, would spin beside it."""
    code = PROCESS.replace("{options}", repr(options))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 1  # beside the one that was there


def test_the_sides_of_tiles_suit_each_other():
    assert module.TILE % module.LEAST_SIDE == 0


FORK = """
import os, torch
from utils.arithmetic.crew import crew, submit
torch.set_num_threads(2)
with crew():
    assert submit(int, 3).result() == 3
    child = os.fork()
    if not child:
        with crew():
            os._exit(submit(int, 7).result(timeout=20))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""


def test_a_forked_process_has_threads_of_its_own():
    assert subprocess.run([sys.executable, "-c", FORK], cwd=ROOT, timeout=60).returncode == 0


def test_few_pixels_wake_no_thread(monkeypatch):
    monkeypatch.setattr(module, "FEW_PIXELS", 100)
    here, before = threading.current_thread(), torch.get_num_threads()
    with working(2):
        assert submit(threading.current_thread, pixels=99).result() is here
        (other,), _ = wait([submit(threading.current_thread, pixels=100)])
        assert other.result() is not here
    torch.set_num_threads(before)


def test_items_are_made_within_a_crew_and_taken_without():
    def items():
        for _ in range(2):
            yield size(), torch.get_num_threads()

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for item in in_crew(items()):
            assert item == (3, 1) and (size(), torch.get_num_threads()) == (1, 3)
    finally:
        torch.set_num_threads(before)


def test_a_crew_computes_in_no_callers_autocast():
    x = torch.full((40, 40), 257.0)
    with torch.autocast("cpu", torch.bfloat16), crew():
        assert (x @ x).dtype == torch.float32
