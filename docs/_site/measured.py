"""The directive by which a page shows results, see results.py."""

import json

import results
from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective


class Measured(SphinxDirective):
    """The tables of a results file, each under its title."""

    required_arguments = 1
    option_spec = {"tables": directives.unchanged, "figures": directives.flag, "made": directives.flag}

    def run(self) -> list[nodes.Node]:
        path = results.RESULTS / f"{self.arguments[0]}.json"
        self.env.note_dependency(str(path))
        whole, figures = ("made" in self.options), ("figures" in self.options)
        try:
            report = json.loads(path.read_text())
            lines = results.lines(report, path.stem, self.options.get("tables", ""), whole, figures)
        except (OSError, ValueError) as error:
            raise self.error(str(error)) from None
        parent = nodes.container()
        self.state.nested_parse(StringList(lines, str(path)), 0, parent)
        return parent.children


def connect(app) -> None:
    """Called by Sphinx once."""
    app.add_directive("measured", Measured)
