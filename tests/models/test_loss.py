"""Cross-entropy by chunks of tokens is the plain one, with its gradients, under autocast too, and traces as one graph."""

import contextlib

import pytest
import torch
from torch.func import grad_and_value
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from models.llama import token_loss
from models.loss import chunked_token_loss


def plain(x, head, targets, z_loss):
    cross_entropy, total = token_loss(F.linear(x, head), targets, z_loss)
    return total, cross_entropy


def chunked(x, head, targets, z_loss, tokens):
    cross_entropy, total = chunked_token_loss(x, head, targets, z_loss, tokens)
    return total, cross_entropy


@pytest.fixture
def given():
    draw = torch.Generator().manual_seed(1)
    x, head = (torch.randn(*size, generator=draw) for size in ((3, 20, 16), (50, 16)))
    return x, head, torch.randint(50, (3, 20), generator=draw)


def both(given, z_loss, tokens, scale=1.0):
    """(gradients of x and head, total, cross-entropy), plain and by chunks of `tokens`, of `scale` times the loss."""
    x, head, targets = given

    def scaled(loss, *more):
        def objective(pair):
            total, cross_entropy = loss(*pair, targets, z_loss, *more)
            return scale * total, cross_entropy

        grads, (total, cross_entropy) = grad_and_value(objective, has_aux=True)((x, head))
        return [*grads, total, cross_entropy]

    return scaled(plain), scaled(chunked, tokens)


@pytest.mark.parametrize("tokens", [7, 60, None])
@pytest.mark.parametrize("z_loss, scale", [(0.0, 1.0), (1e-2, 0.25)])
def test_equals_the_plain_loss_and_its_gradients(given, z_loss, scale, tokens):
    for a, b in zip(*both(given, z_loss, tokens, scale), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-7)


def test_under_autocast_products_are_bf16_and_gradients_fp32(given):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        a, b = both(given, 1e-2, 7)
    for x, y in zip(a, b, strict=True):
        assert y.dtype == torch.float32
        torch.testing.assert_close(x, y, rtol=0.02, atol=0.02 * float(x.abs().max()))
    assert not torch.equal(b[0], both(given, 1e-2, 7)[1][0])


def test_backward_outside_of_torch_func(given):
    x, head, targets = given
    x.requires_grad_(), head.requires_grad_()
    total, cross_entropy = chunked(x, head, targets, 1e-2, 7)
    assert not cross_entropy.requires_grad
    total.backward()
    found = x.grad, head.grad
    for a, b in zip(torch.autograd.grad(plain(x, head, targets, 1e-2)[0], (x, head)), found, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-7)


def test_traces_as_one_graph(given):
    x, head, targets = given

    def step(pair):
        return grad_and_value(lambda pair: chunked(*pair, targets, 1e-2, 7), has_aux=True)(pair)

    grads, (total, _) = torch.compile(step, fullgraph=True, dynamic=False, backend="aot_eager")((x, head))
    expected, _ = both(given, 1e-2, 7)
    for a, b in zip(expected, [*grads, total], strict=False):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-7)



def test_where_no_gradient_is_asked_for_none_is_made(given):
    def products(*grad_mode):
        x, head, targets = given
        with contextlib.ExitStack() as stack, FlopCounterMode(display=False) as counted:
            for mode in grad_mode:
                stack.enter_context(mode)
            found = chunked(x, head, targets, 1e-2, 7)
        return counted.get_total_flops(), found

    (alone, without), (with_gradients, found) = products(torch.no_grad()), products()
    assert with_gradients == 3 * alone > 0
    assert torch.equal(without[0], found[0]) and torch.equal(without[1], found[1])
