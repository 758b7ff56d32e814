# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""One mechanism for dictionary forms: signature, documentation and behavior follow from the array form."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Hashable, Iterable, Mapping, MutableMapping
from typing import Any, ClassVar

from monai.config import KeysCollection
from monai.transforms import InvertibleTransform, MapTransform, Randomizable, ThreadUnsafe, Transform
from monai.utils import TransformBackends, ensure_tuple_rep

TORCH, NUMPY = [TransformBackends.TORCH], [TransformBackends.NUMPY]  # what a transform computes with, its ``backend``


class WarnsOnce:
    """A transform that warns once of each kind of thing.

    What it has warned of is no part of what it does, by which a store knows it, and is not pickled.
    """

    @property
    def _warned(self) -> set[str]:
        return self.__dict__.setdefault("_kinds_warned_of", set())

    def __getstate__(self) -> dict[str, Any]:
        inherited = getattr(super(), "__getstate__", None)  # of MONAI's invertible transforms; Python 3.10 has no other
        state = inherited() if inherited else self.__dict__
        return {name: value for name, value in state.items() if name != "_kinds_warned_of"}

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, stacklevel=6)


class DictionaryForm(MapTransform):
    """Base of the dictionary forms, which :func:`dictionary_form` makes: owns one array transform, applies it to keys.

    A random array transform draws at the first key, and repeats the draw for the others. Arguments of its call come
    from items that options named ``{argument}_key`` point to; an option that is ``None`` leaves the argument out, an
    item that is absent is an error.

    Subclasses set the class attributes, and override :meth:`store` where the result is not put back under its key.
    """

    array: type[Transform]
    items: tuple[str, ...] = ()  # arguments of the call that are looked up in the dictionary
    required: tuple[str, ...] = ()  # those of them that must be there
    each: ClassVar[dict[str, Any]] = {}  # arguments of the call that may differ from key to key, with their defaults
    note = ""  # a sentence for the documentation
    options: ClassVar[dict[str, tuple[Any, str]]] = {}  # further options of the constructor: default, documentation

    def __init__(self, keys: KeysCollection, *args: Any, **kwargs: Any) -> None:
        try:
            bound = inspect.signature(type(self)).bind(keys, *args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{type(self).__name__}: {error}.") from None
        bound.apply_defaults()
        values = dict(bound.arguments)
        super().__init__(values.pop("keys"), values.pop("allow_missing_keys"))
        for name in (*(f"{item}_key" for item in self.items), *self.options):
            setattr(self, name, values.pop(name))
        parameters = inspect.signature(self.array).parameters
        self.each_values = {name: ensure_tuple_rep(values[name], len(self.keys)) for name in self.each}
        own = {name: value for name, value in values.items() if name in parameters and name not in self.each}
        self.transform = self.array(**own)
        for choices in self.each_values.values():
            self.check_each(choices)

    def check_each(self, choices: Iterable[Any]) -> None:
        """Refuse impossible values of the arguments in ``each``."""

    def set_random_state(self, seed: int | None = None, state: Any = None) -> Any:
        """Seed the array transform."""
        self.transform.set_random_state(seed, state)  # type: ignore[attr-defined]
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Apply one draw to every key, and leave the other items alone."""
        d = dict(data)
        given: dict[str, Any] = {}
        for item in self.items:
            name = getattr(self, f"{item}_key")
            if name is not None and name not in d and not self.allow_missing_keys:
                raise KeyError(f"{type(self).__name__}: there is no item {name!r}, which {item}_key names.")
            given[item] = d.get(name) if name is not None else None
        numbers = range(len(self.keys))  # `key_iterator` gives tuples only beside something else
        first = True
        for key, number in self.key_iterator(d, numbers):
            arguments = given | {name: choices[number] for name, choices in self.each_values.items()}
            if isinstance(self.transform, Randomizable):
                arguments["randomize"] = first
            first = False
            self.store(d, key, self.transform(d[key], **arguments))
        return d

    def store(self, d: MutableMapping[Hashable, Any], key: Hashable, result: Any) -> None:
        """Put what the array transform gave for ``key`` into the dictionary."""
        d[key] = result


class InvertibleForm(DictionaryForm, InvertibleTransform):
    """A :class:`DictionaryForm` that goes back by the inverse of its array transform."""

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Bring every key back to what it was."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.transform.inverse(d[key])  # type: ignore[attr-defined]
        return d


def dictionary_form(array: type[Transform], base: type[DictionaryForm] = DictionaryForm) -> Any:
    """The dictionary form of the transform ``array``, a class named after it with a ``d``.

    Its constructor takes ``keys``, then what must be looked up, the arguments of ``array``, those that may differ from
    key to key, the other look-ups, the options of ``base`` and ``allow_missing_keys``.
    """
    known = _documented(array)
    entries: list[tuple[str, Any, str]] = [("keys", inspect.Parameter.empty, "keys: images.")]
    for item in base.required:
        text = f"{item}_key: item that holds the argument ``{item}`` of the array form."
        entries.append((f"{item}_key", inspect.Parameter.empty, text))
    for name, parameter in inspect.signature(array).parameters.items():
        if name not in base.each:
            entries.append((name, parameter.default, known.get(name, f"{name}: see :class:`{array.__name__}`.")))
    for name, default in base.each.items():
        entries.append((name, default, f"{name}: ``{name}`` of the array form: one value, or one for each key."))
    for item in (item for item in base.items if item not in base.required):
        entries.append((f"{item}_key", None, f"{item}_key: item with the argument ``{item}``, if there is one."))
    entries += [(name, default, f"{name}: {text}") for name, (default, text) in base.options.items()]
    entries.append(("allow_missing_keys", False, "allow_missing_keys: do not raise when a key is absent."))
    random = issubclass(array, Randomizable)
    summary = f"Dictionary form of :class:`{array.__name__}`." + (" One draw serves every key." if random else "")
    lines = dict.fromkeys(text for _, _, text in entries)  # one entry may document several
    bases: tuple[type, ...] = (base, *(trait for trait in (Randomizable, ThreadUnsafe) if issubclass(array, trait)))
    if issubclass(array, InvertibleTransform) and not issubclass(base, InvertibleForm):
        bases = (InvertibleForm, *bases[(base is DictionaryForm) :])
    name = f"{array.__name__}d"
    return type(
        name,
        bases,
        {
            "__doc__": f"{summary} {base.note}".rstrip() + "\n\nArgs:\n" + "\n".join(f"    {x}" for x in lines) + "\n",
            "__module__": array.__module__,
            "__qualname__": name,
            "__signature__": inspect.Signature(
                [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=d) for n, d, _ in entries]
            ),
            "array": array,
            "backend": array.backend,
        },
    )


def _documented(array: type) -> dict[str, str]:
    """What the docstring of a class says on its arguments: the whole entry of each, by name."""
    _, _, section = (inspect.getdoc(array) or "").partition("Args:\n")
    found: dict[str, str] = {}
    for entry in re.findall(r"^    \S.*(?:\n     .*)*", section.split("\n\n")[0], re.MULTILINE):
        found |= {name.strip(): entry.strip() for name in entry.split(":")[0].split(",")}
    return found


def add_aliases(names: MutableMapping[str, Any]) -> list[str]:
    """Give every dictionary form in ``names`` the aliases of MONAI, with ``D`` and ``Dict``; returns those."""
    added = []
    for name, value in list(names.items()):
        if name.endswith("d") and isinstance(value, type) and issubclass(value, MapTransform):
            for alias in (f"{name[:-1]}D", f"{name[:-1]}Dict"):
                names[alias] = value
                added.append(alias)
    return added
