"""
Is my model calibrated under corruption?
========================================

Accuracy and ECE as images are blurred and made noisy.
"""

import backlight

model = backlight.load_model("demo-alternet")
data = backlight.load_data("fashion", model=model, limit=80)
result = backlight.corruption(
    model, data, corruptions=("gaussian_noise", "defocus_blur"), severities=(1, 3, 5), name="demo-alternet"
)
for row in result.table:
    print(row["corruption"], row["severity"], f"accuracy {row['accuracy']:.2f}, ECE {row['ece']:.2f}")
result
