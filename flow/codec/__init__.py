"""The codec: pictures and images <-> bytes.

api        Codec: a picture <-> bytes, under the model of a folder
container  pack and unpack: a picture <-> a .nwf file, as docs/format.md defines it
pictures   picture files with palette, ICC profile, EXIF, gamma; metadata as bytes
planes     pixels as bytes in one piece: raw, deflated, lossless WebP
deep       pictures of 16 bits a sample, and PNG files of them
formats    pictures as files of other formats
stream     images <-> streams under a frozen model, coarse to fine
corrected  streams whose distributions are made to suit the picture
tuning     what a picture moves the model's biases by
ycc        the luma and chroma that a picture was made of
ycc_kernels  its loops over pixels, compiled
dataset    a folder of .nwf files as a data set of torch's
feed       a file that comes in pieces: its levels as they are complete
histogram  the same by symbol frequencies in place of the learned scales
info       what a .nwf file holds
files      encode, decode and describe files, as easyEncode.py does
jobs       many files at once, and a table of them
evaluate   a test set to bytes and back, and its bits per dimension
options    the options of all this
"""
