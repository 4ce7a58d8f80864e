"""
Compare two checkpoints
=======================

Which numbers changed, over the same images, with intervals?  Two models of the demo stand for two checkpoints.
"""

import backlight

before, after = backlight.load_model("demo-cnn"), backlight.load_model("demo-alternet")
data = backlight.load_data("fashion", model=before, limit=200)
results = [backlight.calibration(model, data, name=name) for model, name in ((before, "before"), (after, "after"))]
comparison = backlight.compare(*results)
print(comparison)
accuracy = comparison["accuracy"]
print(f"accuracy: {accuracy.value:+.1f} [{accuracy.low:+.1f}, {accuracy.high:+.1f}] percentage points, {accuracy.verdict}")
