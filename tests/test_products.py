"""Ways to sum products: which are tried, which is taken, and none that gives other integers or fails."""

import os
import subprocess
import sys

import oracle
import pytest
import torch
from integers import CPU, WORKING, computed, drawn, narrow
from test_fixed import same

from utils.arithmetic import passes, products
from utils.arithmetic.fixed import EXACT, WIDE_EXACT
from utils.arithmetic.products import WAYS, Way, choose, force, trials

PLAIN = WAYS["float64-product"]


@pytest.fixture
def ways(monkeypatch):
    """WAYS, to change; nothing of what was tried with them outlasts a test."""
    monkeypatch.setattr(products, "WAYS", dict(WAYS))
    monkeypatch.delenv(products.ENVIRONMENT, raising=False)
    forget()
    yield products.WAYS
    force()
    forget()


def forget():
    trials.cache_clear()
    choose.cache_clear()


def fast(name, run, wide=True):
    """A Way that does nothing slowly."""
    return Way(name, True, wide, 8, PLAIN.prepare, run)


@pytest.mark.parametrize("wide", [False, True])
def test_trials_are_of_all_ways_of_a_kind(wide):
    tried = trials(CPU, wide)
    assert [*tried] == [name for name, way in WAYS.items() if (way.wide if wide else way.narrow)]
    assert not tried["float64-product"].fault
    for trial in tried.values():
        assert trial.fault or 0 < trial.little < 10_000 and 0 < trial.much < 10_000
    assert all(way.narrow or way.wide for way in WAYS.values()) and all(n == w.name for n, w in WAYS.items())


@pytest.mark.parametrize("wide", [False, True])
def test_trials_come_near_to_what_is_exact(wide):
    """A way that saturates, or loses bits beyond 2^23, must not pass."""
    channels = products.TRIALS[2][1]  # bytes read at once: sums of twice as many products
    assert 2**23 < 2 * 9 * channels * 190 * 127 < 2**24 and 2 * 9 * channels <= products.MOST_BYTES
    q, weight = products._operands(wide, *products.TRIALS[0], CPU)
    most = q.long().amax() * weight.long().abs().flatten(1).sum(1).max()
    assert (WIDE_EXACT // 2**18 if wide else EXACT * 0.97) < most < (WIDE_EXACT if wide else EXACT)
    sums = PLAIN.run(q, PLAIN.prepare(weight), (3, 3))
    assert torch.equal(sums.long()[0], oracle.sums(q, weight)[0, 1:-1, 1:-1])
    assert sums.max() > most * 0.65 and sums.min() < -most * 0.65
    # two neighbours at once pass 16 bits
    assert wide or (q[..., 0].long() * 127 + q[..., 1].long() * 127).max() > 2**15


def test_ways_that_give_other_integers_are_passed_over(ways):
    def nearly(q, prepared, taps):
        sums = PLAIN.run(q, prepared, taps)
        sums[0, -1, -1, -1] += 1
        return sums

    ways["wrong"] = fast("wrong", nearly)
    for wide in (False, True):
        assert trials(CPU, wide)["wrong"].fault == "it gives other integers here"
        for little in (False, True):
            assert choose(CPU, wide, little).name != "wrong"
    force("wrong")
    for wide in (False, True):
        with pytest.raises(ValueError, match="wrong: it does not work here .it gives other integers"):
            choose(CPU, wide, False)


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (RuntimeError("no such kernel\nexception raised from"), "no such kernel"),
        (NotImplementedError(), "NotImplementedError"),
        (AttributeError("'_OpNamespace' object has no attribute"), "'_OpNamespace' object has no attribute"),
    ],
)
@pytest.mark.parametrize("when", ["prepare", "run"])
def test_ways_that_fail_are_passed_over_and_tell_why(ways, error, fault, when):
    def fail(*arguments):
        raise error

    ways["broken"] = fast("broken", PLAIN.run)._replace(**{when: fail})
    for wide in (False, True):
        assert trials(CPU, wide)["broken"].fault == fault
        assert choose(CPU, wide, True).name != "broken"
    force("broken")
    with pytest.raises(ValueError, match="broken: it does not work here"):
        choose(CPU, False, False)


def test_the_fastest_way_is_taken_for_little_work_and_for_much(ways, monkeypatch):
    results = {name: products.Trial("", 2.0, 2.0) for name in ways}
    results["float32-product"] = products.Trial("", 3.0, 1.0)
    results["float32-convolution"] = products.Trial("", 1.0, 3.0)
    results["int8-product"] = products.Trial("it gives other integers here")
    monkeypatch.setattr(products, "trials", lambda device, wide: results)
    assert choose(CPU, False, True).name == "float32-product"
    assert choose(CPU, False, False).name == "float32-convolution"


