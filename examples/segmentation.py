"""Universal perturbations against segmentation (1704.05712): expected beside measured. On street
scenes made up here, in half a minute; given an .npz of CamVid (x_train, y_train, x_test, y_test; 11
is void), on that at 80x60, in a few minutes. A second argument is the seed (0)."""

import sys
import time

import numpy as np
import torch
from torch import nn

import fastadv as fa

seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
torch.manual_seed(seed)
torch.set_num_threads(1)
VOID, REAL = 255, len(sys.argv) > 1


def streets(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sky, houses, road and cars (0 to 3) in colours of their own, in noise: (N, 3, 32, 40)."""
    y = torch.zeros(count, 32, 40, dtype=torch.long)
    for scene in y:
        horizon, ground = int(torch.randint(6, 12, ())), int(torch.randint(16, 22, ()))
        scene[horizon:ground], scene[ground:] = 1, 2
        scene[: horizon + 4, : int(torch.randint(0, 20, ()))] = 1
        for _ in range(int(torch.randint(1, 3, ()))):
            i, j = ground + int(torch.randint(-3, 4, ())), int(torch.randint(0, 32, ()))
            scene[i : i + 5, j : j + 8] = 3
    colours = torch.tensor([[0.5, 0.6, 0.7], [0.5, 0.45, 0.4], [0.4, 0.4, 0.4], [0.5, 0.35, 0.4]])
    light = 0.1 * torch.randn(count, 1, 1, 1)
    x = colours[y].movedim(-1, 1) + light + 0.08 * torch.randn(count, 3, 32, 40)
    return x.clamp(0, 1), y


def camvid(path: str) -> list[torch.Tensor]:
    with np.load(path) as saved:
        x, y, x_test, y_test = (
            torch.tensor(saved[k]) for k in ("x_train", "y_train", "x_test", "y_test")
        )
    images = [nn.functional.avg_pool2d(t.movedim(-1, 1) / 255, 2) for t in (x, x_test)]
    labels = [t[:, ::2, ::2].long() for t in (y, y_test)]
    return [images[0], *(t.masked_fill(t == 11, VOID) for t in labels), images[1]]


def block(inputs: int, outputs: int, **how: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, bias=False, **how), nn.BatchNorm2d(outputs), nn.ReLU()]


if REAL:
    x, y, y_test, x_test = camvid(sys.argv[1])
    classes, car, width, epochs, size, images, tile = 11, 8, 24, 20, 8, 46, (30, 40)
else:
    x, y = streets(300)
    x_test, y_test = streets(100)
    classes, car, width, epochs, size, images, tile = 4, 3, 8, 6, 10, 40, (16, 20)
net = nn.Sequential(
    *block(3, width, stride=2, padding=1), *block(width, 2 * width, padding=1),
    *block(2 * width, 3 * width, stride=2, padding=1),
    *block(3 * width, 3 * width, dilation=2, padding=2),
    nn.Conv2d(3 * width, classes, 1),
    nn.Upsample(scale_factor=4, mode="bilinear"),
)  # fmt: skip
began = time.perf_counter()
optimizer = torch.optim.Adam(net.parameters(), 3e-3)
schedule = torch.optim.lr_scheduler.OneCycleLR(
    optimizer, 3e-3, total_steps=epochs * -(-len(x) // size)
)
for _ in range(epochs):
    for index in torch.randperm(len(x)).split(size):
        flip = [3] if torch.rand(()) < 0.5 else []
        optimizer.zero_grad()
        logits = net(x[index].flip(flip))
        nn.functional.cross_entropy(
            logits, y[index].flip([d - 1 for d in flip]), ignore_index=VOID
        ).backward()
        optimizer.step()
        schedule.step()
net.eval()
test = list(zip(x_test.split(50), y_test.split(50), strict=True))
print(f"seed {seed}: trained in {time.perf_counter() - began:.0f} s")
print(fa.evaluate(net, test, fa.pgd(fa.Linf(4 / 255), 1 / 255, 5)), flush=True)

alike = (y == y.mode(0).values).flatten(1).sum(1)
scene = y[alike.argmax() if REAL else alike.argmin()]  # what every input is to be seen as
ball, far = fa.Linf(10 / 255), fa.Linf(20 / 255)
loader, unseen = x[:: len(x) // images].split(50), x_test.split(50)
noise = fa.Perturbation(10 / 255 * torch.randn(x.shape[1:]).sign(), ball)
climb, remove = fa.universal.segmentation, fa.universal.Remove(car)


def row(what: str, expected: str, measured: float | None, spent: float) -> None:
    print(f"{what:34}{expected:>10}{measured or 0:10.3f}{spent:9.1f}", flush=True)


print(f"{'on unseen scenes':34}{'expected':>10}{'measured':>10}{'seconds':>9}")
static = {  # what: (expected: made up, CamVid; how)
    "static, noise": ("< 0.80", "0.585", lambda: noise),
    "static, 10/255": ("> 0.80", "0.76", lambda: climb(ball, net, loader, target=scene)),
    "static, 20/255": ("> 0.88", "0.86", lambda: climb(far, net, loader, target=scene)),
    "static, 10/255 in tiles": (
        "> 0.78",
        "> 0.70",
        lambda: climb(ball, net, loader, target=scene, tile=tile),
    ),
}
for number, (what, (made_up, real, find)) in enumerate(static.items()):
    began = time.perf_counter()
    uap = find()
    spent = time.perf_counter() - began
    rates = fa.universal.measure_pixels(uap, net, unseen, target=scene)
    if not number:
        row("static, clean", "0.60" if REAL else "< 0.80", rates.clean, 0)
    row(what, real if REAL else made_up, rates.success, spent)
began = time.perf_counter()
uap = climb(ball, net, loader, target=remove)
spent = time.perf_counter() - began
rates = fa.universal.measure_pixels(uap, net, unseen, target=remove)
row("cars removed: hidden", "> 0.60" if REAL else "> 0.90", rates.hidden, spent)
row("cars removed: background preserved", "> 0.80" if REAL else "> 0.90", rates.preserved, 0)
