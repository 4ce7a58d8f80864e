"""Backlight shows how a vision model works.

Names load on first use, so that ``import backlight`` is instant; ``import backlight.models`` registers our models with timm.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "load_model": "models.zoo",
    "load_data": "data",
    "units": "anatomy",
    "hybridize": "models.surgery",
    "smooth": "models.surgery",
    "drop_original": "models.surgery",
    "gates": "models.surgery",
    "set_gates": "models.surgery",
    "feature_maps": "anatomy",
    "without": "anatomy",
    "grid": "layout",
    "spell": "anatomy",
    "fourier": "analyses.fourier",
    "variance": "analyses.variance",
    "similarity": "analyses.similarity",
    "attention": "analyses.attention",
    "lesion": "analyses.lesion",
    "noise": "analyses.noise",
    "corruption": "analyses.corruption",
    "adversarial": "analyses.adversarial",
    "shape_bias": "analyses.shape_bias",
    "calibration": "analyses.calibration",
    "hessian": "analyses.hessian",
    "landscape": "analyses.landscape",
    "trajectory": "analyses.trajectory",
    "write_vtp": "vtp",
    "Objective": "objective",
    "draw_batches": "batches",
    "Hessian": "curvature",
    "lanczos": "curvature",
    "density": "curvature",
    "trace": "curvature",
    "of_module": "curvature",
    "of_units": "curvature",
    "load": "result",
    "Result": "result",
    "train": "training",
    "recipe": "recipes",
    "train_to_folder": "runs",
    "Run": "runs",
    "buildup_to_folder": "buildup",
    "BuildupRun": "buildup",
    "dataset": "data",
    "run_study": "study",
    "write_report": "report",
}
__all__ = ["__version__", *_HOME]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'backlight' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
