"""
Find the units in a model of mine
=================================

One forward pass is enough; nothing is read from the names of classes.
"""

import torch
from torch import nn

import backlight


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))

    def forward(self, stream):
        return stream + self.branch(stream)


model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Block(), Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
units = backlight.units(model.eval(), torch.randn(2, 3, 16, 16))
print(backlight.spell(units))
for unit in units:
    print(unit.index, unit.kind, unit.module)
