"""Films of the gallery without the network: matplotlib's player asks a server for the signs on its buttons."""

import re

LINK = re.compile(r'<link rel="stylesheet"\s+href="https://maxcdn[^>]*>')


def connect(app):
    """Called by Sphinx for every page before it is written; site.css draws the signs."""
    app.connect("html-page-context", offline)


def offline(app, pagename, templatename, context, doctree):
    """In place: the page without the link."""
    if "body" in context:
        context["body"] = LINK.sub("", context["body"])
