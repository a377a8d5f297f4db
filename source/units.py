"""What the integers count in which distributions are given to the coder, and those of its tables.

A mixture of logistics has, for each component, a weight, a mean and a scale:
    mean    of 2^-MEAN_BITS steps, a step being the distance of two integers
    scale   k for 2^(k / SCALES_PER_OCTAVE + MIN_OCTAVE) steps, 0 <= k < SCALES: from 1/64 to 1024 steps
    weight  in proportion to the probabilities; to the coder they sum to 2^WEIGHT_SUM_BITS
All these are part of the .nwf format: with another value, no file decodes.

kernels.py has them compiled in, and numba's cache does not notice a change here: touch that file then.
"""

# Probabilities are integers out of 2^precision.
MIN_PRECISION, MAX_PRECISION = 16, 24

MEAN_BITS = 6
WEIGHT_SUM_BITS = 16
SCALES_PER_OCTAVE = 32
MIN_OCTAVE, MAX_OCTAVE = -6, 10
SCALES = (MAX_OCTAVE - MIN_OCTAVE) * SCALES_PER_OCTAVE + 1

# The sigmoid: its argument counts 2^-29, its value 2^-31. It is tabulated at multiples of 2^(23 - 29) = 1/64
# in [-24, 24], beyond which it rounds to 0 and 1.
ARGUMENT_BITS = 29
SIGMOID_BITS = 31
SIGMOID_CELL_BITS = 23
SIGMOID_REACH = 24
# The logit is tabulated at multiples of 2^-10, in units of 2^-20; scales are in units of 2^-16 steps.
LOGIT_CELLS_BITS = 10
LOGIT_BITS = 20
SCALE_BITS = 16
