"""What Backlight finds on this machine: versions, devices, and what is missing with what to do about it."""

from __future__ import annotations

import importlib.util
import os
import shutil

from .evidence import versions


def findings() -> dict[str, str]:
    """What was looked for -> what was found."""
    import torch

    from .models.zoo import list_names

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    extras = {"transformers": "hf", "datasets": "hf", "webdataset": "wds"}
    names = list_names()
    return {
        **versions(),
        "cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "gpu": ", ".join(gpus) or "none",
        "models": ", ".join(f"{len(found)} {source}" for source, found in names.items()),
        **{
            package: "found" if importlib.util.find_spec(package) else f"missing: pip install 'backlight[{extra}]'"
            for package, extra in extras.items()
        },
        "browser": next(
            (b for b in ("chromium", "google-chrome") if shutil.which(b)), "none (only the page's own test needs one)"
        ),
    }
