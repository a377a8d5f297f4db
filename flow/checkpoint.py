"""The state of a training and its saving, from which it goes on exactly where it was."""

import math
import sys
from dataclasses import asdict, dataclass, field

import torch

from flow.muon import Muon
from utils.files import load_tensors, save_tensors

# Module, learning rate -> its optimiser. Source: method 5.
OPTIMIZERS = {
    "adamax": lambda module, lr: torch.optim.Adamax(module.parameters(), lr, eps=1e-7),
    "adam": lambda module, lr: torch.optim.Adam(module.parameters(), lr, betas=(0.9, 0.99)),
    "muon": Muon,
}
# The figures of an epoch in a training's history; of old ones, the first three alone.
RECORD = ("epoch", "train_bpd", "test_bpd", "rate", "seconds")


def moments(optimizer, parameter):
    """What an optimiser keeps of the gradients of a parameter, under torch's names."""
    if isinstance(optimizer, torch.optim.Adamax):
        return "exp_avg", "exp_inf"
    of_layer = isinstance(optimizer, Muon) and any(parameter is p for p in optimizer.layers)
    return ("exp_avg",) if of_layer else ("exp_avg", "exp_avg_sq")


@dataclass
class Progress:
    """Where a training stands: next epoch, its next step, all steps, its sums, bests, past epochs.

    bands: the test figures of past epochs by band; of those that had them.
    """

    epoch: int = 0
    step: int = 0
    steps: int = 0
    nats: float = 0.0
    dimensions: int = 0
    seconds: float = 0.0
    best_train: float = math.inf
    best_test: float = math.inf
    history: list = field(default_factory=list)
    bands: list = field(default_factory=list)

    @classmethod
    def of(cls, table, path):
        """What a saving tells; path: its file. Raises ValueError for what no training has written."""
        blank = asdict(cls())
        for name, value in table.items():
            if name not in blank or not _is_like(value, blank[name]):
                raise ValueError(f"{path}: not the progress of a training ({name!r:.40} is {value!r:.40})")
        progress = cls(**table)
        if not all(set(RECORD[:3]) <= row.keys() <= set(RECORD) for row in progress.history):
            raise ValueError(f"{path}: not the progress of a training (its history is of other figures)")
        return progress


def _is_like(value, default):
    """Whether a value read from a file may stand where Progress has this default."""
    if isinstance(default, list):
        rows = isinstance(value, list) and all(isinstance(row, dict) for row in value)
        return rows and all(_is_like(number, 0.0) for row in value for number in row.values())
    if isinstance(default, int):
        return type(value) is int and 0 <= value < 2**53
    # infinite at first are the bests
    finite = type(value) in (int, float) and abs(value) <= sys.float_info.max
    return finite or value == default == math.inf


def _saved(tensors, name, like):
    """The tensor of a name. Raises KeyError if there is none of the same shape: others would be repeated."""
    if tensors[name].shape != like.shape:
        raise KeyError(f"{name} of another shape")
    return tensors[name]


class TrainingState:
    """A model, the moving average of its weights, their optimiser, and the progress.

    model: the module, on its device; options: those of TRAINING.
    """

    def __init__(self, model, options):
        self.model, self.progress = model, Progress()
        self.optimizer = OPTIMIZERS[options["optimizer"]](model, options["lr"])
        self.decay, self.average = options["ema"], None
        if self.decay:
            self.average = {name: p.detach().clone() for name, p in model.named_parameters()}

    def weights(self):
        """The weights to test and to keep: the moving average if there is one."""
        return self.average or dict(self.model.named_parameters())

    def is_finite(self):
        """Whether all weights are numbers."""
        return all(p.isfinite().all() for p in self.model.parameters())

    def nbytes(self):
        """What the weights take in memory with their gradients, moments and average."""
        copies = 2 + (self.average is not None)
        return sum(p.nbytes * (copies + len(moments(self.optimizer, p))) for p in self.model.parameters())

    def set_rate(self, rate):
        """Choose the learning rate of the steps to come."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def update(self):
        """One step of the optimiser along the gradients, and of the average after it."""
        self.optimizer.step()
        if self.average:
            parameters = [p.detach() for p in self.model.parameters()]
            # young averages forget faster, or the first weights would weigh on them for long
            decay = min(self.decay, (1 + self.progress.steps) / (10 + self.progress.steps))
            torch._foreach_lerp_(list(self.average.values()), parameters, 1 - decay)

    def save(self, path):
        """Write everything. Inverse: load."""
        tensors = {f"model.{n}": p for n, p in self.model.named_parameters()}
        if self.average:
            tensors |= {f"average.{n}": p for n, p in self.average.items()}
        for n, p in self.model.named_parameters():
            tensors |= {f"optimizer.{key}.{n}": value for key, value in self.optimizer.state[p].items()}
        save_tensors(path, tensors, asdict(self.progress))

    def load(self, path):
        """Undo save; of a file that holds weights alone, all else begins afresh.

        Raises ValueError if the saving is of another model.
        """
        tensors, progress = load_tensors(path)
        try:
            if sum(n.startswith("model.") for n in tensors) != len(list(self.model.parameters())):
                raise KeyError("another number of weights")
            for n, p in self.model.named_parameters():
                p.data.copy_(_saved(tensors, f"model.{n}", p))
                if self.average:
                    of_average = f"average.{n}"
                    self.average[n].copy_(_saved(tensors, of_average, p) if of_average in tensors else p)
                step = f"optimizer.step.{n}"
                if step in tensors:
                    state = {key: f"optimizer.{key}.{n}" for key in moments(self.optimizer, p)}
                    state = {key: _saved(tensors, name, p).to(p) for key, name in state.items()}
                    self.optimizer.state[p] = {"step": _saved(tensors, step, torch.tensor(0.0))} | state
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"{path}: a saving of another model or training ({error})") from None
        self.progress = Progress.of(progress, path)

    def save_weights(self, path):
        """Write the weights alone, and the progress."""
        save_tensors(path, {f"model.{n}": p for n, p in self.weights().items()}, asdict(self.progress))
