"""What the docstrings need before they are read as text, without importing the library.

A griffe extension. It gives the names of `keras_exitens.__all__`, which are imported on first use only,
their place in the package, and fills the words that `applications.arguments.documented` fills when the
library runs.
"""

import ast
import textwrap

import griffe


class Docstrings(griffe.Extension):
    def on_package(self, *, pkg, loader, **kwargs):
        if pkg.name != "keras_exitens":
            return
        for name, module in _literal(pkg, "_EXPORTS").items():
            pkg.set_member(name, griffe.Alias(name, f"{pkg.name}.{module}.{name}"))
        shared = _literal(pkg["applications.arguments"], "_SHARED")
        for module in pkg["applications"].modules.values():
            for function in module.functions.values():
                if function.docstring:
                    function.docstring.value = _filled(function.docstring.value, shared)


def _literal(module, name):
    """The value of a module's constant, as it stands in the source."""
    return ast.literal_eval(str(module[name].value))


def _filled(document, shared):
    for word, text in shared.items():
        document = document.replace(f"    {word}", textwrap.indent(text, "    "))
    return document
