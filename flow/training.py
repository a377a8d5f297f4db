"""Training by exact likelihood: batches, rates, savings that resume exactly, records and the loss curve.

Source: method 5. A model is any module whose call gives log-likelihoods in nats, (B, 3, H, W) -> (B,).
"""

import math
import os
import signal
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from utils.arithmetic.integers import bits_per_dimension
from utils.files import load_tensors, remove_unfinished, replacing, save_tensors, write_table
from utils.options import SEED, Option
from utils.show.plots import loss_curve

TRAINING = {
    "epoch": Option(400, "epochs to train, from the start", least=1),
    "batch": Option(200, "images a step, over all processes", least=1, most=10**6),
    "lr": Option(0.001, "learning rate", above=0),
    "optimizer": Option("adamax", "adamax, the paper's, or adam", ("adamax", "adam")),
    "clipNorm": Option(0.0, "limit of the gradient's norm, in bits per dimension; 0: none", least=0),
    "lrSchedule": Option(
        "paper",
        "paper: warm-up over ten epochs, times -decay each epoch; "
        "cosine: short warm-up, then half a cosine to 0 at the last epoch; constant",
        ("paper", "cosine", "constant"),
    ),
    "decay": Option(0.99, "factor on the learning rate for each epoch of -lrSchedule paper", above=0, most=1),
    "ema": Option(
        0.0, "decay of the moving average of the weights that is tested and kept as best; 0: none",
        least=0, below=1,
    ),
    "savePeriod": Option(10, "epochs between periodic savings", least=1),
    "seed": SEED._replace(help="seed of the initial weights and of the order of the images"),
    "flip": Option(False, "mirror half of the images at random, left to right, while training"),
    "noise": Option(
        0.0, "add noise of up to so many tones to a third of the images while training, for cameras' grain",
        least=0, most=255,
    ),
    "amp": Option(False, "compute the networks in bfloat16 while training (tests stay in float32)"),
    "compile": Option(False, "compile the training step with torch.compile"),
}  # fmt: skip

KEPT_SAVINGS = 3
RESUMABLE = "latest.safetensors", "best_test.safetensors", "best_train.safetensors"
SAVE_SECONDS, SHOW_SECONDS, DRAW_SECONDS = 300, 0.5, 20
# A working model costs 8 bits or less; one that costs this much never comes back.
DIVERGED = 1000.0


@dataclass
class Progress:
    """Where a training stands: next epoch, its next step, all steps, its sums, bests, past epochs."""

    epoch: int = 0
    step: int = 0
    steps: int = 0
    nats: float = 0.0
    dimensions: int = 0
    seconds: float = 0.0
    best_train: float = math.inf
    best_test: float = math.inf
    history: list = field(default_factory=list)


RECORD = ("epoch", "train_bpd", "test_bpd", "rate", "seconds")


def learning_rate(options, done):
    """Factor on -lr when `done` epochs (a fraction counts) are behind. Source: method 5."""
    if options["lrSchedule"] == "paper":
        return min(1.0, (int(done) + 1) / 10) * options["decay"] ** int(done)
    if options["lrSchedule"] == "cosine":
        t = min(done / options["epoch"], 1.0)
        return min(1.0, (t + 1e-3) / 0.02) * (1 + math.cos(math.pi * t)) / 2
    return 1.0


