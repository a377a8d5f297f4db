"""Scheme 1: a level of the wavelet by lifting of rows, then of columns, Haar and LeGall 5/3 among it.

And by lifting of both at once, which rounds less.
"""

import torch
import torch.nn.functional as F
from torch import nn

from flow.pyramid import Pyramid
from source.networks import ConvNet
from utils.arithmetic.fixed import check_finite
from utils.arithmetic.integers import LIMIT, STEPS, round_through
from utils.arithmetic.polyphase import (
    channels_last,
    crop,
    extend,
    interpolated,
    join_columns,
    merge,
    split,
    split_columns,
)

# Predict and update of the classical wavelets: taps at n - 1, n, n + 1, then a bias in steps, which turns
# rounding to the nearest into the standards' floor and never meets a tie.
#   haar:   d = o - e,                               s = e + floor(d / 2)
#   legall: d = o - floor((e[n] + e[n+1]) / 2),      s = e + floor((d[n-1] + d[n] + 2) / 4)
CLASSICAL = {
    "haar": (((0, 1, 0), 0), ((0, 1 / 2, 0), -1 / 4)),
    "legall": (((0, 1 / 2, 1 / 2), -1 / 4), ((1 / 4, 1 / 4, 0), 1 / 8)),
}
# Taps at n - 2 .. n + 2, LeGall's at first, and free to become longer.
LONGER = ((0, 0, 1 / 2, 1 / 2, 0), 0), ((0, 1 / 4, 1 / 4, 0, 0), 0)
# What trainable lifting starts as; see lifting_level.
STARTS = CLASSICAL | {"linear": LONGER, "luma": LONGER, "wavelet": LONGER}

# A transform moves slowly, or each step would throw back what the prior learns beside it: where Adam's steps
# are 0.004, a bias that is a weight as others are moves by a tone. Taps and biases are weights times SLOW.
SLOW = 1 / 64
# Networks of "wavelet" see differences of 16 tones as 1, and are slower still.
INPUT_GAIN, OUTPUT_GAIN = 16.0, 1 / 512

# A frozen lift's taps and bias count 2^-16, up to 2^8 and 2^8 steps; its network 2^-12.
TAP_BITS, TAP_MAX, NETWORK_BITS = 16, 2**24, 12
# What several filters add to a band counts 2^-8 of a step, until it is rounded.
JOINT_BITS = 8


def weighted(taps, x):
    """y[n] = sum over k of taps[k] x[n + k - K // 2] along rows, borders replicated: (B, C, H, W)."""
    reach, width = len(taps) // 2, x.shape[-1]
    ends = (x[..., :1].expand(*x.shape[:-1], reach), x[..., -1:].expand(*x.shape[:-1], reach))
    padded = torch.cat([ends[0], x, ends[1]], -1)
    return sum(tap * padded[..., k : k + width] for k, tap in enumerate(taps))


class Lift(nn.Module):
    """t(x) = taps * x + bias + network(x) along rows: one step of lifting; taps may be all there is.

    taps: an odd number of them, the middle one for the sample at n.
    total: what the taps sum to, whatever they learn; None: anything.
    x: (B, C, H, W) in the networks' range; returns the same shape. Source: method 4.
    """

    def __init__(self, taps, bias, network=None, total=None):
        super().__init__()
        self.slow_taps = nn.Parameter(torch.tensor(taps, dtype=torch.float32) / SLOW)
        self.slow_bias = nn.Parameter(torch.tensor(bias / STEPS / SLOW))
        self.network, self.total = network, total

    @property
    def taps(self):
        """The taps that it computes with."""
        taps = SLOW * self.slow_taps
        return taps if self.total is None else taps + (self.total - taps.sum()) / len(taps)

    @property
    def bias(self):
        """The bias that it computes with."""
        return SLOW * self.slow_bias

    def forward(self, x):
        """See the class."""
        y = weighted(self.taps, x) + self.bias
        return y if self.network is None else y + self.network(x)

    def freeze(self, peaks):
        """A FixedLift; peaks: see utils/arithmetic/fixed.py, observe. May raise ValueError."""
        return FixedLift(self, peaks)


