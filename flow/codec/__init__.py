"""The codec: pictures and images <-> bytes.

api        Codec: a picture <-> bytes, under the model of a folder
container  pack and unpack: a picture <-> a .nwf file, as docs/format.md defines it
pictures   picture files with palette, ICC profile, EXIF, gamma; pixels and metadata as bytes
formats    pictures as files of other formats
stream     images <-> streams under a frozen model, coarse to fine
histogram  the same by symbol frequencies in place of the learned scales
info       what a .nwf file holds
files      encode, decode and describe files, as easyEncode.py does
jobs       many files at once, and a table of them
evaluate   a test set to bytes and back, and its bits per dimension
options    the options of all this
"""
