"""
Survey ten backbones
====================

Which units raise the variance of the feature map, in the models of the demo?  Any list of names will do: a study runs them all.
"""

import tempfile

import backlight

folder = tempfile.mkdtemp()
settings = backlight.StudySettings(limit=60, resamples=100)
for outcome in backlight.run_study(["demo-cnn", "demo-vit", "demo-alternet"], {"variance": {}}, settings, folder):
    print(outcome.model, outcome.state)
    for claim in outcome.result.claims:
        print("  ", claim.verdict, "|", claim.statement)
