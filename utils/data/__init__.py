"""Image files and data sets."""