class FixedLift(nn.Module):
    """A Lift in integers, of coefficients v: floor(taps v + 256 bias + network(v) + 1/2), within +-2^16.

    v: (B, C, H, W) int32 -> (B, C, H, W) int32.
    """

    def __init__(self, lift, peaks):
        super().__init__()
        check_finite(lift.taps, lift.bias)
        taps, bias = lift.taps.detach().double().cpu(), lift.bias.detach().double().cpu() * STEPS
        for name, values in (("taps", taps), ("bias", bias)):
            whole = torch.round(values * 2**TAP_BITS).clamp(-TAP_MAX, TAP_MAX)
            self.register_buffer(name, whole.to(torch.int64))
        self.network = (
            None
            if lift.network is None
            else lift.network.freeze(peaks, STEPS << NETWORK_BITS, limit=int(LIMIT) << NETWORK_BITS)
        )

    def check(self):
        """Raise ValueError unless 64 bits hold every sum."""
        # 64 bits have no absolute value of their least
        if max(self.taps.double().abs().max(), self.bias.double().abs()) > TAP_MAX:
            raise ValueError("these taps are too large to be frozen")

    def forward(self, v):
        """See the class."""
        y = weighted(self.taps, v.long()) + self.bias
        if self.network is not None:
            y += self.network(v).long() << TAP_BITS - NETWORK_BITS
        return (y + (1 << TAP_BITS - 1) >> TAP_BITS).clamp(-int(LIMIT), int(LIMIT)).int()


class LiftingLevel(nn.Module):
    """odd -= round(256 P(c(even))), even += round(256 U(c(odd))), for pairs P, U; c(v) = v / 256.

    Rows first, then columns with the same steps; the coarse band is low in both.
    mirrored: where the last even sample of a row has no odd one beside it, update with the last odd sample
    there is, as symmetric extension has it (LeGall); otherwise with 0, a pixel that repeats itself (Haar).
    Source: method 4; Le Gall and Tabatabai (1988); ITU-T T.800, annex F (reversible 5/3).
    """

    # what details are, what those of an even grey are, where predictions keep it, and whether the coarse band
    # of chroma is every other sample
    details, flat, keeps_chroma = "lifted", 0, False

    def __init__(self, lifts, mirrored=True):
        super().__init__()
        self.lifts, self.mirrored = nn.ModuleList(lifts), mirrored

    def freeze(self, peaks):
        """A FixedLiftingLevel; peaks: see utils/arithmetic/fixed.py, observe. May raise ValueError."""
        return FixedLiftingLevel((lift.freeze(peaks) for lift in self.lifts), self.mirrored)

    def _output(self, i, source):
        return round_through(STEPS * self.lifts[i](source / STEPS))

    def _step(self, i, halves):
        """What step i adds to halves[1 - i % 2], from halves[i % 2]."""
        source, target = halves[i % 2], halves[1 - i % 2]
        if not target.numel():
            return target
        size = halves[0].shape[-2:]
        if self.mirrored:
            source = extend(source, size, 0)
        else:
            source = F.pad(source, (0, size[1] - source.shape[-1]))
        shift = crop(self._output(i, source), target.shape[-2:])
        return shift if i % 2 else -shift

    def _analyse(self, x):
        halves = list(split_columns(x))
        for i in range(len(self.lifts)):
            halves[1 - i % 2] = halves[1 - i % 2] + self._step(i, halves)
        return halves

    def _synthesise(self, low, high):
        halves = [low, high]
        for i in reversed(range(len(self.lifts))):
            halves[1 - i % 2] = halves[1 - i % 2] - self._step(i, halves)
        return join_columns(*halves)

    def split(self, x):
        """x (B, C, H, W) -> coarse band, detail bands (ur, dl, dr): high in columns, in rows, in both."""
        left, right = self._analyse(x)
        (ul, dl), (ur, dr) = ([half.mT for half in self._analyse(side.mT)] for side in (left, right))
        return ul, (ur, dl, dr)

    def merge(self, coarse, detail):
        """Undo split."""
        ur, dl, dr = detail
        left, right = (self._synthesise(u.mT, d.mT).mT for u, d in ((coarse, dl), (ur, dr)))
        return self._synthesise(left, right)


class FixedLiftingLevel(LiftingLevel):
    """A LiftingLevel in integers: the same steps for any order of summation."""

    def _output(self, i, source):
        return self.lifts[i](source.clamp(-LIMIT, LIMIT).to(torch.int32)).to(source.dtype)


