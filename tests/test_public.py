"""Public names are listed, have docstrings with all arguments, and are in the reference."""

import importlib
import inspect
import pkgutil
import re

import pytest

import htt_lightning
from tests.conftest import ROOT

MODULES = ["htt_lightning", *(m.name for m in pkgutil.walk_packages(htt_lightning.__path__, "htt_lightning."))]
PACKAGES = [name for name in MODULES if hasattr(importlib.import_module(name), "__path__")]
PUBLIC = {
    f"{package}.{name}": getattr(module, name)
    for package in PACKAGES
    if (module := importlib.import_module(package))
    for name in getattr(module, "__all__", ())
    if package != "htt_lightning.cli"  # its entry point is documented as a command
}
each_name = pytest.mark.parametrize("name", PUBLIC)


def ours(kind):
    """Return a class and its bases in this package."""
    return [base for base in kind.__mro__ if base.__module__.startswith("htt_lightning")]


def described(*docs):
    """Return the names in the sections Args and Attributes."""
    names = set()
    for doc in docs:
        text = inspect.cleandoc(doc) + "\n"
        for section in re.findall(r"^(?:Args|Attributes):\n((?: +.*\n|\n)+)", text, re.MULTILINE):
            names |= set(re.findall(r"^    \**(\w+): \S", section, re.MULTILINE))
    return names


def arguments(function):
    return {name for name in inspect.signature(function).parameters if name not in ("self", "cls")}


def initial(kind):
    """Return the constructor's arguments, if this package declares them."""
    if hasattr(kind, "_fields"):
        return set(kind._fields)
    makers = [base for base in kind.__mro__ if "__init__" in vars(base)]
    return arguments(makers[0].__init__) if makers[0] in ours(kind) else set()


def methods(kind):
    """Iterate over public methods of this package that override none."""
    for base in ours(kind):
        for name, what in vars(base).items():
            declared = [other for other in base.__mro__[1:] if getattr(vars(other).get(name), "__doc__", None)]
            function = getattr(what, "__func__", what)
            if inspect.isfunction(function) and not name.startswith("_") and not declared:
                yield f"{base.__name__}.{name}", function


def undescribed(what):
    """Return undocumented arguments of a function, or of a class and its methods."""
    what = inspect.unwrap(what) if callable(what) else what
    if not inspect.isclass(what):
        return {what.__name__: arguments(what) - described(what.__doc__)} if inspect.isfunction(what) else {}
    docs = [base.__doc__ for base in ours(what) if base.__doc__]
    return {what.__name__: initial(what) - described(*docs)} | {
        name: arguments(function) - described(function.__doc__)
        for name, function in methods(what)
        if "\n" in (function.__doc__ or "\n").partition(">>>")[0].strip()  # one line is enough for a simple method
    }


def test_undescribed_finds_a_missing_argument():
    def short(one, other):
        """Do something.

        Args:
            one: The first.
        """

    assert described(short.__doc__) == {"one"}
    assert undescribed(short) == {"short": {"other"}}


@each_name
def test_public_arguments_are_documented(name):
    assert {key: left for key, left in undescribed(PUBLIC[name]).items() if left} == {}


def test_packages_list_public_names():
    assert [name for name in PACKAGES if not hasattr(importlib.import_module(name), "__all__")] == []


def test_public_names_are_in_the_reference():
    listed = re.findall(r"^::: (\S+)\.(\w+)$", (ROOT / "docs" / "reference.md").read_text(), re.MULTILINE)
    shown = [getattr(importlib.import_module(module), name) for module, name in listed]
    assert [name for name, what in PUBLIC.items() if not any(what is other for other in shown)] == []


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_modules_classes_and_functions_have_docstrings(name):
    module = importlib.import_module(name)
    assert module.__doc__
    undocumented = []
    for key, value in vars(module).items():
        public = not key.startswith("_") and getattr(value, "__module__", None) == name
        if not public or not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        named = {key: value}
        if inspect.isclass(value):
            named |= {f"{key}.{member}": what for member, what in vars(value).items() if not member.startswith("_")}
        for label, what in named.items():
            plain = what.__func__ if isinstance(what, classmethod | staticmethod) else what
            documentable = inspect.isclass(plain) or inspect.isfunction(plain) or isinstance(plain, property)
            # A dataclass' generated docstring begins with its signature.
            if documentable and (not plain.__doc__ or plain.__doc__.startswith(f"{label}(")):
                undocumented.append(label)
    assert undocumented == []
