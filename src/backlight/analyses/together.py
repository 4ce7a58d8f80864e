"""Several analyses of one model and one set of batches: those that only read a forward pass share it, the others run alone."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from backlight.analyses.catalog import CATALOG, entry
from backlight.analyses.entry import Analysis
from backlight.analyses.single_pass import single_pass
from backlight.errors import NotApplicable
from backlight.results.result import Result
from backlight.settings import refuse_unknown

#: Analysis -> its settings; or names, with the settings at their defaults.
Requested = Mapping[str, Mapping[str, Any]] | Sequence[str]


class Measured(NamedTuple):
    """The results, and for each analysis without one why the model has no answer."""

    results: list[Result]
    not_applicable: dict[str, str]


def measured_together(
    model: nn.Module, data: Iterable[Any], analyses: Requested, *, resamples: int = 1000, seed: int = 0, name: str | None = None
) -> Measured:
    """The result of each analysis of a model, in the order of the catalogue.

    Errors: UserError for an unknown analysis or setting, and as each analysis.
    """
    settings = checked(analyses)
    sharing = {key: own for key, own in settings.items() if entry(key).shares_a_pass(own)}
    about = {"resamples": resamples, "seed": seed, "name": name}
    results, reasons = {}, {}
    for group in [sharing, *({key: own} for key, own in settings.items() if key not in sharing)]:
        for key, outcome in zip(group, _outcomes(model, data, group, about), strict=True):
            if isinstance(outcome, Result):
                results[key] = outcome
            else:
                reasons[key] = str(outcome)
    return Measured([results[key] for key in CATALOG if key in results], reasons)


def checked(analyses: Requested) -> dict[str, dict[str, Any]]:
    """Analysis -> settings that were given.  Errors: UserError for an unknown analysis or a wrong setting."""
    requested = analyses if isinstance(analyses, Mapping) else {name: {} for name in analyses}
    for name, own in requested.items():
        about = entry(name)
        names = [option.name for option in about.own_options()]
        refuse_unknown(own, [*names, *_more_parameters(about)], name)
        about.settings.of({key: value for key, value in own.items() if key in names}, name)
    return {name: dict(own) for name, own in requested.items()}


def _more_parameters(about: Analysis) -> list[str]:
    """What its function takes beside settings, such as the ``mean`` and ``std`` of images that do not say them."""
    settings = {option.name for option in about.own_options()}
    shared = {"resamples", "seed", "name"} | ({"at"} if about.reducer else set())
    keywords = [p.name for p in inspect.signature(about.function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return [name for name in keywords if name not in settings | shared]


def _outcomes(
    model: nn.Module, data: Iterable[Any], group: Mapping[str, Mapping[str, Any]], about: Mapping[str, Any]
) -> Sequence[Result | NotApplicable]:
    """The result of each analysis of a group that runs together, or why there is none."""
    if len(group) != 1:
        reducers = {entry(name).reducer_type(): entry(name).settings.of(own) for name, own in group.items()}
        return single_pass(model, data, reducers, **about) if reducers else []
    ((name, own),) = group.items()
    try:
        return [entry(name).function(model, data, **own, **about)]
    except NotApplicable as error:
        return [error]
