"""The names of the corruptions (Hendrycks & Dietterich, ICLR 2019).  Nothing is imported, so that help can list them."""

from __future__ import annotations

FAMILIES = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
#: The fifteen of ImageNet-C, in the order of its paper.
COMMON = tuple(name for names in FAMILIES.values() for name in names)
#: Four more, which its authors publish for validation.
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
NAMES = COMMON + EXTRA
SEVERITIES = (1, 2, 3, 4, 5)
