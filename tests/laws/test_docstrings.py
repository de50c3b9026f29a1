"""Every public name says what it takes, what it gives and what it raises."""

import inspect
from types import ModuleType

import pytest

import sdegen
from sdegen import data, discrete, metrics, nets, plot, testing, training


def public(module: ModuleType) -> dict[str, object]:
    """What a module offers: the names it lists, else those that are made in it."""
    listed = getattr(module, "__all__", None)
    found = {name: getattr(module, name) for name in listed or vars(module) if not name.startswith("_")}
    return {
        n: o for n, o in found.items() if callable(o) and (listed or getattr(o, "__module__", "") == module.__name__)
    }


def said(thing) -> dict[str, bool]:
    doc = inspect.getdoc(thing) or ""
    return {part: f"{part}:\n" in doc for part in ("Args", "Attributes", "Returns", "Raises")} | {"text": bool(doc)}


def missing(name: str, thing) -> list[str]:
    """What the docstring of a function, a class or a class's public methods leaves out."""
    if inspect.isclass(thing):
        own = [f"{name}: text"] * (not (thing.__doc__ or "").strip())
        error = issubclass(thing, Exception)
        takes = not error and thing.__init__ is not object.__init__ and len(inspect.signature(thing).parameters) > 0
        tells = said(thing)["Args"] or said(thing)["Attributes"]
        own += [f"{name}: Args or Attributes"] * (takes and not tells)
        methods = {k: v for k, v in vars(thing).items() if inspect.isfunction(v) and not k.startswith("_")}
        return own + [line for k, method in methods.items() for line in missing(f"{name}.{k}", method)]
    parts, signature = said(thing), inspect.signature(thing)
    takes = [p for p in signature.parameters if p != "self"]
    gives = signature.return_annotation not in (None, "None", inspect.Signature.empty)
    raises = "    raise " in inspect.getsource(thing)
    wanted = {"text": True, "Args": bool(takes), "Returns": gives, "Raises": raises}
    return [f"{name}: {part}" for part, needed in wanted.items() if needed and not parts[part]]


@pytest.mark.parametrize(
    "module", [data, data.toys, discrete, metrics, nets, plot, testing, training], ids=lambda m: m.__name__
)
def test_public_names_say_what_they_take_give_and_raise(module):
    found = [line for name, thing in public(module).items() for line in missing(name, thing)]
    assert not found, "\n".join(found)


def test_public_functions_of_the_package_say_what_they_take_and_give():
    found = [
        line for name, thing in public(sdegen).items() if inspect.isfunction(thing) for line in missing(name, thing)
    ]
    assert not found, "\n".join(found)


def test_public_classes_of_the_package_say_what_they_are_made_of():
    classes = {name: thing for name, thing in public(sdegen).items() if inspect.isclass(thing)}
    found = [line for name, thing in classes.items() for line in missing(name, thing) if line.startswith(f"{name}:")]
    assert not found, "\n".join(found)
