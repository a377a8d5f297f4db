"""Encode a test set by symbol frequencies and report bits per dimension.

    python easyEncodeTrans.py                                     on the test set of the training
    python easyEncodeTrans.py -batch 10 -earlyStop 5 -target ImageNet64 -folder opt/NAME    migrate
    torchrun --nproc-per-node 2 easyEncodeTrans.py -target CIFAR    each process takes a share of the batches

As easyEncode.py, but with frequencies in place of the learned scales: each image has a histogram of its
differences from the prior's means. Codes every image to bytes, decodes the bytes and compares. Theory is the
entropy of the differences; the histogram comes on top of it. An image that came back changed: exit status 1.
"""

import utils.interrupt  # noqa: F401

# isort: split
from flow.codec.options import TEST_SET
from utils.options import parse, script


@script
def main(argv=None):
    """Code the test set and print the figures."""
    options, _ = parse(__doc__, TEST_SET, argv)
    from flow.codec import histogram  # takes seconds, which -h does not have to wait for
    from flow.codec.evaluate import code, open_test_set, report, streams_of

    precision = options["precision"]
    model, batches = open_test_set(options)

    def theory(images):
        return histogram.theory(model, images, precision)

    figures = code(batches, *streams_of(histogram, model, precision), theory, model.device)
    entropy, table = figures.theory
    excess = figures.actual / (entropy + table) - 1
    report(
        figures, f"histogram {table:.4f} bits per dimension; actual {excess:.2%} over entropy and histogram"
    )


if __name__ == "__main__":
    main()
