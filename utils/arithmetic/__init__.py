"""Exact arithmetic on images.

integers   rounding with a gradient; pixels and the range in which networks compute
polyphase  images <-> their four 2x2 bands; sizes and depth of a pyramid
colour     RGB <-> YCoCg-R
fixed      networks in fixed point, equal on every machine, with the proof
"""
