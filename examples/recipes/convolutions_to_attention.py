"""
Turn convolutions into attention, and check that nothing changed
================================================================

New attention begins with a gate at zero beside the old branch: the outputs are the same, and training goes on from there.
"""

import torch

import backlight

model = backlight.load_model("demo-cnn").eval()
images = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
hybrid = backlight.hybridize(model, images, [5, 8], heads=2)
with torch.inference_mode():
    print("equal outputs:", torch.equal(model(images), hybrid.eval()(images)))
print({name: gate.detach().item() for name, gate in backlight.gates(hybrid).items()})
