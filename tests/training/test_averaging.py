"""The average of the weights against a loop by hand, its way through a checkpoint, and its loan to the network."""

import copy
import io

import pytest
import torch
from torch import nn

from foveal.training.averaging import WeightAverage

from .small_training import same_weights


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    net[0].register_buffer("places", torch.arange(4), persistent=False)
    return net.to(memory_format=torch.channels_last)


def train(net: nn.Module, average: WeightAverage | None, steps: range) -> None:
    """Steps that are each a function of the weights and their number."""
    net.train()
    for step in steps:
        torch.manual_seed(step)
        loss = net(torch.randn(6, 3, 4, 4)).square().sum()
        parameters = [each for each in net.parameters() if each.requires_grad]
        with torch.no_grad():
            for parameter, slope in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter -= 0.01 * slope
        if average is not None:
            average.update(net)


def values(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in [*net.named_parameters(), *net.named_buffers()]}


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_it_is_the_average_that_a_loop_by_hand_makes(decay: float) -> None:
    net = network()
    average = WeightAverage(net, decay)
    assert same_weights(values(average.module), values(net)), "before the first step it is the start"
    expected: dict[str, torch.Tensor] = {}
    for step in range(25):
        train(net, average, range(step, step + 1))
        now = {name: tensor.double() for name, tensor in values(net).items()}
        keep = 0.0 if step == 0 else min(decay, (1 + step) / (10 + step))
        expected = {
            name: tensor if "num_batches" in name else keep * expected.get(name, tensor) + (1 - keep) * tensor
            for name, tensor in now.items()
        }
    found = values(average.module)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name].double(), tensor, atol=1e-6, rtol=1e-5)
    assert found["1.num_batches_tracked"] == 25
    assert found["0.places"].tolist() == [0, 1, 2, 3]
    assert not same_weights(found, values(net))
    assert average.num_updates == 25
    assert not average.module.training
    assert not any(parameter.requires_grad for parameter in average.module.parameters())
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_what_is_frozen_stays_equal_bit_for_bit() -> None:
    net = network()
    net[0].requires_grad_(False)
    average = WeightAverage(net, 0.9)
    frozen = net[0].weight.clone()
    train(net, average, range(40))
    assert torch.equal(average.module[0].weight, frozen)  # type: ignore[index]
    assert not torch.equal(average.module[4].weight, net[4].weight)  # type: ignore[index]


def test_it_goes_on_from_a_checkpoint_as_if_nothing_had_been() -> None:
    net = network()
    average = WeightAverage(net, 0.99)
    train(net, average, range(7))
    stream = io.BytesIO()
    torch.save({"model": net.state_dict(), "average": average.state_dict()}, stream)
    train(net, average, range(7, 20))
    stream.seek(0)
    content = torch.load(stream, weights_only=True)
    other = network()
    resumed = WeightAverage(other, 0.99)
    other.load_state_dict(content["model"])
    resumed.load_state_dict(content["average"])
    assert resumed.num_updates == 7
    train(other, resumed, range(7, 20))
    assert same_weights(values(other), values(net))
    assert same_weights(values(resumed.module), values(average.module))


def test_the_network_has_the_average_for_a_while_and_its_own_again_also_after_an_error() -> None:
    net = network()
    average = WeightAverage(net, 0.99)
    train(net, average, range(9))
    own, averaged = values(net), values(average.module)
    tensors = [id(tensor) for tensor in net.parameters()]
    addresses = [tensor.data_ptr() for tensor in net.parameters()]
    reference = copy.deepcopy(average.module)
    pixels = torch.randn(2, 3, 4, 4)

    def validate() -> None:
        with average.swapped(net) as lent:
            assert lent is net
            assert same_weights(values(net), averaged)
            with torch.inference_mode():
                assert torch.equal(net.eval()(pixels), reference(pixels))
            assert [id(tensor) for tensor in net.parameters()] == tensors
            assert [tensor.data_ptr() for tensor in net.parameters()] == addresses
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        validate()
    assert same_weights(values(net), own)
    assert same_weights(values(average.module), averaged)
    # A training that was interrupted by a validation is the one that was not.
    unswapped, untouched = network(), WeightAverage(network(), 0.99)
    train(unswapped, untouched, range(15))
    train(net, average, range(9, 15))
    assert same_weights(values(net), values(unswapped))
    assert same_weights(values(average.module), values(untouched.module))


def test_while_it_is_lent_it_can_be_neither_saved_nor_updated() -> None:
    net = network()
    average = WeightAverage(net, 0.9)
    with average.swapped(net):
        for misuse in (average.state_dict, lambda: average.update(net), lambda: average.load_state_dict({})):
            with pytest.raises(RuntimeError, match="leave swapped"):
                misuse()
        with pytest.raises(RuntimeError, match="leave swapped"), average.swapped(net):
            pass
    assert average.state_dict()


def test_a_short_training_is_not_dominated_by_its_start() -> None:
    net = nn.Linear(1, 1)
    with torch.no_grad():
        net.weight.fill_(1000.0)
        average = WeightAverage(net, 0.9999)
        for step in range(30):
            net.weight.fill_(float(step))
            average.update(net)
    assert 20 < float(average.module.weight.detach()) < 29  # type: ignore[arg-type]
