"""Mixtures that adapt to the errors around, symbol by symbol, without a bit of side information.

Of a position, what is known in its own channel and band is what the networks did not see: the errors to the
left and above, in scales of their mixtures. A filter of these, of the errors of the channels before at this
place, and of this channel in the bands before, moves the means; it learns from every symbol by least mean
squares, and is believed as far as it has been right, which on some pictures is not at all. Classes of the
sizes of errors around move the scales, each by how much larger its errors have been than all. And the weight
and scale of each component follow the gradient of every symbol's logarithm, for each octave of scales, and
weights also the evidence around: how much better or worse a component did than its mixture.

What a texture is like just here, a second filter learns: its weights are handed on from place to place, along
the row above from the right, then from the left and from above, and fade, and so are the sums by which it is
believed, and what is added to scales. Every level, band and channel begins anew. An encoder goes through the
motions of a decoder.

All of it is in integers: see docs/format.md, "Adaptation". Source: LMS filters as of Widrow and Hoff; classes
of the energy of errors as in CALIC; weights by gradients in the logistic domain as in PAQ's mixing.
"""

import numpy as np

from source import kernels
from source.kernels import CLASSES, EVIDENCE, FILTER, LOCAL, NEAR, OCTAVES, TRUST_BITS
from source.tables import TABLES, Mixture

# Levels whose coarse band has fewer positions are left as they are.
LEAST = 1 << 8
# Sizes begin as those of a logistic's errors, in sixteenths of its scale, as if so many had been seen.
USUAL, BEGUN = 22, 64
# What the sums begin with by which the filter is weighed: it is believed at first.
BELIEVED = 1 << 16
# How far evidence is believed at first.
TRUSTED = 3 << TRUST_BITS - 5
# The filter's weights of the first two errors around, at first, in ur, dl and dr.
FIRST = (-4000, 6000), (6000, -4600), (-2600, -3000)


class Adaptation:
    """What is known of one level of an image; size: (height, width) of its coarse band; order: of bands.

    weighing: whether components are weighed anew, and widened, too; nearby: whether there is also what
    is learned nearby.
    """

    def __init__(self, size, order, channels, weighing=False, nearby=False):
        self.size, self.order, self.channels, self.weighing = size, order, channels, weighing
        self.nearby, self.memory = nearby, None

    def _empty(self, components):
        """A Memory of mixtures of so many."""
        channels, bands, padded = self.channels, len(self.order), (self.size[0] + 3, self.size[1] + 4)
        weighed = components * self.weighing
        return kernels.Memory(
            np.zeros((bands, channels, *padded), np.int8),
            np.empty((channels, *padded), np.uint8),
            np.empty((channels, FILTER), np.int32),
            *np.empty((2, channels, CLASSES), np.int64),
            *np.empty((3, channels), np.int64),
            np.empty((channels, padded[1] * self.nearby, LOCAL), np.int32),
            *np.empty((2, channels, OCTAVES, weighed), np.int64),
            np.empty((channels, EVIDENCE), np.int64),
            np.empty((channels, 3, padded[1], weighed), np.int8),
            kernels.Scratch(
                np.empty(CLASSES, np.int64),
                np.empty(NEAR, np.int32),
                np.empty((EVIDENCE + 4, components), np.int64),
            ),
        )

    def begin(self, band, channel):
        """Forget what a channel learned of the band before."""
        memory = self.memory
        memory.sizes[channel], memory.weights[channel], memory.seen[channel] = USUAL, 0, 0
        memory.weights[channel, :2] = FIRST[self.order[band]]
        memory.counts[channel], memory.sums[channel] = BEGUN, USUAL * BEGUN
        memory.agreement[channel] = memory.power[channel] = BELIEVED
        memory.nearby[channel] = 0
        memory.logits[channel] = memory.widths[channel] = memory.evidence[channel] = 0
        memory.trust[channel] = TRUSTED

    def mixture(self, place, fields, settings):
        """The Adaptive of a strip: see corrections.Place; weight, mean and scale, (K, N); nbins, precision.

        Strips come in the order of their symbols, and their symbols must be coded before the next.
        """
        if self.memory is None:
            self.memory = self._empty(len(fields[0]))
        if not place.top:
            self.begin(place.band, place.channel)
        self.memory.scratch.known[:] = 0
        return Adaptive(self.memory, place, *fields, *settings)


class Adaptive(Mixture):
    """The Mixture of a strip, which adapts while its symbols are coded, or popped, until all are there."""

    def __init__(self, memory, place, *mixture):
        super().__init__(*mixture)
        self.memory, self.place = memory, place

    def _to_move(self):
        low, _, _, weight, mean, scale = self.fields
        return self.fields._replace(
            low=low.copy(), weight=weight.copy(), mean=mean.copy(), scale=scale.copy()
        )

    def intervals(self, symbols):
        """As of Mixture."""
        symbols, self.fields = self.in_turn(symbols), self._to_move()
        start, frequency = np.empty((2, 4 * symbols.size), np.uint32)
        place, arguments = tuple(self.place), (self.memory, TABLES, start, frequency)
        count = kernels.adapt(symbols, self.fields, place, *arguments)
        return start[:count].copy(), frequency[:count].copy()

    def pop(self, words, position, state, lowest, symbols):
        """As of Mixture; where symbols lack, nothing is learned."""
        here = slice(self.place.channel, self.place.channel + 1)
        learned = [part[here] for part in self.memory[2:-1]]
        before = [part.copy() for part in learned]
        strip = self._to_move(), TABLES, tuple(self.place), self.memory
        popped = kernels.pop_mixtures(words, position, state, lowest, symbols, *strip)
        if popped.count < symbols.size:
            for part, as_it_was in zip(learned, before):
                part[...] = as_it_was
        return popped
