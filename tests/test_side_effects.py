"""What an attack leaves untouched: all that is the caller's, whatever happens."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from conftest import image_net, seeded
from torch import Tensor, nn

import fastadv as fa

LINF = fa.Linf(0.1)
ATTACKS = {
    "fgsm": fa.fgsm(LINF),
    "pgd linf": fa.pgd(LINF, steps=3),
    "pgd l2": fa.pgd(fa.L2(0.5), steps=3),
    "pgd l1": fa.pgd(fa.L1(2.0), steps=3),
    "adam": fa.Attack(LINF, fa.Adam(0.02), 3),
    "gradient": fa.Attack(fa.L2(0.5), fa.Gradient(1.0), 3),
    "mi_fgsm": fa.mi_fgsm(LINF, steps=3),
    "apgd": fa.apgd(LINF, steps=8),
    "restarts": fa.pgd(LINF, steps=2, restarts=3),
    "stop": fa.pgd(fa.Linf(0.5), steps=4, restarts=2, stop="fooled"),
    "train": fa.pgd(LINF, steps=3, mode="train"),
    "keep": fa.pgd(LINF, steps=3, mode="keep"),
    "callable": fa.pgd(LINF, steps=2, objective=lambda z, y: z.gather(1, y[:, None])[:, 0].neg()),
}
CONTEXTS = {"grad": nullcontext, "no_grad": torch.no_grad, "inference": torch.inference_mode}
Run = Callable[[nn.Module, Tensor, Tensor], object]
RUNS: dict[str, Run] = {name: attack for name, attack in ATTACKS.items()}  # noqa: C416
RUNS["y none"] = lambda model, x, y: ATTACKS["pgd linf"](model, x)
RUNS["target"] = lambda model, x, y: ATTACKS["pgd linf"](model, x, target=y)
RUNS["universal"] = lambda model, x, y: fa.universal.gradient(ATTACKS["pgd linf"], model, [(x, y)])
RUNS["universal y none"] = lambda model, x, y: fa.universal.gradient(ATTACKS["fgsm"], model, [x])
RUNS["deepfool"] = lambda model, x, y: fa.deepfool(steps=3)(model, x, y)
RUNS["moosavi"] = lambda model, x, y: fa.universal.moosavi(LINF, model, [(x, y)], passes=2)
RUNS["moosavi pgd"] = lambda model, x, y: fa.universal.moosavi(
    LINF, model, [x], passes=2, inner=ATTACKS["pgd l2"]
)
RUNS["averaged"] = lambda model, x, y: fa.universal.averaged(LINF, model, [(x, y)], passes=2)
RUNS["data-free"] = lambda model, x, y: fa.universal.gd_uap(LINF, model, x.shape[1:], steps=3)
RUNS["verify"] = lambda model, x, y: fa.verify(model, x, x.clone(), y, LINF)


def state(model: nn.Module) -> dict[str, object]:
    """All of a model that an attack could change, copied."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "training": [m.training for m in model.modules()],
        "values": {n: t.detach().clone() for n, t in tensors.items()},
        "identity": {n: id(t) for n, t in tensors.items()},
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grad": [
            None if p.grad is None else (id(p.grad), p.grad.clone()) for p in model.parameters()
        ],
    }


def assert_same(before: object, after: object) -> None:
    if isinstance(before, dict):
        assert before.keys() == after.keys()
        for key in before:
            assert_same(before[key], after[key])
    elif isinstance(before, (list, tuple)):
        assert len(before) == len(after)
        for one, other in zip(before, after, strict=True):
            assert_same(one, other)
    elif isinstance(before, Tensor):
        assert torch.equal(before, after)
    else:
        assert before == after


def prepared() -> nn.Module:
    """A model with a gradient on its parameters, one of them frozen, flags mixed."""
    model = image_net()
    with torch.random.fork_rng(devices=[]):
        model(torch.rand(2, 3, 6, 6)).sum().backward()
    next(model.parameters()).requires_grad_(False)
    return model


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("name", RUNS)
def test_nothing_of_the_callers_changes(
    name: str, context: str, images: tuple[Tensor, Tensor]
) -> None:
    model = prepared()
    x, y = (t.clone() for t in images)
    x.requires_grad_()
    before, versions = state(model), (x._version, y._version)
    with CONTEXTS[context]():
        fresh = images[0].clone(), images[1].clone()  # under inference_mode inference tensors
        given = fresh if context == "inference" else (x, y)
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        result = RUNS[name](model, *given)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == modes
    assert_same(before, state(model))
    assert torch.equal(given[0], images[0])
    assert torch.equal(given[1], images[1])
    assert (x._version, y._version) == versions
    assert x.requires_grad
    assert x.grad is None
    if isinstance(result, Tensor):
        assert not result.requires_grad
        assert not torch.equal(result, images[0])
        assert result.data_ptr() != given[0].data_ptr()


class Fails(nn.Module):
    """A model that raises at its k-th forward."""

    def __init__(self, inner: nn.Module, k: int) -> None:
        super().__init__()
        self.inner, self.left = inner, k

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("out of order")
        return self.inner(x)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("name", RUNS)