def test_sums_of_many_products_are_not_taken_in_bytes(ways, monkeypatch):
    """As many as that pass 2^24, which float32 counts up to."""
    results = {name: products.Trial("", 2.0, 2.0) for name in ("int8-bytes", "float64-product")}
    results["int8-bytes"] = products.Trial("", 1.0, 1.0)
    monkeypatch.setattr(products, "trials", lambda device, wide: results)
    assert 255 * 128 * products.MOST_BYTES < 2**24
    assert choose(CPU, True, True, products.MOST_BYTES).name == "int8-bytes"
    assert choose(CPU, True, True, products.MOST_BYTES + 1).name == "float64-product"
    force("int8-bytes")
    assert choose(CPU, True, True, products.MOST_BYTES + 1).name == "float64-product"


@pytest.mark.skipif("int8-bytes" not in WORKING[True], reason="this build of torch has no such convolution")
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(
    "channels, kernel, parts", [(28, 3, 1), (29, 3, 2), (32, 1, 1), (33, 1, 2), (56, 3, 2)]
)
def test_bytes_are_joined_side_by_side_where_sums_have_room(channels, kernel, parts, compiled):
    """At the ends of their ranges, where the sums of two products each come nearest to 2^24."""
    most = 2**15 - 129
    weight = torch.full((5, channels, kernel, kernel), most, dtype=torch.int16)
    weight[1], weight[2], weight[3, ::2], weight[4] = -most, 127, -most, -32385  # of bytes 127, 127; 0, 127
    q = torch.full((1, 20 + kernel, 20 + kernel, channels), 2**15 - 1, dtype=torch.int16)
    q[:, ::3, ::2], q[:, 1::4] = 255, drawn(q[:, 1::4].shape, 0, 2**15 - 1, dtype=torch.int16)
    way = WAYS["int8-bytes"]
    with computed(None, compiled):
        found = way.run(q, way.prepare(weight), (kernel, kernel))
        sums = passes.join_bytes(found, len(weight))
    assert len(found) == parts
    assert torch.equal(sums.double(), PLAIN.run(q, PLAIN.prepare(weight), (kernel, kernel)))


def test_forced_ways_serve_where_they_can(ways):
    for name in WORKING[False]:
        force(name)
        assert choose(CPU, False, True).name == name
        if name not in WORKING[True]:
            assert choose(CPU, True, True).wide
    with pytest.raises(ValueError, match="-products float128: need one of int8-.*, float64-product"):
        force("float128")
    assert choose(CPU, False, True).name == name
    force()
    assert choose(CPU, False, True).name in WORKING[False]


def test_the_environment_chooses_where_nothing_is_forced(ways, monkeypatch):
    monkeypatch.setenv(products.ENVIRONMENT, "float64-product")
    assert choose(CPU, False, False).name == choose(CPU, True, True).name == "float64-product"
    force("float32-product")
    assert choose(CPU, False, False).name == "float32-product"
    assert choose(CPU, True, False).wide
    force()
    monkeypatch.setenv(products.ENVIRONMENT, "float128")
    with pytest.raises(ValueError, match="float128.*need one of"):
        choose(CPU, False, True)


def test_the_environment_is_read_in_a_fresh_process():
    code = "from utils.arithmetic.products import *; print(choose(torch.device('cpu'), False, False).name)"
    environment = os.environ | {products.ENVIRONMENT: "float32-product"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == "float32-product"


def test_a_way_changed_between_two_calls_gives_the_same_integers():
    layer, x = narrow((6, 5, 3, 3)), drawn((1, 7, 9, 5), -(2**15), 2**15 - 1)
    for name in (*WORKING[False], *reversed(WORKING[False])):
        with computed(name):
            assert same(layer(x), oracle.conv(layer, x), torch.int16)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("channels", [1, 3, 8, 13])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32])
def test_neighbourhoods_lie_in_the_order_of_weights(compiled, channels, dtype):
    image = drawn((6, 5, channels), 0, 200, dtype=dtype)
    for taps in ((3, 3), (1, 3)):
        with computed(None, compiled):
            rows = products.unfolded(image, taps)
        height, width = 6 - taps[0] + 1, 5 - taps[1] + 1
        for n in range(height * width):
            i, j = divmod(n, width)
            assert torch.equal(rows[n], image[i : i + taps[0], j : j + taps[1]].flatten())
