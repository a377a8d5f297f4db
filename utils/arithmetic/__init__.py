"""Exact arithmetic on images.

integers   rounding with a gradient; pixels and the range in which networks compute
polyphase  images <-> their four 2x2 bands; sizes and depth of a pyramid
colour     RGB <-> YCoCg-R
fixed      layers of networks in integers, equal on every machine, with the proof
products   ways to sum products of integers, all of them exact; the fastest is chosen by trial
passes     what lies between two products: for the CPU compiled, for other devices in tensors
kernels    the compiled passes
dense      convolutions and what comes after them in a processor's own instructions
crew       work spread over threads, one core each
"""
