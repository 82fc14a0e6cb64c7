"""Who owns malloc and its family in a process, by the loader's rules, from the files it has mapped.

The loader searches a symbol in the program, the preloaded objects, then what these need, breadth
first; the first definition wins, for all of them. Objects opened later find what is global first
and their own only then. So a family of routines that must fit together is split as soon as an
object in front defines a part of it.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..elf import Elf, read
from .target import Target

OURS = "libmalloc_arena.so"
LIBRARY = Path(__file__).resolve().parents[1] / "lib" / OURS

# These must be one implementation's. reallocarray and free_sized are not here: glibc's end in calls
# of realloc and free, whosever these are.
FAMILY = (
    "malloc",
    "calloc",
    "realloc",
    "free",
    "malloc_usable_size",
    "memalign",
    "aligned_alloc",
    "posix_memalign",
    "valloc",
    "pvalloc",
)
# Long obsolete: an implementation without them is whole until somebody calls them.
_OBSOLETE = ("valloc", "pvalloc")
# What the arena library takes from the next implementation behind it, by dlsym.
NEXT = ("malloc", "calloc", "realloc", "memalign", "free", "malloc_usable_size")

Place = Literal["program", "preload", "needed", "later"]


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    path: str
    elf: Elf
    place: Place

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def is_ours(self) -> bool:
        return OURS in (self.elf.soname, self.name)

    @property
    def is_whole(self) -> bool:
        return all(name in self.elf.defines for name in FAMILY if name not in _OBSOLETE)

    def is_called(self, word: str) -> bool:
        """Whether WORD, of LD_PRELOAD or a DT_NEEDED, may be this object. A path may lead there by
        links, or by a directory that is not known here."""
        return word.rpartition("/")[2] in (self.name, self.elf.soname) or (
            "/" in word and os.path.realpath(word) == self.path
        )


@dataclass(frozen=True, slots=True)
class Split:
    """Routines that do not fit the `free` of the same process."""

    owners: dict[str, Loaded]
    """The routine's owner, by its name, and that of free."""
    partial: tuple[Loaded, ...]
    """The objects that define a part of the family only."""
    callers: tuple[Loaded, ...]
    """Who calls such a routine."""


@dataclass(frozen=True, slots=True)
class Objects:
    """What is loaded, in the order of symbol search; `later` ones come last."""

    all: tuple[Loaded, ...]
    unread: tuple[str, ...]
    """Files that could not be read, each with the reason."""
    is_static: bool

    @property
    def scope(self) -> tuple[Loaded, ...]:
        return tuple(one for one in self.all if one.place != "later")

    @property
    def ours(self) -> tuple[Loaded, ...]:
        return tuple(one for one in self.all if one.is_ours)

    def behind(self, one: Loaded) -> tuple[Loaded, ...]:
        scope = self.scope
        return scope[scope.index(one) + 1 :]


def preloads(target: Target) -> tuple[str, ...]:
    """What the loader was told to preload, in its order."""
    try:
        system = target.read(f"proc/{target.pid}/root/etc/ld.so.preload")
    except OSError:
        system = ""
    lines = [line.partition("#")[0] for line in system.splitlines()]
    own = []
    if target.program.rpartition("/")[2].startswith("ld-"):
        # Started as an argument of the loader, which has an option for it, too.
        arguments = os.fsdecode(target.proc("cmdline").read_bytes()).split("\0")
        if "--preload" in arguments[:-1]:
            own = _words(arguments[arguments.index("--preload") + 1])
    return (*preload_words(target), *own, *_words(" ".join(lines)))


def preload_words(target: Target) -> tuple[str, ...]:
    return tuple(_words(target.environment.get("LD_PRELOAD", "")))


def _words(text: str) -> list[str]:
    return text.replace(":", " ").split()


def objects(target: Target) -> Objects:
    files: list[tuple[str, Elf]] = []
    unread: list[str] = []
    for file in target.mapped:
        try:
            files.append((file.path, read(target.open_mapped(file), FAMILY)))
        except OSError as error:
            unread.append(f"{file.path}: {error.strerror}")
    program = _program(files, target.program)
    if program is None:
        if unread:
            raise OSError(0, "; ".join(unread))
        return Objects((), tuple(unread), is_static=True)
    found = [Loaded(*program, place="program")]
    rest = [Loaded(path, parsed, "later") for path, parsed in files if path != program[0]]

    def take(word: str, place: Place) -> None:
        one = next((one for one in rest if one.path == word), None)
        one = one or next((one for one in rest if one.is_called(word)), None)
        if one is not None:
            rest.remove(one)
            found.append(Loaded(one.path, one.elf, place))

    for word in preloads(target):
        take(word, "preload")
    for one in found:  # grows meanwhile: breadth first
        for word in one.elf.needed:
            take(word, "needed")
    return Objects((*found, *rest), tuple(unread), is_static=False)


def _program(files: Sequence[tuple[str, Elf]], path: str) -> tuple[str, Elf] | None:
    """The program, which the executable is, if that is not the loader itself (`ld.so program`)."""
    for file in files:
        if file[0] == path and file[1].has_interpreter:
            return file
    return next((file for file in files if file[1].has_interpreter and not file[1].soname), None)


def owners(scope: Iterable[Loaded], names: Collection[str] = FAMILY) -> dict[str, Loaded]:
    found: dict[str, Loaded] = {}
    for one in scope:
        for name in names:
            if name in one.elf.defines:
                found.setdefault(name, one)
    return found


def split(
    scope: Sequence[Loaded], callers: Sequence[Loaded], names: Collection[str] = FAMILY
) -> Split | None:
    """The routines among NAMES that SCOPE has from another object than free, if there are such."""
    found = owners(scope, names)
    free = found.get("free")
    if free is None:
        return None
    strangers = {name: one for name, one in found.items() if one is not free}
    calling = tuple(one for one in callers if strangers.keys() & one.elf.calls)
    if not calling:
        strangers = {n: one for n, one in strangers.items() if n not in _OBSOLETE}
    if not strangers:
        return None
    concerned = dict.fromkeys((free, *strangers.values()))
    partial = tuple(one for one in concerned if any(n not in one.elf.defines for n in names))
    return Split({"free": free, **strangers}, partial, calling)
