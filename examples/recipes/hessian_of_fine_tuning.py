"""
The Hessian spectrum of my fine-tuning run
==========================================

The largest eigenvalues of the loss that the training minimises, mini-batch by mini-batch.
"""

import backlight

model = backlight.load_model("demo-cnn")
batches = backlight.draw_batches("fashion", model=model, images=48, batch_size=8)
result = backlight.hessian(model, batches, top=2, name="demo-cnn")
print(result.provenance["summary"]["all"])
result
