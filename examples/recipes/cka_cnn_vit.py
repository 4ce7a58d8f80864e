"""
CKA between a CNN and a ViT
===========================

Which depth of the CNN represents images as which depth of the ViT?
"""

import backlight

cnn, vit = backlight.load_model("demo-cnn"), backlight.load_model("demo-vit")
data = backlight.load_data("fashion", model=cnn, limit=160, batch_size=16)
result = backlight.similarity(cnn, data, other=vit, name="demo-cnn", other_name="demo-vit")
result
