"""What knows no model: image files, colour, rounding, data sets, options, training loop, plots."""
