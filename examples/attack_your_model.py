"""Attack a model of your own: train one on scikit-learn's digits, then measure how robust it is."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

import fastadv as fa

torch.manual_seed(0)
digits = load_digits()
x, y = torch.tensor(digits.images / 16, dtype=torch.float32).flatten(1), torch.tensor(digits.target)
x_train, y_train, x_test, y_test = x[:1400], y[:1400], x[1400:], y[1400:]

model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.Adam(model.parameters(), 5e-3)
for _ in range(200):
    optimizer.zero_grad()
    cross_entropy(model(x_train), y_train).backward()
    optimizer.step()

attack = fa.pgd(fa.Linf(0.1), steps=20)  # a value: it prints, hashes and compares
x_adv = attack(model, x_test, y_test)  # ||x_adv - x|| <= 0.1 and 0 <= x_adv <= 1, exactly
print(f"accuracy on x_adv: {(model(x_adv).argmax(1) == y_test).float().mean():.1%}")

strongest = fa.apgd(fa.Linf(0.1), objective=fa.dlr, restarts=2)
print(fa.evaluate(model, [(x_test, y_test)], [attack, fa.pgd(fa.L2(0.5)), strongest]))
