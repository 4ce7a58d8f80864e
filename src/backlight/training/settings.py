"""The settings of a training; torch is not imported."""

from __future__ import annotations

from dataclasses import dataclass

from backlight.settings import Settings, setting

#: Where metrics can go beside the folder.
TRACKERS = ("tensorboard", "wandb")


@dataclass(frozen=True, kw_only=True)
class ImageSelection(Settings):
    """The images that a model is trained on."""

    data: str = setting("fashion", "A data set by name, or a folder; see: backlight data.")
    limit: int | None = setting(None, "Train on a stratified subset of this many images.", metavar="N", least=1)
    fraction: float = setting(1.0, "Train on this share of the images, stratified.", above=0, most=1)
    hold: str = setting("epochs", "What a smaller --fraction leaves unchanged.", choices=("epochs", "steps"))


@dataclass(frozen=True, kw_only=True)
class TrainingData(ImageSelection):
    """What the command line says about images and recipe.  The options of the recipe's fields replace single fields."""

    recipe: str = setting("fashion", "A recipe by name; see: backlight recipes.")


@dataclass(frozen=True, kw_only=True)
class TrainingRun(Settings):
    """What one run does with model and images."""

    held_out: float = setting(
        0.0, "Share of the training images to evaluate on; 0: evaluate on the test images.", least=0, below=1
    )
    snapshots: tuple[str, ...] = setting((), "Save the model at these moments: init, warmup, or numbers of epochs.")
    seed: int = setting(0, "Seed of the weights and of all sampling.", least=0)


@dataclass(frozen=True, kw_only=True)
class Execution(Settings):
    """How a run is carried out.  None of it changes what is computed, except the last digits."""

    resume: bool = setting(False, "Resume, or start if there is nothing to resume.")
    overwrite: bool = setting(False, "Remove what is in the folder first.")
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, ...")
    threads: int | None = setting(None, "CPU threads; the last digits depend on them.", least=1)
    compile: bool = setting(False, "Compile the model first.")
    workers: int | None = setting(None, "Processes that decode large images.", least=0)
    data_root: str | None = setting(None, "Folder of the data sets that are named.", metavar="DIR")
    download: bool = setting(False, "Allow downloading the data.")
    checkpoint_seconds: float = setting(60.0, "Seconds between checkpoints; 0: one after every step.", least=0)
    log: str | None = setting(None, "Send the metrics here too.", choices=TRACKERS)