class JointLevel(nn.Module):
    """Rows and columns lifted at once: four bands, each rounded once where a LiftingLevel rounds it twice.

    With p, u for the taps of a predict and an update along rows, p', u' along columns, for all pairs in turn:
        dr -= p (dl - p' ul) + p' ur
        ur -= p ul - u' dr
        dl -= p' ul - u dr
        ul += u (ur - u' dr) + u' dl
    But for rounding, these are the bands of a LiftingLevel. The first three may subtract a network each, of
    the other bands that are known when they are undone, less what it makes of zeros. Every height and width
    is welcome, as there.
    Source: Strutz and Rennert, "Two-dimensional integer wavelet transform with reduced influence of rounding
    operations" (2012).
    """

    details, flat, keeps_chroma = LiftingLevel.details, LiftingLevel.flat, False
    # The bands that steps change, as numbers of ul, ur, dl, dr, and those that their networks see.
    SEEN = {3: (0, 1, 2), 1: (0, 3), 2: (0, 3, 1), 0: ()}

    def __init__(self, lifts, networks=()):
        """lifts: pairs of predict and update; networks: none, or three for each pair."""
        super().__init__()
        self.filters, self.networks = nn.ModuleList(lifts), nn.ModuleList(networks)
        pairs = range(len(self.filters) // 2)
        self.steps = [(pair, i, band) for pair in pairs for i, band in enumerate(self.SEEN)]

    def freeze(self, peaks):
        """A FixedJointLevel; peaks: see utils/arithmetic/fixed.py, observe. May raise ValueError."""
        factor, limit = OUTPUT_GAIN * (STEPS << JOINT_BITS), int(LIMIT) << JOINT_BITS
        networks = [net.freeze(peaks, factor, -factor * net.rest().flatten(), limit) for net in self.networks]
        return FixedJointLevel([lift.freeze(peaks) for lift in self.filters], networks)

    def _read(self, band):
        """A band as filters see it."""
        return band

    def _along(self, lift, x):
        return weighted(lift.taps, x)

    def _down(self, lift, x):
        return self._along(lift, x.mT).mT

    def _bias(self, lift):
        return STEPS * lift.bias

    def _output(self, i, seen):
        network = self.networks[i]
        return STEPS * OUTPUT_GAIN * (network(seen / STEPS) - network.rest())

    def _whole(self, y):
        return round_through(y)

    def _shift(self, pair, i, band, bands):
        """What step i of a pair adds to a band."""
        target = bands[band]
        if not target.numel():
            return target
        bands = [extend(b, bands[0].shape[-2:], 0) for b in bands]
        predict, update = self.filters[2 * pair : 2 * pair + 2]
        (ul, ur, dl, dr), along, down = map(self._read, bands), self._along, self._down
        if band == 3:
            y = along(predict, dl - down(predict, ul)) + down(predict, ur)
        elif band == 1:
            y = along(predict, ul) - down(update, dr)
        elif band == 2:
            y = down(predict, ul) - along(update, dr)
        else:
            y = along(update, ur - down(update, dr)) + down(update, dl)
        y = y + self._bias(predict if band else update)
        if band and self.networks:
            y = y + self._output(3 * pair + i, torch.cat([bands[k] for k in self.SEEN[band]], 1))
        shift = crop(self._whole(y), target.shape[-2:]).to(target.dtype)
        return -shift if band else shift

    def split(self, x):
        """x (B, C, H, W) -> coarse band, detail bands (ur, dl, dr): high in columns, in rows, in both."""
        bands = list(split(x))
        for pair, i, band in self.steps:
            bands[band] = bands[band] + self._shift(pair, i, band, bands)
        return bands[0], tuple(bands[1:])

    def merge(self, coarse, detail):
        """Undo split."""
        bands = [coarse, *detail]
        for pair, i, band in reversed(self.steps):
            bands[band] = bands[band] - self._shift(pair, i, band, bands)
        return merge(*bands)


class FixedJointLevel(JointLevel):
    """A JointLevel in integers: the same steps for any order of summation."""

    # filters read and give 2^-8 of a step
    def _read(self, band):
        return band.clamp(-LIMIT, LIMIT).long() << JOINT_BITS

    def _along(self, lift, x):
        return weighted(lift.taps, x) + (1 << TAP_BITS - 1) >> TAP_BITS

    def _bias(self, lift):
        return lift.bias >> TAP_BITS - JOINT_BITS

    def _output(self, i, seen):
        return self.networks[i](seen).long()

    def _whole(self, y):
        limit = int(LIMIT)
        return (y + (1 << JOINT_BITS - 1) >> JOINT_BITS).clamp(-limit, limit)


class LumaLevel(nn.Module):
    """A level of which the first channel is lifted by another, a JointLevel of one; others are predicted.

    What an update adds to a coarse band is rounded, and chroma, of a few tones, has little beside that. So
    its coarse band is every other sample, and its details are differences from means of the nearest of them.
    These are rounded too, but a prior that sees the coarse band can tell what was rounded off (-differences).
    """

    details, flat, keeps_chroma = "luma", LiftingLevel.flat, True

    def __init__(self, luma):
        super().__init__()
        self.luma = luma

    def freeze(self, peaks):
        """The same in integers; peaks: see utils/arithmetic/fixed.py, observe. May raise ValueError."""
        return LumaLevel(self.luma.freeze(peaks))

    def split(self, x):
        """x (B, C, H, W) -> coarse band, detail bands (ur, dl, dr): high in columns, in rows, in both."""
        (coarse, lifted), (ul, *others) = self.luma.split(x[:, :1]), split(x[:, 1:])
        others = (part - interpolated(ul, band, part.shape[-2:]) for band, part in enumerate(others))
        return torch.cat([coarse, ul], 1), tuple(torch.cat(pair, 1) for pair in zip(lifted, others))

    def merge(self, coarse, detail):
        """Undo split."""
        luma, ul = self.luma.merge(coarse[:, :1], [band[:, :1] for band in detail]), coarse[:, 1:]
        others = [part[:, 1:] + interpolated(ul, band, part.shape[-2:]) for band, part in enumerate(detail)]
        return channels_last(torch.cat([luma, merge(ul, *others)], 1))

    def smooth(self, coarse, band, size):
        """See CouplingLevel."""
        return coarse.new_zeros((*coarse.shape[:2], *size))


def lifting_level(wavelet, repeat, hchnl, nhidden, channels=3):
    """A trainable level of `repeat` pairs of predict and update, the first of which is a classical wavelet.

    "haar", "legall": a LiftingLevel every step of which has a network of rows, free to leave its start.
    "linear": a JointLevel started as LeGall's, and a wavelet whatever it learns. Predictions are taps that
    sum to 1: where rows are constant, details are 0. Updates are taps that sum to 1/2, which a constant, with
    d = 0, passes unchanged, and the highest frequency, with d = -2 even, not at all. So the low pass is 1 at
    frequency 0 and 0 at pi, the high pass 0 at 0.
    "luma": the same of the first channel alone, a LumaLevel.
    "wavelet": as "linear", with networks beside the predictions, which see differences within bands alone, so
    that all this remains true of the slopes.
    """
    steps = STARTS[wavelet]
    steps += (((0,) * len(steps[0][0]), 0),) * (2 * repeat - 2)
    if wavelet in CLASSICAL:
        networks = (ConvNet(channels, channels, hchnl, nhidden, kernel=(1, 3)) for _ in steps)
        lifts = (Lift(taps, bias, network) for (taps, bias), network in zip(steps, networks))
        return LiftingLevel(lifts, wavelet != "haar")
    seen = [len(known) for known in JointLevel.SEEN.values() if known] * repeat
    networks = (
        ConvNet(count * channels, channels, hchnl, nhidden, differences=INPUT_GAIN)
        for count in (seen if wavelet == "wavelet" else ())
    )
    level = JointLevel((Lift(taps, bias, total=sum(taps)) for taps, bias in steps), networks)
    # what is added to all coefficients of a band the prior knows; a bias that learned would only wander, and
    # take what is rounded, and with it the prior, along
    for lift in level.filters:
        lift.slow_bias.requires_grad_(False)
    return LumaLevel(level) if wavelet == "luma" else level


def classical(wavelet):
    """The fixed integer wavelet "haar" (S transform) or "legall" (reversible 5/3) as a Pyramid."""
    lifts = (Lift(taps, bias) for taps, bias in CLASSICAL[wavelet])
    return Pyramid([LiftingLevel(lifts, wavelet != "haar")]).requires_grad_(False)
