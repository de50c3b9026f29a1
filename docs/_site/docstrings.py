"""The docstrings, plain text with single backticks, as reStructuredText: formulas and tables are not markup."""

import re

SECTION = re.compile(r"(Args|Returns|Raises|Yields|Attributes|Examples?|Notes?):\s*$")


def connect(app):
    """Called by Sphinx for every docstring before it is read."""
    app.connect("autodoc-process-docstring", rewritten, priority=100)  # before napoleon


def rewritten(app, what, name, obj, options, lines):
    """In place: what is mathematics here and markup there is escaped; indented blocks of prose stay as typed."""
    lines[:] = blocks(lines)


def blocks(lines):
    """The lines, a code block made of each indented block outside the sections of arguments."""
    out, section, literal = [], False, False
    for line in lines:
        indented = line.startswith(" ")
        if line.strip() and not indented:
            section = bool(SECTION.match(line))
            if literal and out[-1].strip():
                out.append("")
            literal = False
        elif line.strip() and indented and not section and not literal:
            out += ([""] if out and out[-1].strip() else []) + [".. code-block:: text", ""]
            literal = True
        out.append(line if literal else escaped(line))
    return out


def escaped(line):
    """One line with its marks escaped, but for code: what stands between backticks, and what a prompt begins."""
    if line.lstrip().startswith((">>>", "...")):
        return line
    parts = re.split(r"(``[^`]+``|`[^`]+`)", line)
    return "".join(part if i % 2 else re.sub(r"([|*]|(?<=\w)_(?!\w))", r"\\\1", part) for i, part in enumerate(parts))
