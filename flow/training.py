"""Training by exact likelihood: rates, steps, epochs, what they leave in the model folder, the loss curve.

Source: method 5.
"""

import copy
import math
import sys
import time
from contextlib import nullcontext

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from tqdm import tqdm

from flow.analysis import common_limit, shown_pyramid, tones_of
from flow.batches import batches_of, select, to_device
from flow.board import open_board
from flow.checkpoint import RECORD, Progress, TrainingState
from flow.folder import (
    bands_file,
    epoch_name,
    loss_curve_file,
    losses_file,
    pictures,
    saving,
    savings,
    savings_of_epochs,
)
from utils.arithmetic.integers import bits_per_dimension
from utils.arithmetic.polyphase import depth
from utils.data.crops import Pictures
from utils.files import replacing, write_table
from utils.show.plots import loss_curve
from utils.show.sheets import magnified, save_image, tiled
from utils.workers import stop_signal

# What a step takes, over what its forward pass saves for the gradients: temporary tensors; and on a CPU so
# many bytes for each value of its images, of temporary tensors as large as these, and of what was freed and
# is too scattered to be of use again. As measured, within some 15 percent on a CPU, 30 on a GPU.
BESIDE_SAVED, FOR_EACH_VALUE = 1.2, {"cpu": 170, "cuda": 0}
KEPT_SAVINGS = 3
# Of the pictures: rows of samples, their side at most, levels of the pyramid, width of both in pixels about.
SAMPLE_ROWS, SAMPLE_SIDE, SHOWN_LEVELS, SHOWN_WIDTH = 4, 64, 3, 512
SAVE_SECONDS, SHOW_SECONDS, DRAW_SECONDS = 300, 0.5, 20
# A working model costs 8 bits or less; one that costs this much never comes back.
DIVERGED = 1000.0
BANDS = ("ur", "dl", "dr")


def learning_rate(options, done):
    """Factor on -lr when `done` epochs (a fraction counts) are behind. Source: method 5."""
    if options["lrSchedule"] == "paper":
        return min(1.0, (int(done) + 1) / 10) * options["decay"] ** int(done)
    if options["lrSchedule"] == "cosine":
        t = min(done / options["epoch"], 1.0)
        return min(1.0, (t + 1e-3) / 0.02) * (1 + math.cos(math.pi * t)) / 2
    return 1.0


