"""What the docstrings need before they are read as text, without importing the library.

A griffe extension. It fills the words that `applications.arguments.documented` fills when the library runs,
and gives each of several arguments that are described together a line of its own.
"""

import ast
import re
import textwrap

import griffe

# Names with one description between them, as they stand in a section of a docstring.
_TOGETHER = re.compile(r"^    (\w+(?:, \w+)+): (.*(?:\n {8,}.*)*)", re.MULTILINE)


class Docstrings(griffe.Extension):
    def on_package(self, *, pkg, loader, **kwargs):
        if pkg.name != "keras_exitens":
            return
        shared = _literal(pkg["applications.arguments"], "_SHARED")
        for docstring in _docstrings(pkg):
            for word, text in shared.items():
                docstring.value = docstring.value.replace(f"    {word}", textwrap.indent(text, "    "))
            docstring.value = _TOGETHER.sub(_apart, docstring.value)


def _literal(module, name):
    """The value of a module's constant, as it stands in the source."""
    return ast.literal_eval(str(module[name].value))


def _docstrings(item):
    if item.docstring:
        yield item.docstring
    for member in item.members.values():
        if not member.is_alias:
            yield from _docstrings(member)


def _apart(found):
    names, description = found.groups()
    return "\n".join(f"    {name}: {description}" for name in names.split(", "))
