"""Exact arithmetic on images.

integers   rounding with a gradient; pixels and the range in which networks compute
polyphase  images <-> their four 2x2 bands; sizes and depth of a pyramid
colour     RGB <-> YCoCg-R
fixed      layers in integers, equal on every machine, with the proof
passes     what lies between products, compiled and in tensors
kernels    the compiled passes
products   ways to sum products exactly, and which is the fastest here
crew       threads that take a tile each
"""
