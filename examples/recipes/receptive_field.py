"""
The receptive field of my backbone
==================================

How large a part of the image does the middle of each unit's map depend on?
"""

import backlight

model = backlight.load_model("demo-cnn")
result = backlight.erf(model, backlight.load_data("fashion", model=model, limit=32), name="demo-cnn")
result
