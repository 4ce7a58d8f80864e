# The public names, for editors and type checkers; `__init__.py` reads them from here.  The analyses are those of the catalogue.
from backlight.analyses.catalog import *
from backlight.buildup.search import BuildupRun as BuildupRun
from backlight.buildup.search import buildup_to_folder as buildup_to_folder
from backlight.comparing.compare import compare as compare
from backlight.comparing.readers import scalars as scalars
from backlight.curvature.batches import draw_batches as draw_batches
from backlight.curvature.hessian import Hessian as Hessian
from backlight.curvature.hessian import of_module as of_module
from backlight.curvature.hessian import of_units as of_units
from backlight.curvature.loss import Objective as Objective
from backlight.data.loading import dataset as dataset
from backlight.data.loading import load_data as load_data
from backlight.models.sources.load import load_model as load_model
from backlight.models.surgery.hybridize import drop_original as drop_original
from backlight.models.surgery.hybridize import gates as gates
from backlight.models.surgery.hybridize import hybridize as hybridize
from backlight.models.surgery.hybridize import set_gates as set_gates
from backlight.models.surgery.hybridize import smooth as smooth
from backlight.monitoring.monitor import Monitor as Monitor
from backlight.numerics.lanczos import lanczos as lanczos
from backlight.numerics.quadrature import density as density
from backlight.numerics.quadrature import trace as trace
from backlight.recipes import recipe as recipe
from backlight.report import write_report as write_report
from backlight.results.result import Result as Result
from backlight.study.cells import load as load
from backlight.study.run import run_study as run_study
from backlight.study.settings import StudySettings as StudySettings
from backlight.tracing.corrections import correct as correct
from backlight.tracing.find import units as units
from backlight.tracing.hooks import feature_maps as feature_maps
from backlight.tracing.hooks import without as without
from backlight.tracing.layout import grid as grid
from backlight.tracing.tap import spell as spell
from backlight.training.loop import train as train
from backlight.training.run import Run as Run
from backlight.training.run_folder import train_to_folder as train_to_folder

__version__: str
