"""Time the entropy coder on one core, beside an rANS of the original's kind.

    python tests/benchmark_coder.py -symbols 1000000 -plain 300

Symbols are drawn from the distributions that code them, logistics and mixtures of three with scales of 1/2 to
32 steps; then the latter as they adapt from symbol to symbol, weigh their components, and learn nearby, which
gains nothing here. Ours: integer parameters -> bytes -> symbols. The original's kind: a table of 4,096
floating-point cumulative values for each symbol, made when encoding and handed to the decoder, as it was
there; then some Python for each symbol, on a state that is a tuple of tuples. Times: the least of several
rounds. Memory: the peak of what is allocated beyond parameters and symbols.
"""

import sys
import time
import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from source.adaptation import Adaptation
from source.corrections import Place
from source.rans import Decoder, Encoder
from source.tables import Mixture
from utils.options import Option, parse, script

NBINS, PRECISION = 4096, 24
ROUNDS = 5
OPTIONS = {
    "symbols": Option(1_000_000, "symbols for ours", least=1),
    "plain": Option(300, "symbols for the other", least=1),
}


def draw(components, size):
    """Draw parameters of mixtures, (K, size) integers each, and a symbol from each mixture."""
    random = np.random.default_rng(components)
    centre, octave = random.normal(0, 20, size), random.uniform(-1, 5, size)
    octave = np.clip(octave + random.normal(0, 0.5, (components, size)), -1, 5)
    mean = centre + 2.0**octave * random.normal(0, 1, (components, size))
    weight = random.integers(1, 1 << 14, (components, size), np.int32)
    mean, scale = np.round(mean * 64).astype(np.int32), np.round(32 * (octave + 6)).astype(np.int32)
    running = np.cumsum(weight, axis=0)
    chosen = (random.uniform(size=size) * running[-1] > running).sum(axis=0), np.arange(size)
    symbols = mean[chosen] / 64 + 2.0 ** (scale[chosen] / 32 - 6) * random.logistic(size=size)
    return (weight, mean, scale), np.round(symbols).astype(np.int32)


def adapting(*parameters, weighing=False, nearby=False):
    """The mixtures of one row that adapts, the only one of its band."""
    size = 1, parameters[0].shape[1]
    adaptation = Adaptation(size, (0,), 1, weighing, nearby)
    return adaptation.mixture(Place(0, 0, 0, *size), parameters, (NBINS, PRECISION))


def fixed(*parameters):
    """Mixtures that stay as they are."""
    return Mixture(*parameters, NBINS, PRECISION)


def encode(make, parameters, symbols):
    """Symbols -> bytes."""
    encoder = Encoder()
    encoder.push(make(*parameters), symbols)
    return encoder.finish()


def decode(make, parameters, data):
    """Bytes -> symbols. Inverse: encode."""
    return Decoder(data).pop(make(*parameters))


def plain_tables(parameters):
    """Cumulative counts of the window of each symbol: (size, NBINS + 1), and the windows' first integers."""
    weight, mean, scale = (a[..., None] for a in parameters)
    low = np.round((weight * (mean / 64)).sum(0) / weight.sum(0)).astype(int) - NBINS // 2
    edge = low + np.arange(NBINS + 1) - 0.5
    argument = (edge - mean / 64) / 2.0 ** (scale / 32 - 6)
    cdf = (weight / weight.sum(0) * (1 / (1 + np.exp(-np.clip(argument, -500, 500))))).sum(0)
    return np.round(cdf * ((1 << PRECISION) - NBINS)).astype(int) + np.arange(NBINS + 1), low[:, 0]


def plain_encode(tables, symbols):
    """Symbols -> a head and a tail, the last symbol first. Inverse: plain_decode."""
    state = 1 << 32, ()
    for cdf, low, symbol in reversed(list(zip(*tables, symbols))):
        start, end = int(cdf[symbol - low]), int(cdf[symbol - low + 1])
        head, tail = state
        if head >= end - start << 64 - PRECISION:
            head, tail = head >> 32, (head & 0xFFFFFFFF, tail)
        state = (head // (end - start) << PRECISION) + head % (end - start) + start, tail
    return state


def plain_decode(tables, state):
    """A head and a tail -> symbols. Inverse: plain_encode."""
    symbols = []
    for cdf, low in zip(*tables):
        head, tail = state
        slot = head & (1 << PRECISION) - 1
        i = int(np.searchsorted(cdf, slot, side="right")) - 1
        head = int(cdf[i + 1] - cdf[i]) * (head >> PRECISION) + slot - int(cdf[i])
        if head < 1 << 32:
            word, tail = tail
            head = head << 32 | word
        symbols.append(int(low) + i)
        state = head, tail
    return symbols


def timed(function, *arguments, rounds=ROUNDS):
    """Return the result and the least of several times, in seconds."""
    best = np.inf
    for _ in range(rounds):
        start = time.perf_counter()
        result = function(*arguments)
        best = min(best, time.perf_counter() - start)
    return result, best


def peak(function, *arguments):
    """Return the peak of the memory that a call allocates, in bytes."""
    tracemalloc.start()
    function(*arguments)
    size = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return size


def report(name, rows):
    """Print two coders, (label, seconds to encode, seconds to decode, symbols, bytes) each, and ratios."""
    table = []
    for label, encoding, decoding, count, memory in rows:
        both = encoding + decoding
        table.append([count / 1e6 / encoding, count / 1e6 / decoding, count / 1e6 / both, memory / count])
        print(f"{name + ', ' + label:32}" + "{:12.4f}{:12.4f}{:12.4f}{:12.0f}".format(*table[-1]))
    *speeds, memory = np.array(table[0]) / table[1]
    print(f"{'ratio':32}" + "".join(f"{ratio:11.0f}x" for ratio in (*speeds, 1 / memory)))


@script
def main(argv=None):
    """Print millions of symbols a second, either way and both ways, and bytes of memory a symbol."""
    options, _ = parse(__doc__, OPTIONS, argv)
    print(f"{'million symbols/s':32}{'encode':>12}{'decode':>12}{'both':>12}{'B/symbol':>12}")
    for name, components, make in [
        ("logistic", 1, fixed),
        ("mixture of 3", 3, fixed),
        ("adapting", 3, adapting),
        ("and weighing", 3, partial(adapting, weighing=True)),
        ("and nearby", 3, partial(adapting, weighing=True, nearby=True)),
    ]:
        parameters, symbols = draw(components, options["symbols"])
        data, encoding = timed(encode, make, parameters, symbols)
        decoded, decoding = timed(decode, make, parameters, data)
        memory = max(peak(encode, make, parameters, symbols), peak(decode, make, parameters, data))
        ours = "ours", encoding, decoding, options["symbols"], memory

        few, some = tuple(a[:, : options["plain"]] for a in parameters), symbols[: options["plain"]].tolist()
        tables, tabulating = timed(plain_tables, few)
        state, encoding = timed(plain_encode, tables, some)
        plain_decoded, decoding = timed(plain_decode, tables, state)
        plain = "original's kind", tabulating + encoding, decoding, len(some), peak(plain_tables, few)

        if not np.array_equal(decoded, symbols) or plain_decoded != some:
            raise SystemExit(f"{name}: the decoded symbols differ")
        report(name, (ours, plain))


if __name__ == "__main__":
    main()
