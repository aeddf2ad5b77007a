"""Weights that accelerate keeps elsewhere: found, read, and not mistaken for missing ones."""

import accelerate
import pytest
import torch

from posprobe.models.offload import computing_devices, input_device, is_kept, numbers_of


class Small(torch.nn.Module):
    """Two layers, the first of them the embeddings."""

    def __init__(self):
        super().__init__()
        self.embeddings, self.rest = torch.nn.Embedding(5, 4), torch.nn.Linear(4, 3)

    @property
    def device(self):
        return self.embeddings.weight.device

    def get_input_embeddings(self):
        return self.embeddings


def offload(model, *parts):
    for part in parts:
        accelerate.cpu_offload(part, execution_device=torch.device("cuda:1"))
    return model


@pytest.fixture
def whole():
    return Small()


def test_offloaded_weights_are_read_and_others_are_themselves(whole):
    expected = {name: weight.detach().clone() for name, weight in whole.named_parameters()}
    offload(whole, whole.rest)
    for name, weight in whole.named_parameters():
        assert torch.equal(numbers_of(whole, name, weight), expected[name])
        assert weight.is_meta == is_kept(whole, name) == name.startswith("rest")


def test_weights_without_a_keeper_are_not_kept(whole):
    whole.to("meta")
    assert not any(is_kept(whole, name) for name, _ in whole.named_parameters())
    accelerate.hooks.add_hook_to_module(whole.rest, accelerate.hooks.AlignDevicesHook())
    assert not is_kept(whole, "rest.weight")


def test_a_model_computes_where_its_weights_are_lent(whole):
    cpu, gpu = torch.device("cpu"), torch.device("cuda:1")
    assert (computing_devices(whole), input_device(whole)) == ({cpu}, cpu)
    offload(whole, whole.rest)
    assert (computing_devices(whole), input_device(whole)) == ({cpu, gpu}, cpu)
    offload(whole, whole.embeddings)
    assert (computing_devices(whole), input_device(whole)) == ({gpu}, gpu)
