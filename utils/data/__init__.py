"""Image files and data sets as uint8 tensors.

images    image files: listed, read, halved; the photographs in the box
datasets  the names that -target takes, and patches of photographs
crops     pictures of any size, and crops of them drawn anew
origins   imitations of what happened to pictures before they were stored
"""
