"""What the scripts that draw do, after their options are read.

responses  FIR.py: frequency responses of the filters
spectra    legall_lena.py: low-pass and high-pass image of a picture, and their spectra
pyramids   simpleBigWavelet.py: the pyramid of a picture, and how compact its bands are
loading    progressive.py: progressive loading and super-resolution
samples    easyGenerate.py: images drawn from a model
"""
