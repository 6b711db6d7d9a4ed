"""One perturbation that fools a net on most inputs, against noise of the same size; then training
against it. Runs in seconds on scikit-learn's digits."""

import torch
from sklearn.datasets import load_digits
from torch import nn

import fastadv as fa

torch.manual_seed(0)
torch.set_num_threads(1)  # a net this small gains nothing from more
digits = load_digits()
x = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
y = torch.tensor(digits.target)
batches = list(zip(x[:1400].split(64), y[:1400].split(64), strict=True))
x_test, y_test = x[1400:], y[1400:]
ball = fa.Linf(0.15)


def make_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(), nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip


def train(net: nn.Module, loss_of, epochs: int) -> None:
    optimizer = torch.optim.Adam(net.parameters(), 4e-3)
    for _ in range(epochs):
        for xb, yb in batches:
            optimizer.zero_grad()
            loss_of(net, xb, yb).backward()
            optimizer.step()


def accuracy(net: nn.Module, inputs: torch.Tensor) -> float:
    return float((net(inputs).argmax(1) == y_test).float().mean())


def attack(net: nn.Module) -> fa.Perturbation:
    climb = fa.Attack(ball, fa.Steepest(0.015), start="zero")
    return fa.universal.gradient(climb, net, batches, epochs=5)


cross_entropy = nn.CrossEntropyLoss()
natural, robust = make_net(), make_net()
train(natural, lambda net, xb, yb: cross_entropy(net(xb), yb), epochs=15)
train(robust, fa.training.Universal(fa.Attack(ball, fa.Steepest(0.15))), epochs=30)
noise = fa.Perturbation(ball.radius * torch.randn(1, 8, 8).sign(), ball)

print(f"{'training':12}{'clean':>8}{'noise':>8}{'universal':>11}")
for name, net in (("natural", natural), ("universal", robust)):
    clean, noisy = accuracy(net, x_test), accuracy(net, noise.apply(x_test))
    fooled = accuracy(net, attack(net).apply(x_test))
    print(f"{name:12}{clean:8.3f}{noisy:8.3f}{fooled:11.3f}")
