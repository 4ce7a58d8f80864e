"""What all analyses of a study share: the data, and how the models run.  torch is not imported."""

from __future__ import annotations

import re
from dataclasses import dataclass

from backlight.errors import UserError
from backlight.settings import Settings, setting


@dataclass(frozen=True)
class StudySettings(Settings):
    """The options that all analyses share."""

    data: str | None = setting(
        None, "A data set by name, or a folder; see: backlight data.  Default: fashion, or what the analysis is about."
    )
    labels: str | None = setting(
        None, "A CSV table of file name and label, for a folder of images without class folders.", metavar="FILE"
    )  # fmt: skip
    data_root: str | None = setting(None, "Folder of the data sets that are named.", metavar="DIR", execution=True)
    download: bool = setting(False, "Allow downloading the data.", execution=True)
    classes: str | None = setting(
        None, "Text or CSV: each class folder, and the number or name of the model's output that it is.", metavar="FILE"
    )
    split: str | None = setting(None, "train or test; default: test, or what the analysis is about.")
    limit: int | None = setting(None, "Use a stratified subset of this many images.", metavar="N", least=1)
    seed: int = setting(0, "Seed of the subset, of resampling and of random weights.", least=0)
    budget: str | None = setting(
        None,
        "Stop an analysis after this time, such as 90s or 30m, with the images seen so far, in random order.",
        metavar="TIME",
    )
    batch_size: int | None = setting(None, "Images in a batch; default: 32, or what the analysis needs.", least=1)
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, ...", execution=True)
    dtype: str = setting("float32", "Type of weights and images.", choices=("float32", "float64", "bfloat16", "float16"))
    workers: int | None = setting(None, "Processes that decode images.", least=0, execution=True)
    resamples: int = setting(1000, "Bootstrap resamples behind each interval.", least=1)
    pretrained: bool = setting(True, "The trained weights, or random ones.")
    units: tuple[str, ...] = setting(
        (), "A file that names a model and corrects its units; repeatable.", metavar="FILE", repeat=True
    )
    at: tuple[str, ...] = setting((), "Read this module instead of units; repeatable.", metavar="MODULE", repeat=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.budget_seconds  # noqa: B018 (raises for a wrong one)

    @property
    def budget_seconds(self) -> float | None:
        """The seconds of the budget.  Errors: UserError if it is no time.

        >>> StudySettings(budget="30m").budget_seconds, StudySettings(budget="1.5h").budget_seconds
        (1800.0, 5400.0)
        """
        if self.budget is None:
            return None
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h)", self.budget)
        if match is None or not float(match[1]):
            raise UserError(f"budget is {self.budget!r}; it must be a time such as 90s, 30m or 2h")
        return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]
