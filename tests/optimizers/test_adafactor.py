"""torch's Adafactor, whose first eps limits estimates of squared gradients."""

import pytest
import torch

from mupscale_cli.errors import PlanError
from mupscale_cli.optimizers.identity import identify, named_after
from mupscale_cli.optimizers.multipliers import multipliers
from mupscale_cli.optimizers.rules.powers import Ratios
from mupscale_cli.optimizers.rules.table import optimizer_rule


def trained(weight: torch.Tensor, gradients: list[torch.Tensor], **settings) -> torch.Tensor:
    parameter = torch.nn.Parameter(weight.clone())
    optimizer = torch.optim.Adafactor([parameter], **settings)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("eps", [1e-6, 1e-30])
def test_its_eps_may_limit_the_estimate(k, eps):
    generator = torch.Generator().manual_seed(0)
    weight, *gradients = torch.randn(6, 4, 3, dtype=torch.float64, generator=generator)
    gradients = [1e-4 * gradient for gradient in gradients]  # squares are below the larger eps, above its square
    c, m = 1 / k, k * k

    def copies(tensor):
        return tensor.repeat_interleave(k, 0).repeat_interleave(k, 1)

    factors = multipliers(optimizer_rule("torchadafactor"), c, m, ratios=Ratios(k, k, k))
    of_mean, of_size = dict(factors.further)["eps"]
    lr, size, decay = 0.01, 1e-3, 0.1
    narrow = trained(weight, gradients, lr=lr, eps=(eps, size), weight_decay=decay)
    scaled = {
        "lr": lr * factors.lr,
        "eps": (eps * of_mean, size * of_size),
        "weight_decay": decay * factors.weight_decay,
    }
    wide = trained(c * copies(weight), [copies(gradient) / (m * c) for gradient in gradients], **scaled)
    torch.testing.assert_close(wide, c * copies(narrow), rtol=1e-13, atol=0)
    same_eps = trained(
        c * copies(weight), [copies(gradient) / (m * c) for gradient in gradients], **{**scaled, "eps": (eps, size)}
    )
    assert torch.allclose(same_eps, wide, rtol=1e-13) == (eps < 1e-20)


def test_an_eps_that_depends_on_the_data_type_is_refused():
    optimizer = torch.optim.Adafactor([torch.nn.Parameter(torch.ones(2, 2))])
    (group,) = optimizer.state_dict()["param_groups"]
    with pytest.raises(PlanError, match="no number as its first eps") as refused:
        identify(group, (), named_after(optimizer))
    _, line, _ = refused.value.hint.split("`")
    exec(line, {"torch": torch, "optimizer": optimizer})  # noqa: S102 (what the hint says)
    (group,) = optimizer.state_dict()["param_groups"]
    assert group["eps"] == (torch.finfo(torch.float32).eps, 1e-3)
    assert identify(group, (), named_after(optimizer)).rule.name == "torchadafactor"
