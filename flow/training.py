"""Training by exact likelihood: rates, steps, epochs, what they leave in the model folder, the loss curve.

Source: method 5. A model is any module whose call gives log-likelihoods in nats, (B, 3, H, W) -> (B,).
"""

import math
import time

import torch
from torch.func import functional_call
from tqdm import tqdm

from flow.batches import batches_of, select, to_device
from flow.checkpoint import Progress, TrainingState
from flow.folder import (
    epoch_name,
    loss_curve_file,
    losses_file,
    saving,
    savings,
    savings_of_epochs,
)
from utils.arithmetic.integers import bits_per_dimension
from utils.data.crops import Pictures
from utils.files import replacing, write_table
from utils.show.plots import loss_curve
from utils.workers import stop_signal

KEPT_SAVINGS = 3
SAVE_SECONDS, SHOW_SECONDS, DRAW_SECONDS = 300, 0.5, 20
# A working model costs 8 bits or less; one that costs this much never comes back.
DIVERGED = 1000.0
RECORD = ("epoch", "train_bpd", "test_bpd", "rate", "seconds")


def learning_rate(options, done):
    """Factor on -lr when `done` epochs (a fraction counts) are behind. Source: method 5."""
    if options["lrSchedule"] == "paper":
        return min(1.0, (int(done) + 1) / 10) * options["decay"] ** int(done)
    if options["lrSchedule"] == "cosine":
        t = min(done / options["epoch"], 1.0)
        return min(1.0, (t + 1e-3) / 0.02) * (1 + math.cos(math.pi * t)) / 2
    return 1.0


class Trainer:
    """A model in training, and what that leaves in its folder.

    model: the module; train, test: lists of uint8 tensors (N, 3, S, S), one for each size, but train may be
    Pictures to draw crops from; options: those of TRAINING; folder: the model folder; device: torch.device;
    workers: Workers, joined.
    """

    def __init__(self, model, train, test, options, folder, device, workers):
        fixed = not isinstance(train, Pictures)
        if (
            options["batch"] < workers.count
            or fixed
            and not any(len(part) >= workers.count for part in train)
        ):
            raise ValueError(f"{workers.count} processes: need an image for each in a -batch")
        if not any(map(len, test)):
            raise ValueError("the test set has no images")
        self.model, self.options, self.folder = model.to(device), options, folder
        self.train = [to_device(part, device) for part in train] if fixed else train
        self.test = [to_device(part, device) for part in test]
        self.device, self.workers, self.state = device, workers, TrainingState(self.model, options)
        self.call = torch.compile(model) if options["compile"] else model
        self.saved = self.drawn = time.monotonic()

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

    @torch.no_grad()
    def evaluate(self):
        """Mean bits per dimension of the test images under the weights to keep."""
        weights, nats, dimensions = self.state.weights(), 0.0, 0
        for images in self.test:
            mine = torch.arange(self.workers.rank, len(images), self.workers.count)
            for index in mine.split(max(self.options["batch"] // self.workers.count, 1)):
                x = select(images, index, self.device)
                nats -= functional_call(self.model, weights, (x,)).sum(dtype=torch.float64)
            dimensions += images.numel()
        return bits_per_dimension(self.workers.sum(nats, device=self.device).item(), dimensions)

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
        """Write the losses of all epochs, and their curve unless it is fresh."""
        history = self.state.progress.history
        write_table(losses_file(self.folder), RECORD, history)
        if always or time.monotonic() - self.drawn > DRAW_SECONDS:
            with replacing(loss_curve_file(self.folder)) as temporary:
                loss_curve(history, temporary)
            self.drawn = time.monotonic()

    def run_epoch(self, stop, show):
        """Do the steps of an epoch that are left. Returns False if a stop was requested before the last."""
        p, workers = self.state.progress, self.workers
        batches = self.batches = batches_of(self.train, self.options, p.epoch, workers)
        started, shown = time.monotonic() - p.seconds, 0.0
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
        p, state = self.state.progress, self.state
        # rounded, since the sums depend in their last digits on when the bar was shown
        train, test = round(bits_per_dimension(p.nats, p.dimensions), 8), round(self.evaluate(), 8)
        self.check(test)
        rate = self.options["lr"] * learning_rate(self.options, p.epoch)
        row = dict(zip(RECORD, (p.epoch + 1, train, test, rate, round(p.seconds, 2))))
        state.progress = Progress(
            p.epoch + 1,
            steps=p.steps,
            best_train=min(train, p.best_train),
            best_test=min(test, p.best_test),
            history=[*p.history, row],
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
        self.record(always=last)
        # at last: a run that is killed before goes on from the epoch's start and writes the others again
        self.save()
        images = self.batches.images() / max(p.seconds, 1e-9)
        tqdm.write(f"epoch {p.epoch + 1}: train {train:.4f}, test {test:.4f} bits/dim, {images:.0f} images/s")

    def run(self, show=True):
        """Train to the last epoch. Returns True if it got there, False if it was interrupted (and saved)."""
        with stop_signal() as stop:
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