def test_nothing_changes_when_the_model_raises(
    name: str, context: str, images: tuple[Tensor, Tensor]
) -> None:
    for k in (0, 1):
        model = Fails(prepared(), k)
        if k and name in ("fgsm", "verify", "universal"):
            continue  # one forward is all that they take
        before, x = state(model), images[0].clone()
        with CONTEXTS[context]():
            modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
            with pytest.raises(RuntimeError, match="out of order"):
                RUNS[name](model, x, images[1].clone())
            assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == modes
        assert_same(before, state(model))
        assert torch.equal(x, images[0])


@pytest.mark.parametrize("name", [n for n in RUNS if n not in ("train", "keep")])
def test_one_draw_from_the_global_generator_at_most(
    name: str, images: tuple[Tensor, Tensor]
) -> None:
    torch.manual_seed(1)
    RUNS[name](prepared(), *images)
    after = torch.random.get_rng_state()
    torch.manual_seed(1)
    if name in ("fgsm", "mi_fgsm", "verify", "universal y none", "deepfool", "moosavi", "averaged"):
        expected = torch.random.get_rng_state()  # a start from x draws nothing
    else:
        torch.randint(0, 2**63 - 1, ())
        expected = torch.random.get_rng_state()
    assert torch.equal(after, expected)


def test_a_generator_is_used_in_place_of_the_global_one(images: tuple[Tensor, Tensor]) -> None:
    model, attack, g = image_net().eval(), ATTACKS["restarts"], seeded(1)
    before, own = torch.random.get_rng_state(), g.get_state()
    first = attack(model, *images, generator=g)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(g.get_state(), own)
    assert not torch.equal(attack(model, *images, generator=g), first)  # it went on
    assert torch.equal(attack(model, *images, generator=seeded(1)), first)
    torch.manual_seed(1)
    assert torch.equal(attack(model, *images), first)  # the same draw, from the global one
    before = torch.random.get_rng_state()
    fa.universal.gradient(attack, model, [images], generator=g)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("mode", "flags"), [("eval", {False}), ("train", {True}), ("keep", {True, False})]
)
def test_the_mode_while_crafting(
    mode: str, flags: set[bool], images: tuple[Tensor, Tensor]
) -> None:
    model, seen = image_net(), []
    for module in model:
        module.register_forward_hook(lambda m, *_: seen.append(m.training))
    before = state(model)
    fa.pgd(LINF, steps=2, mode=mode)(model, *images)
    assert set(seen) == flags
    assert_same(before, state(model))


def test_replaced_buffers_are_put_back(images: tuple[Tensor, Tensor]) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = image_net()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls = self.calls + 1  # another tensor in its place
            return self.inner(x)

    model = Counting()
    before = state(model)
    fa.pgd(LINF, steps=3, mode="train")(model, *images)
    assert_same(before, state(model))


def test_a_model_that_writes_on_its_input_spoils_nothing_of_the_callers() -> None:
    x, y = torch.rand(3, 4, generator=seeded(2)), torch.zeros(3, dtype=torch.long)
    copy = x.clone()
    fa.verify(lambda v: v.sub_(0.5), x, x, y, LINF)
    assert torch.equal(x, copy)
    runs = [
        lambda f: fa.pgd(LINF, restarts=2).run(f, x, generator=seeded(1)).x_adv,
        lambda f: fa.pgd(LINF, stop="fooled").run(f, x, y, generator=seeded(1)).x_adv,
        lambda f: fa.apgd(LINF, 8).run(f, x, y, generator=seeded(1)).x_adv,
        lambda f: fa.universal.gradient(fa.bim(LINF, 0.01), f, [x]).delta,
    ]
    for run in runs:
        assert torch.equal(run(lambda v: v.sub_(0.5)), run(lambda v: v - 0.5))
        assert torch.equal(x, copy)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize(
    ("dtype", "layout"),
    [
        (torch.float64, "plain"), (torch.bfloat16, "plain"), (torch.float16, "plain"),
        (torch.float32, "strided"), (torch.float32, "last"), (torch.float32, "expanded"),
    ],
)  # fmt: skip
def test_any_input(
    name: str, dtype: torch.dtype, layout: str, images: tuple[Tensor, Tensor]
) -> None:
    x, y = images[0].to(dtype), images[1]
    plain, model = x, image_net().eval()
    if name == "train":
        model[4].p = 0.0
    if layout == "strided":
        x = torch.stack([x, x], -1)[..., 0]
    elif layout == "last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "expanded":
        x = plain = x[:1].expand_as(x)
    attack = ATTACKS[name]
    got = attack(lambda v: model(v.float()), x, y, generator=seeded(1))
    assert got.dtype == dtype
    assert got.shape == x.shape
    assert torch.equal(x, plain)
    assert bool((attack.ball.norm(got.double() - x.double()) <= attack.ball.radius).all())
    if layout != "plain" and attack.mode == "eval":
        same = attack(lambda v: model(v.float()), plain.contiguous(), y, generator=seeded(1))
        assert float((got - same).abs().max()) < 1e-3
    empty = attack.run(lambda v: model(v.float()), x[:0], y[:0])
    assert empty.x_adv.shape == (0, 3, 6, 6)
    assert empty.success.shape == empty.loss.shape == (0,)
    assert empty.forwards == 0
