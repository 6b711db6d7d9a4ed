"""The kernels under a loop of your own, on tensors and on NumPy arrays: fastadv as a backend."""

import numpy as np
import torch

import fastadv as fa

ball = fa.Linf(8 / 255)

# A gradient from anywhere; here a linear model's, whose worst case is known: radius * sign(w).
w = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0))
x = torch.full((16, 3, 32, 32), 0.5)
x_adv = x.clone()
for _ in range(10):
    fa.ops.step_(x_adv, w.expand_as(x).contiguous(), x, ball=ball, step_size=2 / 255)
worst = x + ball.radius * w.sign()
print("distance to the closed form:", float((x_adv - worst).abs().max()))
print("the ball holds exactly:", bool(((x_adv.double() - x.double()).abs() <= 8 / 255).all()))

# The same on arrays, in place and without a copy, for libraries that hold arrays.
x_np, grad = x.numpy(), np.broadcast_to(w.numpy(), x.shape).copy()
adv_np = x_np.copy()
for _ in range(10):
    fa.numpy.step_(adv_np, grad, x_np, ball=ball, step_size=2 / 255)
print("NumPy gives the same bits:", np.array_equal(adv_np, x_adv.numpy()))

# One perturbation for all: each gradient of the batch is read once.
delta = torch.zeros(3, 32, 32)
for _ in range(10):
    fa.ops.universal_(delta, w.expand_as(x).contiguous(), ball=ball, step_size=2 / 255)
print(
    "universal, distance to radius * sign(w):", float((delta - ball.radius * w.sign()).abs().max())
)
