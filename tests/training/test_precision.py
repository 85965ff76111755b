"""In each precision, ``fit`` does what a loop written by hand does."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, nullcontext

import pyro
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO

from pyrogen.guides import AmortizedNormal
from pyrogen.losses import Compiled
from pyrogen.models import VAE
from pyrogen.modes import local_parameters
from pyrogen.nn import MLP
from pyrogen.training import fit
from pyrogen.training._engine import PRECISIONS

STEPS = 4


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


# name: (dtype of parameters and data, what the programs run in)
BY_HAND = {
    "32-true": (torch.float32, nullcontext),
    "64-true": (torch.float64, lambda: default_dtype(torch.float64)),
    "bf16-mixed": (torch.float32, lambda: torch.autocast("cpu", torch.bfloat16)),
    "bf16-true": (torch.bfloat16, lambda: default_dtype(torch.bfloat16)),
}


def images():
    generator = torch.Generator().manual_seed(1)
    return torch.bernoulli(torch.full((16, 6), 0.3), generator=generator)


def pair():
    pyro.set_rng_seed(2)
    return (
        VAE(MLP(2, 6, hidden=(8,)), latent_dim=2),
        AmortizedNormal(MLP(6, 4, hidden=(8,)), latent_dim=2),
    )


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def by_hand(precision):
    """Losses and parameters of whole-batch steps; the first draw is that of ``fit``'s order."""
    (model, guide), (dtype, context) = pair(), BY_HAND[precision]
    with ExitStack() as stack:
        stack.enter_context(local_parameters(model, guide))
        module = TraceMeanField_ELBO()(model, guide).to(dtype)
        x, losses = images().to(dtype), []
        optimizer = sgd(module.parameters())
        pyro.set_rng_seed(3)
        torch.randint(2**62, ())
        for _ in range(STEPS):
            optimizer.zero_grad()
            with context():
                loss = module(x)
            loss = loss.float() if dtype is torch.bfloat16 else loss
            (loss / len(x)).backward()
            losses.append(float(loss.detach() / len(x)))
            optimizer.step()
    return losses, [p.detach() for p in [*model.parameters(), *guide.parameters()]]


def fitted(precision, loss):
    model, guide = pair()
    pyro.set_rng_seed(3)
    result = fit(
        model, guide, images(), loss=loss, max_epochs=STEPS, shuffle=False, optimizer=sgd,
        precision=precision, accelerator="cpu", progress=False, validation_data=images()[:5],
    )  # fmt: skip
    parameters = [p.detach() for p in [*model.parameters(), *guide.parameters()]]
    return list(result.history.step_loss), parameters


@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_is_the_loop_written_by_hand(precision):
    losses, parameters = fitted(precision, TraceMeanField_ELBO())
    expected_losses, expected = by_hand(precision)
    assert losses == expected_losses
    assert {p.dtype for p in parameters} == {BY_HAND[precision][0]}
    assert [torch.equal(a, b) for a, b in zip(parameters, expected, strict=True)] == [True] * 8
    assert torch.get_default_dtype() is torch.float32


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_compiled_loss_gives_the_same(precision):
    """The graph holds the same operations; another order of the sums of gradients is allowed:
    a rounding per step of the precision that the networks run in, on parameters below 1."""
    losses, parameters = fitted(precision, Compiled(TraceMeanField_ELBO(), compile=False))
    expected_losses, expected = fitted(precision, TraceMeanField_ELBO())
    low = torch.bfloat16 if "bf16" in precision else BY_HAND[precision][0]
    rounding = STEPS * torch.finfo(low).eps
    torch.testing.assert_close(losses, expected_losses, rtol=rounding, atol=0)
    torch.testing.assert_close(parameters, expected, rtol=rounding, atol=rounding)


def test_mixed_precision_is_in_effect():
    """Its losses are not those of float32, but within the rounding of a few products."""
    mixed, full = (fitted(name, TraceMeanField_ELBO())[0] for name in ("bf16-mixed", "32-true"))
    assert mixed != full
    torch.testing.assert_close(mixed, full, rtol=STEPS * torch.finfo(torch.bfloat16).eps, atol=0)
