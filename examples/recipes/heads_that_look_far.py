"""
Which heads look far
====================

The mean distance of attention of each head, in pixels, over the depth of the model.
"""

import backlight

model = backlight.load_model("demo-vit")
result = backlight.attention(model, backlight.load_data("fashion", model=model, limit=64), name="demo-vit")
farthest = sorted(result.table, key=lambda row: row["distance"])[-3:]
print([(row["unit"], row["head"], round(row["distance"], 1)) for row in farthest])
result
