"""Pictures for people, and what they are compared with.

plots          figures
sheets         many images on one sheet
interpolation  images made larger, by classical means
quality        PSNR and SSIM
rivals         other lossless codecs, as far as they are installed
"""
