"""Time a training step, and its peak memory, beside the original's way of doing it.

    python tests/benchmark_training.py -threads 1 -batch 32 -steps 3
    python tests/benchmark_training.py -cuda 0 -batch 200 -steps 20 -amp -compile

A step is forward, backward and Adamax on random 32x32 images, at the paper's options and at small ones.
The two models take turns after a warm-up, so that whatever else the machine does falls on both; medians
are printed. Memory: on a CPU the peak resident size of a fresh process less its size after the imports; on
a GPU the allocator's peak, and also the networks' arithmetic per second as a share of what a large bfloat16
matrix product reaches. -amp serves both models; -compile ours alone: the original did not compile.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from original import Original

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from flow.model import build
from utils.options import Parser, script

SIZE = 32
CONFIGURATIONS = {
    "paper": {"hchnl": 350, "repeat": 3, "nhidden": 3, "nMixing": 5},
    "small": {"hchnl": 64, "repeat": 2, "nhidden": 1, "nMixing": 5},
}
BUILDERS = {
    "original": lambda o: Original(SIZE, o["repeat"], o["hchnl"], o["nhidden"], o["nMixing"]),
    "ours": build,
}


def make_parser():
    """Declare the options."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-cuda", type=int, default=-1, help="GPU to use; -1: the CPU (default)")
    parser.add_argument("-threads", type=int, default=torch.get_num_threads(), help="(%(default)s)")
    parser.add_argument("-batch", type=int, default=32, help="images a step (%(default)s)")
    parser.add_argument("-steps", type=int, default=3, help="timed steps of each model (%(default)s)")
    parser.add_argument("-amp", action="store_true", help="bfloat16 autocast")
    parser.add_argument("-compile", action="store_true", help="torch.compile for ours (minutes at first)")
    parser.add_argument("-memoryOf", nargs=2, help=argparse.SUPPRESS)
    return parser


def make_step(name, configuration, args):
    """Return a function that runs one training step of a new model to its end."""
    torch.manual_seed(0)
    device = torch.device("cpu" if args.cuda < 0 else f"cuda:{args.cuda}")
    model = BUILDERS[name](CONFIGURATIONS[configuration]).to(device)
    log_prob = torch.compile(model.log_prob) if args.compile and name == "ours" else model.log_prob
    optimiser = torch.optim.Adamax(model.parameters(), lr=1e-3, eps=1e-7)
    images = torch.randint(0, 256, (args.batch, 3, SIZE, SIZE), dtype=torch.uint8, device=device)

    def step():
        with torch.autocast(device.type, torch.bfloat16, enabled=args.amp):
            loss = -log_prob(images).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def peak_memory(name, configuration, args):
    """Return the peak memory of a few steps, in bytes, as the first work of this process."""
    unit = 1 if sys.platform == "darwin" else 1024
    imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = make_step(name, configuration, args)
    for _ in range(2):
        step()
    if args.cuda >= 0:
        return torch.cuda.max_memory_allocated(args.cuda)
    return unit * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - imported)


def peak_memory_afresh(name, configuration, argv):
    """Return peak_memory of a process of its own."""
    command = [sys.executable, __file__, *argv, "-memoryOf", name, configuration]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def seconds(action):
    """Return how long an action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def step_times(configuration, args):
    """Return the median time of a step for each model, the models taking turns."""
    steps = {name: make_step(name, configuration, args) for name in BUILDERS}
    for step in steps.values():
        step()
        step()
    times = {name: [] for name in steps}
    for _ in range(args.steps):
        for name, step in steps.items():
            times[name].append(seconds(step))
    return {name: statistics.median(measured) for name, measured in times.items()}


def step_flops(options, batch):
    """Count the operations of the convolutions in a training step: forward, and twice that backward."""
    hchnl = options["hchnl"]

    def network(inputs, outputs):
        return 9 * inputs * hchnl + options["nhidden"] * hchnl**2 + 9 * hchnl * outputs

    products = 4 * options["repeat"] * network(9, 3) + 2 * network(3, 9)
    positions = sum(4**level for level in range(1, SIZE.bit_length() - 1))
    return 3 * 2 * products * positions * batch


def matrix_throughput(cuda, side=8192, repeats=20):
    """Return the operations per second of a bfloat16 matrix product of the given side."""
    a, b = torch.randn(2, side, side, device=f"cuda:{cuda}", dtype=torch.bfloat16)

    def multiply():
        for _ in range(repeats):
            a @ b
        torch.cuda.synchronize(cuda)

    multiply()
    return repeats * 2 * side**3 / seconds(multiply)


@script
def main(argv=None):
    """Print a table of step times and peak memory."""
    argv = sys.argv[1:] if argv is None else argv
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.cuda >= torch.cuda.device_count():
        parser.error(f"-cuda {args.cuda}: torch finds {torch.cuda.device_count()} GPUs here")
    torch.set_num_threads(args.threads)
    if args.memoryOf:
        print(peak_memory(*args.memoryOf, args))
        return
    # memory first: a child's peak starts from what its parent held when it was forked
    memory = {(c, n): peak_memory_afresh(n, c, argv) for c in CONFIGURATIONS for n in BUILDERS}
    matmul = matrix_throughput(args.cuda) if args.cuda >= 0 else None
    where = torch.cuda.get_device_name(args.cuda) if matmul else f"CPU, {args.threads} threads"
    print(f"{where}; torch {torch.__version__}; batch {args.batch}, median of {args.steps} steps")
    if matmul:
        print(f"bfloat16 matrix product: {matmul / 1e12:.0f} TFLOP/s")
    for configuration, options in CONFIGURATIONS.items():
        times = step_times(configuration, args)
        print(configuration, " ".join(f"{key} {value}" for key, value in options.items()))
        for name, step in times.items():
            line = f"  {name:8s} {step:8.4f} s a step {args.batch / step:9.1f} images/s"
            line += f" {memory[configuration, name] / 2**30:6.2f} GiB"
            if matmul:
                flops = step_flops(options, args.batch) / step
                line += f" {flops / 1e12:6.1f} TFLOP/s = {flops / matmul:.1%} of the matrix product"
            print(line)
        speed = times["original"] / times["ours"]
        share = memory[configuration, "ours"] / memory[configuration, "original"]
        print(f"  ours is {speed:.2f} times as fast and takes {share:.2f} times the memory", flush=True)


if __name__ == "__main__":
    main()
