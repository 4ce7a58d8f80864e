"""What the catalogue knows of an analysis.  Nothing here imports torch, so that help and plans answer at once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, make_dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from backlight.recipes import AUGMENTATION, RECIPES, Recipe
from backlight.settings import Option, Settings, options, refuse_unknown, setting

if TYPE_CHECKING:
    from backlight.analyses.single_pass import Reducer
    from backlight.results.result import Result

F = TypeVar("F", bound=Callable[..., Any])

#: Bins of equal width for ECE and reliability diagrams, everywhere; the paper's code has 10.
BINS = 10
#: Wraps what a long analysis goes through, so that somebody can watch it.
Track = Callable[[Iterable[Any]], Iterable[Any]]


#: (settings, number of units) -> forward passes over the images; a backward pass counts as two.
Passes = Callable[[Any, int], float]


def one_pass(settings: Any, units: int) -> float:
    """Of an analysis that reads one forward pass."""
    return 1


@dataclass(frozen=True)
class NoSettings(Settings):
    """Of an analysis that has none of its own."""


def replacing(name: str) -> Any:
    """A field that replaces this field of the recipe; its bounds and help are the recipe's."""
    about = Recipe.__dataclass_fields__[name].metadata
    return field(default=None, metadata={**about, "help": f"{about['help'].removesuffix('.')}; default: the recipe's."})


@dataclass(frozen=True)
class ObjectiveSettings(Settings):
    """The loss whose curvature or landscape is measured."""

    weight_decay: float | None = replacing("weight_decay")
    decay_all: bool | None = replacing("decay_all")
    statistics: str = setting(
        "running", "Where batch norms take mean and variance from.", choices=("running", "batch", "re-estimated")
    )


@dataclass(frozen=True)
class BatchSettings(Settings):
    """How the batches of the training loss are drawn: every analysis of this loss takes them besides its own settings."""

    batches: int | None = setting(None, "Mini-batches; default: from --limit, or what the analysis needs.", least=1)
    recipe: str | None = setting(
        None, "The recipe of this loss; default: the one saved in the model's folder, else cifar.", choices=tuple(RECIPES)
    )


#: What replaces the fields of the recipe that decide how images are augmented.
AugmentationSettings: type[Settings] = make_dataclass(
    "AugmentationSettings",
    [(option.name, option.type | None, replacing(option.name)) for option in options(Recipe) if option.name in AUGMENTATION],
    bases=(Settings,),
    frozen=True,
)


@dataclass(frozen=True)
class TrainingLoss:
    """An analysis of the training loss wants augmented batches of training images, drawn once."""

    batch_size: int
    images: int
    size_matters: bool = False  # the batch size is part of the question, so it is not changed to fit --limit


@dataclass(frozen=True)
class Analysis:
    """One entry of the catalogue."""

    name: str
    function: Callable[..., Any]  # the public Python function
    question: str
    paper: str  # where the question comes from
    settings: type[Settings]
    result: str  # the class of its result, in its module ``measure``
    example: str  # what follows ``backlight NAME`` in an example
    reducer: str = ""  # the class in ``measure`` that lets it share a forward pass; empty: it runs alone
    reads_stream: bool = False  # takes ``at``, the modules to read instead of units
    needs: tuple[str, ...] = ("images",)  # images, labels, attention, snapshots: what must be there
    data: tuple[str, str] = ("fashion", "test")  # the data and the split that it is about
    training_loss: TrainingLoss | None = None
    shards: bool = False  # several processes can each compute a part, into one folder
    by_default: bool = False  # a study runs it unless told otherwise
    passes: Passes = one_pass
    version: int = 1  # one more with each change of its numbers: results of another version are measured again

    @property
    def module(self) -> Any:
        """The module that measures; it imports torch."""
        return import_module(f"backlight.analyses.{self.name}.measure")

    @property
    def runs(self) -> str:
        """How it runs, in words."""
        if self.training_loss:
            return "in pieces: a stopped run resumes" + (", and several processes can share the work" if self.shards else "")
        if self.reducer:
            return "shares a forward pass"
        return "alone, or several processes share the work" if self.shards else "alone"

    def options(self) -> tuple[Option, ...]:
        """All settings that a command or a study file can give it."""
        return tuple(option for kind in self.kinds() for option in options(kind))

    def own_options(self) -> tuple[Option, ...]:
        """Its own settings: parameters of its Python function."""
        return options(self.settings)

    def kinds(self) -> list[type[Settings]]:
        """Its own settings, and with the training loss those of its batches."""
        return [self.settings, *((BatchSettings, AugmentationSettings) if self.training_loss else ())]

    def passes_of(self, values: Mapping[str, Any], units: int) -> float:
        """About how many forward passes over its images it takes with these settings, for a model of so many units."""
        return self.passes(self.settings(**{option.name: values[option.name] for option in self.own_options()}), units)

    def checked(self, values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
        """All its settings, those that are not among ``values`` at their defaults.  Errors: UserError, as `Settings.of`."""
        refuse_unknown(values, [option.name for option in self.options()], where or self.name)
        complete: dict[str, Any] = {}
        for kind in self.kinds():
            names = [option.name for option in options(kind)]
            checked = kind.of({name: values[name] for name in names if name in values}, where)
            complete |= {name: getattr(checked, name) for name in names}
        return complete

    def shares_a_pass(self, values: Mapping[str, Any]) -> bool:
        """Whether it can share a forward pass with others when it has these settings."""
        alone = (option for option in self.options() if option.about["own_pass"])
        return bool(self.reducer) and all(values.get(option.name, option.default) == option.default for option in alone)

    def result_type(self) -> type[Result]:
        """The class of its result."""
        return getattr(self.module, self.result)

    def reducer_type(self) -> type[Reducer]:
        """The reducer of an analysis that shares a forward pass."""
        return getattr(self.module, self.reducer)


#: Name -> entry, of the analyses imported so far.
ENTRIES: dict[str, Analysis] = {}


def analysis(**about: Any) -> Callable[[F], F]:
    """Enter the function below into the catalogue, by its name.  ``about``: fields of `Analysis`."""

    def enter(function: F) -> F:
        entry = ENTRIES[function.__name__] = Analysis(function.__name__, function, **about)
        lines = [f"    {option.name}: {option.about['help']}{_ends(option)}" for option in entry.own_options()]
        if lines:
            function.__doc__ = "\n".join([f"{inspect.cleandoc(function.__doc__ or '')}\n", "Settings:", *lines])
        return function

    return enter


def _ends(option: Option) -> str:
    """What is allowed and the default, for a docstring."""
    allowed = f"{option.allowed()}; " if option.allowed() else ""
    return f" [{allowed}default: {option.default!r}]"
