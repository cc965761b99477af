"""How fast a network is: what is measured, and how."""

import time

import torch
from torch import nn

from vitas.evaluate import images_per_second


def test_speed_is_measured_in_evaluation_mode_and_leaves_the_network_as_it_was():
    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))
            self.seen = set()

        def forward(self, images):
            self.seen.add((tuple(images.shape), self.training, torch.is_grad_enabled()))
            time.sleep(0.1)
            return images

    network = Slow().train()
    rate = images_per_second(network, image_size=8, batch_size=5, seconds=0.3)
    assert network.seen == {((5, 3, 8, 8), False, False)}
    assert network.training
    assert 0 < rate <= 50