def epoch_batches(sizes, batch, seed, epoch):
    """The batches of an epoch: a list of (data set, indices), the same for the same seed and epoch.

    sizes: the number of images of each data set; a batch has images of one of them.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    orders = [torch.randperm(n, generator=generator) for n in sizes]
    batches = [(which, part) for which, order in enumerate(orders) for part in order.split(batch)]
    if len(sizes) == 1:
        return batches
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def mirrored(sizes, seed, epoch):
    """The images to mirror in an epoch: bool (N,) of each data set, the same for the same seed and epoch.

    sizes: the number of images of each data set.
    """
    # another generator than that of epoch_batches, whose numbers have made the order
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) ^ 0xF11B)
    return [torch.rand(n, generator=generator) < 0.5 for n in sizes]


class Workers:
    """The processes of a run: one, or those that torchrun started. Rank 0 writes and shows."""

    def __init__(self):
        self.distributed = dist.is_available() and dist.is_torchelastic_launched()
        self.local_rank = int(os.environ["LOCAL_RANK"]) if self.distributed else 0
        self.rank, self.count = 0, 1

    @contextmanager
    def joined(self, device):
        """Within: the process group exists. Several GPUs: each process takes the one of its local rank."""
        if not self.distributed:
            yield
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        try:
            yield
        finally:
            dist.destroy_process_group()

    @contextmanager
    def leader_first(self):
        """Within: rank 0 comes first, so that it alone downloads."""
        if self.rank:
            dist.barrier()
        yield
        if self.distributed and not self.rank:
            dist.barrier()

    def sum(self, *values, device="cpu"):
        """The sums of numbers or scalar tensors over all processes, as a float64 tensor."""
        total = torch.stack([torch.as_tensor(v, dtype=torch.float64, device=device) for v in values])
        if self.distributed:
            dist.all_reduce(total)
        return total


@contextmanager
def stop_signal():
    """Within: Ctrl-C or SIGTERM sets the first item of the yielded list; a second one interrupts at once."""
    asked = [False]

    def ask(number, frame):
        if asked[0]:
            raise KeyboardInterrupt
        asked[0] = True

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def place(images, device):
    """Move a uint8 data set to the device, unless it would take more than half of a GPU's free memory."""
    if device.type == "cuda" and images.nbytes > torch.cuda.mem_get_info(device)[0] // 2:
        return images.pin_memory()
    return images.to(device)


def gather(images, index, device):
    """The images of an index as a batch on the device."""
    return images[index.to(images.device)].to(device, non_blocking=True)


def mirror(images, which):
    """Mirror, left to right, those of (B, 3, H, W) that `which`, bool (B,), tells."""
    return torch.where(which.to(images.device)[:, None, None, None], images.flip(-1), images)


def grainy(images, most, generator):
    """Add Gaussian noise to a third of (B, 3, H, W) uint8; its deviation is drawn from 0 .. `most` tones.

    Small photographs, and those from JPEG files, lack the grain of a camera's pixels.
    """
    some = torch.rand(len(images), generator=generator) < 1 / 3
    deviation = (most * torch.rand(len(images), generator=generator) * some)[:, None, None, None]
    noise = (deviation * torch.randn(images.shape, generator=generator)).to(images.device)
    return (images + noise).round_().clamp_(0, 255).to(torch.uint8)


def _optimizer(options, parameters):
    """The optimiser of -optimizer. Source of the paper's: method 5."""
    if options["optimizer"] == "adam":
        return torch.optim.Adam(parameters, lr=options["lr"], betas=(0.9, 0.99))
    return torch.optim.Adamax(parameters, lr=options["lr"], eps=1e-7)


