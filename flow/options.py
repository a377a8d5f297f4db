"""The options of a model and its training: tables alone, read before what takes seconds to import."""

from utils.options import SEED, Option

# What the user types and parameter.json holds; translated to arguments in `build` of flow/model.py alone.
ARCHITECTURE = {
    "repeat": Option(
        1, "couplings of each band at a level; with -lifting, pairs of predict and update", least=0, most=64
    ),
    "hchnl": Option(12, "channels of the networks' hidden layers", least=1, most=2048),
    "nhidden": Option(1, "1x1 layers between the first and the last layer of a network", least=0, most=32),
    "nMixing": Option(5, "logistic components of the mixture for the last 2x2 block", least=1, most=256),
    "simplePrior": Option(False, "details under one learned mean and scale for each band, without networks"),
    "diffDetail": Option(False, "with -simplePrior: separate for each level and position"),
    "HUE": Option(False, "put the lossless luma and chroma transform YCoCg-R in front of the flow"),
    "clamp": Option(-1.0, "limit of the absolute means of the mixture; -1: none", least=-1),
    "heavy": Option(False, "networks of its own for every level, in place of shared ones"),
    "lifting": Option(
        "none",
        "scheme 1, lifting of rows and columns, started as haar or legall; linear: of both at once, by taps "
        "alone, a wavelet whatever they learn; luma: that of luma, chroma predicted; wavelet: linear with "
        "networks; none: scheme 2",
        ("none", "haar", "legall", "linear", "luma", "wavelet"),
    ),
    "prior": Option(
        "paper",
        "of the details: paper, means and scales by two networks of the coarse band; bands, mixtures, band "
        "by band and channel by channel; simple, as -simplePrior",
        ("paper", "bands", "simple"),
    ),
    "width": Option(64, "channels of the networks of -prior bands", least=1, most=2048),
    "blocks": Option(
        1, "residual blocks of -prior bands for each band; twice as many before", least=0, most=6
    ),
    "components": Option(3, "logistic components of the mixtures of -prior bands", least=1, most=32),
    "ownLevels": Option(
        0, "finest levels that have networks of -prior bands of their own; all others share one set",
        least=0, most=16,
    ),
    "ownWidth": Option(
        0, "channels of the networks of -ownLevels; 0: as many as -width says", least=0, most=2048
    ),
    "ownBlocks": Option(
        0, "residual blocks of the networks of -ownLevels, as of -blocks; 0: as many", least=0, most=6
    ),
    "differences": Option(
        False,
        "networks of -prior bands see pixels less the mean of the nearest ones of the coarse band (-lifting "
        "has no others), and learn slowly what they make of the mean of pixels",
    ),
}  # fmt: skip
BAND_PRIOR_OPTIONS = "width", "blocks", "components", "ownLevels", "ownWidth", "ownBlocks", "differences"

TRAINING = {
    "epoch": Option(400, "epochs to train, from the start", least=1),
    "batch": Option(32, "images a step, over all processes", least=1, most=10**6),
    "lr": Option(0.002, "learning rate", above=0),
    "optimizer": Option(
        "muon",
        "adamax, the paper's; adam; muon, which makes the steps of layers orthogonal and learns faster",
        ("adamax", "adam", "muon"),
    ),
    "clipNorm": Option(1.0, "limit of the gradient's norm, in bits per dimension; 0: none", least=0),
    "lrSchedule": Option(
        "cosine",
        "paper: warm-up over ten epochs, times -decay each epoch; "
        "cosine: short warm-up, then half a cosine to 0 at the last epoch; constant",
        ("paper", "cosine", "constant"),
    ),
    "decay": Option(0.99, "factor on the learning rate for each epoch of -lrSchedule paper", above=0, most=1),
    "ema": Option(
        0.999, "decay of the moving average of the weights that is tested and kept as best; 0: none",
        least=0, below=1,
    ),
    "savePeriod": Option(10, "epochs between periodic savings", least=1),
    "seed": SEED._replace(help="seed of the initial weights and of the order of the images"),
    "crops": Option(
        0, "fresh crops an epoch, drawn from anywhere in the pictures; 0: fixed patches, side by side",
        least=0, most=10**9,
    ),
    "flip": Option(False, "mirror half of the images at random, left to right, while training"),
    "shift": Option(
        0,
        "without -crops: every other step sees windows of its images, smaller by so many rows and columns, "
        "anywhere in them, on either lattice of the wavelet: few images are soon known by heart",
        least=0, most=1024,
    ),
    "transpose": Option(False, "with -crops: turn half of them at random, rows to columns"),
    "grey": Option(0.0, "with -crops: the share of them that is grey", least=0, most=1),
    "origins": Option(
        0.0, "with -crops: the share that imitates other origins: JPEG, chroma of half resolution",
        least=0, most=1,
    ),
    "noise": Option(
        0.0, "add noise of up to so many tones to a third of the images while training, for cameras' grain",
        least=0, most=255,
    ),
    "amp": Option(False, "compute the networks in bfloat16 while training (tests stay in float32)"),
    "compile": Option(False, "compile the training step with torch.compile"),
    "board": Option(False, "write the losses for TensorBoard too, which must be installed: records/board"),
}  # fmt: skip
# What -paper trains with, and folders from before an option did.
PAPER_TRAINING = {
    "batch": 200, "lr": 0.001, "optimizer": "adamax", "clipNorm": 0.0, "lrSchedule": "paper", "ema": 0.0,
}  # fmt: skip
