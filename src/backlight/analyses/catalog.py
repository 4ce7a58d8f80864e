"""The catalogue: every analysis, a line each, in the order of the page.

A line makes the function public as ``backlight.NAME`` and enters its settings and facts, from which follow the command with its
options and help, the keys of a study file, the tables in the documentation and the order of the page.
"""

# ruff: noqa: PLC0414 (an alias makes the name public for type checkers)
# ruff: isort: off
from backlight.analyses.fourier import fourier as fourier
from backlight.analyses.variance import variance as variance
from backlight.analyses.erf import erf as erf
from backlight.analyses.similarity import similarity as similarity
from backlight.analyses.attention import attention as attention
from backlight.analyses.lesion import lesion as lesion
from backlight.analyses.noise import noise as noise
from backlight.analyses.corruption import corruption as corruption
from backlight.analyses.adversarial import adversarial as adversarial
from backlight.analyses.shape_bias import shape_bias as shape_bias
from backlight.analyses.calibration import calibration as calibration
from backlight.analyses.hessian import hessian as hessian
from backlight.analyses.landscape import landscape as landscape
from backlight.analyses.trajectory import trajectory as trajectory

# ruff: isort: on
from backlight.analyses.entry import ENTRIES, Analysis
from backlight.errors import UserError, did_you_mean

#: Name -> entry, in the order of the lines above, whichever analysis somebody imported first.
CATALOG = {name: ENTRIES[name] for name in tuple(globals()) if name in ENTRIES}


def entry(name: str) -> Analysis:
    """The entry of this name.  Errors: UserError if no analysis is called so."""
    if name not in CATALOG:
        raise UserError(f"no analysis is called {name!r}{did_you_mean(name, CATALOG)}; there are {', '.join(CATALOG)}")
    return CATALOG[name]