class Trainer:
    """A model in training, with everything that a saving must hold to go on exactly.

    model: the module; train, test: lists of uint8 tensors (N, 3, S, S), one for each size; options: those of
    TRAINING; folder: the model folder; device: torch.device; workers: Workers, joined.
    """

    def __init__(self, model, train, test, options, folder, device, workers):
        if not any(min(len(part), options["batch"]) >= workers.count for part in train):
            raise ValueError(f"{workers.count} processes: need an image for each in a -batch")
        if not any(map(len, test)):
            raise ValueError("the test set has no images")
        self.model, self.options, self.folder = model.to(device), options, Path(folder)
        self.train, self.test = ([place(part, device) for part in parts] for parts in (train, test))
        self.device, self.workers, self.progress = device, workers, Progress()
        self.optimizer = _optimizer(options, model.parameters())
        self.average = None
        if options["ema"]:
            self.average = {name: p.detach().clone() for name, p in model.named_parameters()}
        call = torch.compile(model) if options["compile"] else model
        self.call = DistributedDataParallel(call) if workers.distributed else call
        self.saved = self.drawn = time.monotonic()

    def weights(self):
        """The weights to test and to keep: the moving average if there is one."""
        return self.average or dict(self.model.named_parameters())

    def save(self, name):
        """Write weights, optimiser and progress to savings/NAME.safetensors; weights must be finite."""
        if not all(p.isfinite().all() for p in self.model.parameters()):
            self.check(math.nan)
        tensors = {f"model.{n}": p for n, p in self.model.named_parameters()}
        if self.average:
            tensors |= {f"average.{n}": p for n, p in self.average.items()}
        for n, p in self.model.named_parameters():
            tensors |= {f"optimizer.{key}.{n}": value for key, value in self.optimizer.state[p].items()}
        save_tensors(self.folder / "savings" / f"{name}.safetensors", tensors, asdict(self.progress))
        self.saved = time.monotonic()

    def load(self):
        """Go on exactly where the last `save` was; without one, from the best weights, the optimiser afresh.

        Raises ValueError if the saving is of another model.
        """
        savings = self.folder / "savings"
        if not self.workers.rank:
            remove_unfinished(savings)
        path = next((p for p in map(savings.joinpath, RESUMABLE) if p.exists()), savings / RESUMABLE[0])
        tensors, state = load_tensors(path)
        try:
            if sum(n.startswith("model.") for n in tensors) != len(list(self.model.parameters())):
                raise KeyError("another number of weights")
            self.progress = Progress(**state)
            for n, p in self.model.named_parameters():
                p.data.copy_(tensors[f"model.{n}"])
                if self.average:
                    self.average[n].copy_(tensors.get(f"average.{n}", p))
                second = "exp_avg_sq" if self.options["optimizer"] == "adam" else "exp_inf"
                marks = {key: f"optimizer.{key}.{n}" for key in ("step", "exp_avg", second)}
                if marks["step"] in tensors:
                    state = {key: tensors[mark].to(p.device) for key, mark in marks.items()}
                    self.optimizer.state[p] = state | {"step": state["step"].cpu()}
        except (KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"{path}: a saving of another model or training ({error})") from None

    def save_best(self, which):
        """Write the weights alone to savings/best_WHICH.safetensors."""
        tensors = {f"model.{n}": p for n, p in self.weights().items()}
        save_tensors(self.folder / "savings" / f"best_{which}.safetensors", tensors, asdict(self.progress))

    def save_epoch(self):
        """The periodic saving; only the last few are kept."""
        self.save(f"epoch_{self.progress.epoch:05d}")
        for old in sorted((self.folder / "savings").glob("epoch_*.safetensors"))[:-KEPT_SAVINGS]:
            old.unlink()

    def record(self, always=True):
        """Write records/losses.csv, and pic/lossCurve.png unless it is fresh."""
        write_table(self.folder / "records" / "losses.csv", RECORD, self.progress.history)
        if always or time.monotonic() - self.drawn > DRAW_SECONDS:
            with replacing(self.folder / "pic" / "lossCurve.png") as temporary:
                loss_curve(self.progress.history, temporary)
            self.drawn = time.monotonic()

    def step(self, images, total):
        """One step on this process's share of a batch of `total` images; the sum of -log P in nats."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options["amp"]):
            nats = -self.call(images).sum()
        self.optimizer.zero_grad(set_to_none=True)
        # DistributedDataParallel takes the mean over processes: scaled so that it is the mean over the batch
        (nats * (self.workers.count / total)).backward()
        if self.options["clipNorm"]:
            limit = self.options["clipNorm"] * images[0].numel() * math.log(2)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.optimizer.step()
        if self.average:
            parameters = [p.detach() for p in self.model.parameters()]
            # young averages forget faster, or the first weights would weigh on them for long
            decay = min(self.options["ema"], (1 + self.progress.steps) / (10 + self.progress.steps))
            torch._foreach_lerp_(list(self.average.values()), parameters, 1 - decay)
        return nats.detach()

    @torch.no_grad()
    def evaluate(self):
        """Mean bits per dimension of the test images under the weights to keep."""
        weights, nats, dimensions = self.weights(), 0.0, 0
        for images in self.test:
            mine = torch.arange(self.workers.rank, len(images), self.workers.count)
            for index in mine.split(max(self.options["batch"] // self.workers.count, 1)):
                x = gather(images, index, self.device)
                nats -= functional_call(self.model, weights, (x,)).sum(dtype=torch.float64)
            dimensions += images.numel()
        return bits_per_dimension(self.workers.sum(nats, device=self.device).item(), dimensions)

    def check(self, bits):
        """Raise FloatingPointError for a loss that is not finite, or far from any image."""
        if not bits < DIVERGED:
            raise FloatingPointError(
                f"training diverged in epoch {self.progress.epoch + 1} ({bits:.3g} bits per dimension): "
                f"give a smaller -lr; the last good weights are in {self.folder / 'savings'}"
            )

    def run_epoch(self, asked, show):
        """Do the steps of an epoch that are left. Returns False if it was asked to stop before the last."""
        p, options, workers = self.progress, self.options, self.workers
        sizes = [len(t) for t in self.train]
        batches = epoch_batches(sizes, options["batch"], options["seed"], p.epoch)
        flips = mirrored(sizes, options["seed"], p.epoch) if options["flip"] else None
        batches = [b for b in batches if len(b[1]) >= workers.count]
        counts = [len(index) for _, index in batches]
        bar = tqdm(
            desc=f"epoch {p.epoch + 1}/{options['epoch']}",
            total=sum(counts),
            initial=sum(counts[: p.step]),
            unit="image",
            disable=not show,
            leave=False,
        )
        started, shown = time.monotonic() - p.seconds, 0.0
        pending = torch.zeros((), dtype=torch.float64, device=self.device)
        with bar:
            while p.step < len(batches):
                which, index = batches[p.step]
                for group in self.optimizer.param_groups:
                    group["lr"] = options["lr"] * learning_rate(options, p.epoch + p.step / len(batches))
                share = index[workers.rank :: workers.count]
                images = gather(self.train[which], share, self.device)
                if flips:
                    images = mirror(images, flips[which][share])
                if options["noise"]:
                    draw = np.random.SeedSequence((options["seed"], p.epoch, p.step, workers.rank))
                    generator = torch.Generator().manual_seed(int(draw.generate_state(1)[0]))
                    images = grainy(images, options["noise"], generator)
                pending += self.step(images, len(index))
                p.step += 1
                p.steps += 1
                p.dimensions += len(index) * self.train[which][0].numel()
                bar.update(len(index))
                last = p.step == len(batches)
                # several processes must decide alike, so that they ask each other after every step
                if workers.distributed or last or asked[0] or time.monotonic() - shown > SHOW_SECONDS:
                    nats, stop = workers.sum(pending, asked[0], device=self.device).tolist()
                    pending.zero_()
                    p.nats, p.seconds, shown = p.nats + nats, time.monotonic() - started, time.monotonic()
                    bits = bits_per_dimension(p.nats, p.dimensions)
                    self.check(bits)
                    bar.set_postfix_str(f"{bits:.3f} bits/dim")
                    if stop and not last:
                        return False
                    if not workers.rank and time.monotonic() - self.saved > SAVE_SECONDS:
                        self.save("latest")
        return True

    def end_epoch(self):
        """Test, record, keep what is best, and save."""
        p = self.progress
        # rounded, since the sums depend in their last digits on when the bar was shown
        train, test = round(bits_per_dimension(p.nats, p.dimensions), 8), round(self.evaluate(), 8)
        self.check(test)
        rate = self.options["lr"] * learning_rate(self.options, p.epoch)
        history = [*p.history, dict(zip(RECORD, (p.epoch + 1, train, test, rate, round(p.seconds, 2))))]
        self.progress = Progress(
            p.epoch + 1,
            steps=p.steps,
            best_train=min(train, p.best_train),
            best_test=min(test, p.best_test),
            history=history,
        )
        if self.workers.rank:
            return
        if train < p.best_train:
            self.save_best("train")
        if test < p.best_test:
            self.save_best("test")
        last = self.progress.epoch == self.options["epoch"]
        if last or self.progress.epoch % self.options["savePeriod"] == 0:
            self.save_epoch()
        self.record(always=last)
        # at last: a run that is killed before goes on from the epoch's start and writes the others again
        self.save("latest")
        images = sum(len(t) for t in self.train) / max(p.seconds, 1e-9)
        tqdm.write(f"epoch {p.epoch + 1}: train {train:.4f}, test {test:.4f} bits/dim, {images:.0f} images/s")

    def run(self, show=True):
        """Train to the last epoch. Returns True if it got there, False if it was interrupted (and saved)."""
        with stop_signal() as asked:
            while self.progress.epoch < self.options["epoch"]:
                finished = self.run_epoch(asked, show and not self.workers.rank)
                if finished:
                    self.end_epoch()
                # one answer for all processes, whenever the signal reached each of them
                stop = self.workers.sum(asked[0], device=self.device).item()
                if not finished or (stop and self.progress.epoch < self.options["epoch"]):
                    if not self.workers.rank:
                        self.save("latest")
                        self.record()
                    return False
        return True
