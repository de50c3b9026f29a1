"""The docstrings, plain text with single backticks, as reStructuredText: formulas and tables are not markup."""

import inspect
import re

SECTION = re.compile(r"(Args|Returns|Raises|Yields|Attributes|Examples?|Notes?):\s*$")


def connect(app):
    """Have Sphinx call these for every docstring before it is read, and for every signature."""
    app.connect("autodoc-process-docstring", rewritten, priority=100)  # before napoleon
    app.connect("autodoc-process-signature", signature)


def signature(app, what, name, obj, options, args, returns):
    """A class's own arguments, where its metaclass takes them on."""
    if what != "class" or not (args or "").startswith("(*args"):
        return None
    own = list(inspect.signature(obj.__init__).parameters.values())[1:]
    return str(inspect.Signature([p.replace(annotation=p.empty) for p in own])), None


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
