"""Muon for the weights of layers, Adam for all others.

The step of a layer's weights is the momentum of their gradient made orthogonal: all its singular values are
drawn towards 1, so that directions that are seldom excited learn as fast as others.
Source: Jordan et al., Muon (2024); the size of steps, with which learning rates are Adam's: arXiv 2502.16982.
"""

import torch

# Newton-Schulz: a (X X^T)^2 X + .. converges to singular values near 1 (0.7 to 1.2) in so many rounds.
COEFFICIENTS, ROUNDS = (3.4445, -4.7750, 2.0315), 5
# Smaller sides than this are left to Adam: outputs of a few numbers, inputs of a few.
LEAST_SIDE = 8
# The root mean square of Adam's steps in units of the learning rate, as a rule.
STEP_SIZE = 0.2


def orthogonal(matrix):
    """U V^T of a matrix U S V^T, nearly: singular values of 0.7 to 1.2."""
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / (x.norm() + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ROUNDS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x if wide else x.T


class Muon(torch.optim.Adam):
    """The optimiser of a module: its convolutions are Muon's, unless they are small or depthwise.

    momentum: decay of the mean of their gradients, which runs a step ahead (Nesterov). Others as Adam's.
    """

    def __init__(self, module, lr, momentum=0.95, betas=(0.9, 0.99)):
        super().__init__(module.parameters(), lr, betas)
        self.momentum = momentum
        convolutions = (m for m in module.modules() if isinstance(m, torch.nn.Conv2d) and m.groups == 1)
        kernels = (m.weight for m in convolutions)
        self.layers = [p for p in kernels if min(len(p), p[0].numel()) >= LEAST_SIDE]

    @torch.no_grad()
    def step(self, closure=None):
        """One step along the gradients; see torch.optim.Optimizer."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients, rate = [p.grad for p in self.layers], self.param_groups[0]["lr"]
        for p in self.layers:
            p.grad = None  # not Adam's
        super().step()
        for p, gradient in zip(self.layers, gradients):
            p.grad = gradient
            if gradient is None:
                continue
            state = self.state[p]
            if not state:
                state["step"], state["exp_avg"] = torch.tensor(0.0), torch.zeros_like(p)
            state["step"] += 1
            state["exp_avg"].lerp_(gradient, 1 - self.momentum)
            ahead = gradient.lerp(state["exp_avg"], self.momentum).flatten(1)
            p.sub_(orthogonal(ahead).view_as(p), alpha=rate * STEP_SIZE * max(ahead.shape) ** 0.5)
        return loss
