"""The settings of `corruption`; torch is not imported."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field

from backlight.analyses.entry import BINS
from backlight.data.corruption_names import COMMON, NAMES, SEVERITIES
from backlight.errors import UserError, did_you_mean
from backlight.settings import Settings, setting

NO_FROST = (
    "frost: its photographs need pip install 'backlight[corruptions]'; means are over the other 14 corruptions, and not "
    "comparable with a published mCE, which is over 15"
)


@dataclass(frozen=True)
class CorruptionSettings(Settings):
    """Which corruptions, and how strong."""

    corruptions: tuple[str, ...] = setting(
        COMMON, "Which corruptions; default: the 15 of ImageNet-C, without the extra all but frost."
    )
    severities: tuple[int, ...] = setting(SEVERITIES, "Severities.", least=1, most=5)
    folder: str | None = setting(None, "An official CIFAR-10-C, CIFAR-100-C or ImageNet-C.", metavar="DIR")
    strengths: str = setting(
        "auto", "Whose strengths; auto: those of CIFAR-C up to 64 px.", choices=("auto", "imagenet", "cifar")
    )
    bins: int = setting(BINS, "Bins of ECE.", least=1)
    left_out: str = field(default="", init=False)  # which of the default corruptions, and why

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, example in (("corruptions", "fog"), ("severities", "3")):
            if not getattr(self, name):
                raise UserError(f"{name} is empty; give at least one, for instance {example}")
        for name in self.corruptions:
            if name not in NAMES:
                hint = did_you_mean(name, NAMES) or f"; there are {', '.join(NAMES)}"
                raise UserError(f"corruptions has {name!r}, which is not a corruption{hint}")
        object.__setattr__(self, "corruptions", tuple(dict.fromkeys(self.corruptions)))  # each once
        if self.corruptions == COMMON and self.folder is None and importlib.util.find_spec("imagecorruptions") is None:
            object.__setattr__(self, "corruptions", tuple(name for name in COMMON if name != "frost"))
            object.__setattr__(self, "left_out", NO_FROST)
        object.__setattr__(self, "severities", tuple(sorted(set(self.severities))))
