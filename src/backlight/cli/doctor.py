"""What Backlight finds on this machine: versions, devices, and what is missing with the command that installs it."""

from __future__ import annotations

import importlib.util
import os
import shutil

from backlight.results.provenance import versions

#: Libraries that are extras: the extra that installs each, and what it is for.
EXTRAS = {
    "transformers": ("hf", "models named hf:..."),
    "datasets": ("hf", "data named hfds/... and hfids/..."),
    "webdataset": ("wds", "data named wds/..."),
    "imagecorruptions": ("corruptions", "the corruptions frost and spatter"),
    "ray": ("ray", "studies on a Ray cluster"),
    "tensorboard": ("tensorboard", "training logs for TensorBoard"),
    "wandb": ("wandb", "training logs for Weights & Biases"),
}


def findings() -> dict[str, str]:
    """Subject -> what is there."""
    import torch

    from backlight.models.sources.load import list_names

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    browser = next(
        (name for name in ("chromium", "google-chrome") if shutil.which(name)), "none; only a test of the page needs one"
    )
    return {
        **versions(),
        "cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "gpu": ", ".join(gpus) or "none",
        "models": ", ".join(f"{len(names)} {source}" for source, names in list_names().items()),
        **{
            package: f"{purpose}: "
            + ("installed" if importlib.util.find_spec(package) else f"missing, pip install 'backlight[{extra}]'")
            for package, (extra, purpose) in EXTRAS.items()
        },
        "browser": browser,
    }
