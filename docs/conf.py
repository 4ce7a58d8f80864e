"""The site: `make docs` builds it offline from these pages."""

import logging
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from docs_reference import write_reference

project = "Backlight"
author = "The authors of Backlight"
copyright = author
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "sphinx_gallery.gen_gallery"]
root_doc = "index"
html_theme = "furo"
html_title = "Backlight"
exclude_patterns = ["_build", "built"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
smartquotes = False  # options keep their two hyphens
napoleon_custom_sections = [("Settings", "params_style")]
autodoc_typehints = "none"  # they are in the signature
autodoc_member_order = "bysource"
sphinx_gallery_conf = {
    "examples_dirs": ["../examples/recipes"],
    "gallery_dirs": ["recipes"],
    "filename_pattern": r"/\w+\.py",
    "download_all_examples": False,
    "show_memory": False,
    "min_reported_time": 60,
    "abort_on_example_error": True,
    "remove_config_comments": True,
}
suppress_warnings = ["config.cache"]
logging.getLogger("fontTools").setLevel(logging.WARNING)  # of the PDF files of results
os.environ.setdefault("OMP_NUM_THREADS", "1")
write_reference(Path(__file__).parent / "built")
