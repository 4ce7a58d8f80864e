"""What Backlight finds on this machine: versions, devices, and what is missing with the command that installs it."""

from __future__ import annotations

import importlib.util
import os
import shutil

from backlight.results.provenance import versions

#: Libraries that are extras, and the extra that installs each.
EXTRAS = {
    "transformers": "hf",
    "datasets": "hf",
    "webdataset": "wds",
    "imagecorruptions": "corruptions",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
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
            package: "installed" if importlib.util.find_spec(package) else f"missing: pip install 'backlight[{extra}]'"
            for package, extra in EXTRAS.items()
        },
        "browser": browser,
    }