def time_left(seconds):
    """Seconds in words, as exact as one cares to know: "1 h 20 min", "5 min", "40 s"."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min" if seconds >= 100 else f"{seconds:.0f} s"


class Trainer:
    """A model in training, and what that leaves in its folder.

    model: a NeuralWavelet; train, test: lists of uint8 tensors (N, 3, S, S), one for each size, but train may
    be Pictures to draw crops from; options: those of TRAINING; folder: the model folder; device:
    torch.device; workers: Workers, joined.
    """

    def __init__(self, model, train, test, options, folder, device, workers):
        fixed = not isinstance(train, Pictures)
        if (
            options["batch"] < workers.count
            or fixed
            and not any(len(part) >= workers.count for part in train)
        ):
            raise ValueError(f"{workers.count} processes: need an image for each in a -batch")
        if fixed and options["shift"] >= (side := min(part.shape[-1] for part in train)):
            raise ValueError(f"-shift {options['shift']}: images of {side} pixels hold no such windows")
        if not any(map(len, test)):
            raise ValueError("the test set has no images")
        self.model, self.options, self.folder = model.to(device), options, folder
        self.train = [to_device(part, device) for part in train] if fixed else train
        self.test = [to_device(part, device) for part in test]
        self.device, self.workers, self.state = device, workers, TrainingState(self.model, options)
        self.call = torch.compile(model) if options["compile"] else model
        self.saved = self.drawn = time.monotonic()
        self.board = None

    def step(self, images, total):
        """One step on this process's share of a batch of `total` images; the sum of -log P in nats."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options["amp"]):
            nats = -self.call(images).sum()
        self.state.optimizer.zero_grad(set_to_none=True)
        (nats / total).backward()
        self.workers.add_up([p.grad for p in self.model.parameters() if p.grad is not None])
        if self.options["clipNorm"]:
            limit = self.options["clipNorm"] * images[0].numel() * math.log(2)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.state.update()
        return nats.detach()

    def memory(self):
        """About how many bytes this process will need: for a step on its share of a batch, and for weights.

        The latter with gradients, moments and average. Not counted: the images, and what Python and torch
        take by themselves.
        """
        share = -(-self.options["batch"] // self.workers.count)
        one, two = (self._step_bytes(count) for count in (1, 2))
        return round(one + (share - 1) * (two - one)), self.state.nbytes()

    def _step_bytes(self, count):
        """What a step on so many of the largest images takes, but for weights: from what is saved for it."""
        sets = self.test if isinstance(self.train, Pictures) else self.train
        side, found = max(images.shape[-1] for images in sets), {}

        def save(tensor):
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()

        images = torch.zeros(count, 3, side, side, dtype=torch.uint8, device=self.device)
        with (
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.options["amp"]),
            saved_tensors_hooks(save, lambda tensor: tensor),
        ):
            # held, so that no two tensors come to lie at the same place
            nats = self.model(images)  # noqa: F841
        for p in self.model.parameters():
            found.pop(p.untyped_storage().data_ptr(), None)
        return BESIDE_SAVED * sum(found.values()) + FOR_EACH_VALUE[self.device.type] * images.numel()

    @torch.no_grad()
    def evaluate(self):
        """Mean bits per dimension of the test images under the weights to keep, and each band's share of it.

        The latter as a dict: "ur 0", "dl 0" and "dr 0" of the finest level, "ur 1", ... of the next, "top".
        """
        weights, nats, dimensions = self.state.weights(), 0.0, 0
        levels = max(depth(*images.shape[-2:]) for images in self.test)
        by_band = torch.zeros(1 + 3 * levels, dtype=torch.float64, device=self.device)
        for images in self.test:
            mine = torch.arange(self.workers.rank, len(images), self.workers.count)
            for index in mine.split(max(self.options["batch"] // self.workers.count, 1)):
                x = select(images, index, self.device)
                total, sums = functional_call(self.model, weights, (x, True))
                nats -= total.sum(dtype=torch.float64)
                by_band[: len(sums)] -= sums
            dimensions += images.numel()
        sums = self.workers.sum(nats, *by_band, device=self.device).tolist()
        whole, top, *details = (bits_per_dimension(s, dimensions) for s in sums)
        names = [f"{band} {level}" for level in range(levels) for band in BANDS]
        return whole, dict(zip(names, details)) | {"top": top}

    def check(self, bits):
        """Raise FloatingPointError for a loss that is not finite, or far from any image."""
        if not bits < DIVERGED:
            epoch = self.state.progress.epoch + 1
            raise FloatingPointError(
                f"training diverged in epoch {epoch} ({bits:.3g} bits per dimension): "
                f"give a smaller -lr; the last good weights are in {savings(self.folder)}"
            )

    def save(self, name="latest"):
        """Write everything to the saving of a name; weights must be finite."""
        if not self.state.is_finite():
            self.check(math.nan)
        self.state.save(saving(self.folder, name))
        self.saved = time.monotonic()

    def save_epoch(self):
        """The periodic saving; only the last few are kept."""
        self.save(epoch_name(self.state.progress.epoch))
        for old in savings_of_epochs(self.folder)[:-KEPT_SAVINGS]:
            old.unlink()

    def record(self, always=True):
        """Write the losses of all epochs, also by band, and their curve unless it is fresh."""
        history, bands = self.state.progress.history, self.state.progress.bands
        write_table(losses_file(self.folder), RECORD, history)
        if bands:
            write_table(bands_file(self.folder), list(bands[-1]), bands)
        if always or time.monotonic() - self.drawn > DRAW_SECONDS:
            with replacing(loss_curve_file(self.folder)) as temporary:
                loss_curve(history, temporary)
            self.drawn = time.monotonic()

    @torch.no_grad()
    def draw(self):
        """Samples and the pyramid of the first test image under the weights to keep, as pictures."""
        model = copy.deepcopy(self.model)
        model.load_state_dict(self.state.weights())
        images = next(images for images in self.test if len(images))
        side = min(images.shape[-1], SAMPLE_SIDE)
        generator = torch.Generator(self.device).manual_seed(self.options["seed"])
        samples = model.sample(SAMPLE_ROWS**2, side, side, generator=generator).to("cpu", torch.uint8)
        top, details = model.transform(
            images[:1].to(self.device), min(depth(*images.shape[-2:]), SHOWN_LEVELS)
        )
        tones = tones_of(model, details)
        limit = common_limit([band for detail in tones for band in detail]) if tones else 1.0
        bands = shown_pyramid(model, top, tones, limit)[0].round().clamp(0, 255).byte()
        sheets = {"samples": tiled(samples, SAMPLE_ROWS), "pyramid": bands}
        for name, sheet in sheets.items():
            save_image(magnified(sheet, SHOWN_WIDTH), pictures(self.folder) / f"{name}.png")

    def run_epoch(self, stop, show):
        """Do the steps of an epoch that are left. Returns False if a stop was requested before the last."""
        p, workers = self.state.progress, self.workers
        batches = self.batches = batches_of(self.train, self.options, p.epoch, workers)
        started, shown, before = time.monotonic() - p.seconds, 0.0, p.dimensions
        pending = torch.zeros((), dtype=torch.float64, device=self.device)
        with self.progress_bar(batches, show) as bar:
            while p.step < len(batches):
                done = p.epoch + p.step / len(batches)
                self.state.set_rate(self.options["lr"] * learning_rate(self.options, done))
                images, total = batches.share(p.step, self.device)
                pending += self.step(images, total)
                p.step += 1
                p.steps += 1
                p.dimensions += total * images[0].numel()
                bar.update(total)
                last = p.step == len(batches)
                seldom = time.monotonic() - shown > SHOW_SECONDS
                # several processes must decide alike, so that they ask each other after every step
                if workers.distributed or last or stop.requested or seldom:
                    nats, stopped = workers.sum(pending, stop.requested, device=self.device).tolist()
                    pending.zero_()
                    p.nats, p.seconds, shown = p.nats + nats, time.monotonic() - started, time.monotonic()
                    bits = bits_per_dimension(p.nats, p.dimensions)
                    self.check(bits)
                    if self.board:
                        of_these = bits_per_dimension(nats, p.dimensions - before)
                        self.board.add_scalar("bits per dimension/steps", of_these, p.steps)
                    before = p.dimensions
                    bar.set_postfix_str(f"{bits:.3f} bits/dim")
                    if stopped and not last:
                        return False
                    if not workers.rank and time.monotonic() - self.saved > SAVE_SECONDS:
                        self.save()
        return True

    def progress_bar(self, batches, show):
        """The bar of an epoch, at the images that are behind."""
        p = self.state.progress
        return tqdm(
            desc=f"epoch {p.epoch + 1}/{self.options['epoch']}",
            total=batches.images(),
            initial=batches.images(p.step),
            unit="image",
            disable=None if show else True,
            leave=False,
        )

    def end_epoch(self):
        """Test, record, keep what is best, and save."""
        p, state, started = self.state.progress, self.state, time.monotonic()
        test, by_band = self.evaluate()
        # rounded, since the sums depend in their last digits on when the bar was shown
        train, test = round(bits_per_dimension(p.nats, p.dimensions), 8), round(test, 8)
        self.check(test)
        rate = self.options["lr"] * learning_rate(self.options, p.epoch)
        row = dict(zip(RECORD, (p.epoch + 1, train, test, rate, round(p.seconds, 2))))
        state.progress = Progress(
            p.epoch + 1,
            steps=p.steps,
            best_train=min(train, p.best_train),
            best_test=min(test, p.best_test),
            history=[*p.history, row],
            bands=[*p.bands, {"epoch": p.epoch + 1} | {name: round(b, 6) for name, b in by_band.items()}],
        )
        if self.workers.rank:
            return
        if train < p.best_train:
            state.save_weights(saving(self.folder, "best_train"))
        if test < p.best_test:
            state.save_weights(saving(self.folder, "best_test"))
        last = state.progress.epoch == self.options["epoch"]
        if last or state.progress.epoch % self.options["savePeriod"] == 0:
            self.save_epoch()
            try:
                self.draw()
            except (ValueError, RuntimeError) as error:  # it cannot draw yet, or memory is short
                tqdm.write(f"no samples of epoch {state.progress.epoch}: {error}", file=sys.stderr)
        self.record(always=last)
        # at last: a run that is killed before goes on from the epoch's start and writes the others again
        self.save()
        if self.board:
            for name, value in (("train", train), ("test", test)):
                self.board.add_scalar(f"bits per dimension/{name}", value, p.steps)
            self.board.add_scalar("learning rate", rate, p.steps)
            self.board.flush()
        images = self.batches.images() / max(p.seconds, 1e-9)
        words = f"train {train:.4f}, test {test:.4f} bits/dim, {images:.0f} images/s"
        if not last:
            epochs = self.options["epoch"] - state.progress.epoch
            words += f", {time_left(epochs * (p.seconds + time.monotonic() - started))} left"
        tqdm.write(f"epoch {p.epoch + 1}: {words}")

    def run(self, show=True):
        """Train to the last epoch. Returns True if it got there, False if it was interrupted (and saved)."""
        wanted = self.options["board"] and not self.workers.rank
        board = open_board(self.folder, self.state.progress.steps) if wanted else nullcontext()
        with stop_signal() as stop, board as self.board:
            while self.state.progress.epoch < self.options["epoch"]:
                finished = self.run_epoch(stop, show and not self.workers.rank)
                if finished:
                    self.end_epoch()
                # one answer for all processes, whenever the signal reached each of them
                stopped = self.workers.sum(stop.requested, device=self.device).item()
                if not finished or (stopped and self.state.progress.epoch < self.options["epoch"]):
                    if not self.workers.rank:
                        self.save()
                        self.record()
                    return False
        return True
