"""Configure the documentation site; `make docs` builds it in `build/docs/html`.

Pages are Markdown. The reference comes from docstrings. Pictures, `--help` texts and tables of
facts come from the product's own code: see the package `extension` next to this file.
"""

import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # autodoc imports TensorFlow

import tf_gossip_pga

project = "tf_gossip_pga"
project_copyright = "the tf_gossip_pga authors, Apache License 2.0"
version = release = tf_gossip_pga.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.doctest",
    "docs.extension",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_generated/*.md"]  # parts that other pages include
suppress_warnings = [
    "misc.highlighting_failure",  # code on these pages may contain "…" for what is left out
]

# ---- Markdown ------------------------------------------------------------------------------------

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_fence_as_directive = {"mermaid"}
myst_heading_anchors = 4  # links to headings, as GitHub makes them

# ---- Docstrings ----------------------------------------------------------------------------------

default_role = "py:obj"  # a name in backticks is a link where the reference has that name
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes as a list, next to the properties of the same names
doctest_global_setup = """
import numpy as np
import tensorflow as tf
from tf_gossip_pga import *
from tf_gossip_pga.algorithm.schedule import *
from tf_gossip_pga.algorithm.topology import *
from tf_gossip_pga.plan import *
from tf_gossip_pga.simulate import *
"""

# ---- HTML ----------------------------------------------------------------------------------------

html_theme = "furo"
html_title = f"{project} {version}"
html_static_path = ["_static"]
html_css_files = ["gossip.css"]
html_copy_source = False
html_math_renderer = "mathml"  # no script from elsewhere
pygments_style = "default"
pygments_dark_style = "monokai"
