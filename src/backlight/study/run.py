"""Runs a study: what is there already is used again, and an engine measures the rest.  torch is imported if there is a rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from backlight.errors import UserError
from backlight.progress import Show, quiet
from backlight.study.engines.named import engine_named
from backlight.study.folder import start_study, store_request
from backlight.study.how import How
from backlight.study.identities import Identities
from backlight.study.outcome import Outcome
from backlight.study.plan import Cell, plan
from backlight.study.reuse import reused_without_loading
from backlight.study.settings import StudySettings
from backlight.study.tasks import tasks


def run_study(
    models: Sequence[str],
    analyses: Mapping[str, Mapping[str, Any]],
    settings: StudySettings = StudySettings(),
    out: str | Path | None = None,
    *,
    keep_going: bool = True,
    overwrite: bool = False,
    shard: tuple[int, int] = (0, 1),
    engine: str = "here",
    address: str | None = None,
    timeout: float | None = None,
    show: Show = quiet,
) -> Iterator[Outcome]:
    """Each analysis (name -> settings) of each model, an outcome an iteration, stored under ``out`` if it is given.

    The settings of an analysis may hold ``models``, its own list of them.  A cell that is there already, of the same model,
    data and analysis, is not run; a cell that another process measures is waited for.
    With ``keep_going`` a cell that fails is yielded with its error and the rest are run.  ``shard``: (rank, world).
    ``engine``: here, processes:N, ray or ray:N; ``address``: of a Ray cluster.  ``timeout``: seconds for a cell, with
    workers that can be ended.  Errors: UserError for an unknown analysis, setting or engine, for shards with a budget, or if
    a cell is there that was made with other settings.
    """
    if settings.budget and shard[1] > 1:
        raise UserError("parts of one result need the same images, and a budget ends each elsewhere; leave out one of the two")
    cells = plan(models, analyses, settings)
    folder = Path(out) if out is not None else None
    run = engine_named(engine, folder, address=address, timeout=timeout)
    there = list(reused_cells(folder, cells, overwrite, show)) if folder else []
    if folder and (damage := store_request(folder, cells, settings)):
        show(f"{damage}: it is made again")
    yield from there
    done = {(outcome.model, outcome.analysis) for outcome in there}
    if left := [cell for cell in cells if (cell.model, cell.analysis) not in done]:
        yield from run(tasks(left, shard), How(folder, keep_going, overwrite, show))


def reused_cells(folder: Path, cells: Sequence[Cell], overwrite: bool, show: Show) -> Iterator[Outcome]:
    """The cells that are there, as far as that is known without loading their models.  Errors: UserError, as `run_study`."""
    start_study(folder, cells)
    identities = Identities()
    for cell in () if overwrite else cells:
        if outcome := reused_without_loading(folder, cell, identities, show):
            yield outcome
