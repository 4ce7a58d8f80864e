"""
Gate a pull request
===================

Fail if the new model is worse by more than half a point, and only if the images show it.  On the command line:
``backlight diff old new --fail-on "accuracy<-0.5"`` exits with 3.
"""

import backlight

old, new = backlight.load_model("demo-alternet"), backlight.load_model("demo-vit")
data = backlight.load_data("fashion", model=old, limit=200)
results = [backlight.calibration(model, data, name=name) for model, name in ((old, "old"), (new, "new"))]
accuracy = backlight.compare(*results)["accuracy"]
print(f"accuracy: {accuracy.value:+.1f} [{accuracy.low:+.1f}, {accuracy.high:+.1f}] percentage points")
print("fails" if accuracy.high < -0.5 else "passes")
