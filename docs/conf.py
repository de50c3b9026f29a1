"""How the site is built: `make docs` writes docs/_build/html, without a network and with every warning an error."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_site"))

import docstrings  # noqa: E402
import films  # noqa: E402
import measured  # noqa: E402
import reference  # noqa: E402
import results  # noqa: E402

import sdegen  # noqa: E402

os.environ["COLUMNS"] = "96"  # how wide argparse writes its help
reference.write(HERE / "reference")
results.write(HERE / "measured")
sdegen.plot.explore(sdegen.data.toys.ring(8), HERE / "_static" / "explorer.html")

project, author = "sdegen", "The sdegen authors"
copyright = "2026, the sdegen authors"
release = version = sdegen.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "myst_nb",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "sphinx-mathjax-offline",
]
exclude_patterns = [
    "_build",
    "_site",
    "_templates",
    "jupyter_execute",
    "gallery/*.py",
    "gallery/*.ipynb",
    "gallery/*.md5",
]
templates_path = ["_templates"]
default_role = "code"
nitpicky = False

# ---- pages and notebooks
myst_enable_extensions = ["amsmath", "dollarmath", "colon_fence", "deflist", "smartquotes"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_timeout = 600  # seconds a cell, on a machine with much else to do
nb_execution_raise_on_error = True
nb_output_stderr = "remove"  # progress bars
nb_merge_streams = True
nb_execution_show_tb = True
suppress_warnings = ["mystnb.unknown_mime_type", "config.cache", "toc.empty_glob"]

# ---- reference
autosummary_generate = True
autosummary_imported_members = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_rtype = False
napoleon_use_ivar = True  # attributes are told by the class's own page

# ---- gallery
sphinx_gallery_conf = {
    "examples_dirs": str(HERE.parent / "examples" / "gallery"),
    "gallery_dirs": "gallery",
    "filename_pattern": r"plot_",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "min_reported_time": 1e6,  # say nothing of it: it is the machine's
    "capture_repr": (),
    "thumbnail_size": (640, 270),
    "abort_on_example_error": True,
    "matplotlib_animations": (True, "jshtml"),
    "image_scrapers": ("matplotlib",),
    "reset_modules": ("matplotlib",),
    "copyfile_regex": r"",
    "write_computation_times": False,
    "remove_config_comments": True,
}

# ---- looks
html_theme = "furo"
html_title = "sdegen"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "navigation_with_keys": True,
    "light_css_variables": {"color-brand-primary": "#0b5d8a", "color-brand-content": "#0b5d8a"},
    "dark_css_variables": {"color-brand-primary": "#7cc4ee", "color-brand-content": "#7cc4ee"},
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def setup(app):
    docstrings.connect(app)
    films.connect(app)
    measured.connect(app)
