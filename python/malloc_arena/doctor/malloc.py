"""The check of who owns malloc: a split family is found before a block meets a foreign free."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

from .finding import Finding, Fix, Result
from .ownership import (
    FAMILY,
    LIBRARY,
    NEXT,
    OURS,
    Loaded,
    Objects,
    Split,
    objects,
    owners,
    preload_words,
    preloads,
    split,
)
from .target import Target

_SANITIZERS = ("libasan.", "libtsan.", "liblsan.", "libhwasan.", "libclang_rt.")

_FITS = (
    "A block must be given back to the implementation that it came from. The loader takes each "
    "routine from the first object that defines it."
)


def look(target: Target) -> Finding:
    loaded = objects(target)
    finding = _judge(target, loaded)
    result: Result = finding.result
    found = finding.found
    if result == "ok" and loaded.unread:
        result = "unknown"
        found = f"could not read {'; '.join(loaded.unread)}"
    return dataclasses.replace(finding, result=result, found=found, details=_details(loaded))


def _judge(target: Target, loaded: Objects) -> Finding:
    if loaded.is_static:
        return Finding(
            "fail",
            f"{target.program} is a static program",
            "The loader has no part in it: no library can be preloaded, and its malloc is its own.",
            (Fix("the program", ("Link it dynamically, and with malloc-arena config --libs",)),),
        )
    ours = loaded.ours
    if len(ours) > 1:
        return Finding(
            "fail",
            f"{OURS} is loaded {len(ours)} times: {_names(ours)}",
            "Each copy has a state of its own and does not know the other's blocks.",
            (
                Fix(
                    "where the program opens it: by its name, which finds the one that is loaded",
                    (f'dlopen ("{OURS}", RTLD_NOW);', "not by a path"),
                ),
            ),
        )
    first = split(loaded.scope, loaded.all)
    if first is not None:
        return _split(target, first, "")
    owner = owners(loaded.scope).get("malloc")
    if owner is None:
        return Finding("unknown", "no loaded object defines malloc", _FITS)
    front = next((one for one in ours if one in loaded.scope), None)
    if front is None:
        return _library_mode(target, loaded, owner)
    if owner is not front:
        return Finding(
            "fail",
            f"the malloc of {owner.path} stands in front of {front.path}",
            "What C code allocates never gets into an arena, and malloc_arena() aborts with "
            '"foreign malloc". Behind the arena library any whole malloc is welcome.',
            _to_the_front(target, loaded, owner),
        )
    behind = split(loaded.behind(front), (), NEXT)
    if behind is not None:
        # It calls them all, by dlsym.
        behind = dataclasses.replace(behind, callers=(front,))
        return _split(target, behind, f" behind {OURS}")
    own = _symbolic(loaded)
    if own is not None:
        return own
    following = owners(loaded.behind(front)).get("malloc")
    return Finding(
        "ok",
        f"{OURS} owns malloc and free; ordinary memory comes from "
        f"{following.path if following else 'nowhere'}",
        "Python and C code both allocate in the active arena, and free goes by the address.",
    )


def _library_mode(target: Target, loaded: Objects, owner: Loaded) -> Finding:
    """The arena library is not in the order of search: Python's hooks reach it, C code does not."""
    dropped = [word for word in preloads(target) if word.rpartition("/")[2] == OURS]
    if dropped:
        return Finding(
            "warn",
            f"{dropped[0]} is preloaded by name, but not loaded",
            "The loader ignored it: the file is not there, or the program is started with other "
            "rights than its user's (see at-secure).",
            (Fix("this shell", ('export LD_PRELOAD="$(malloc-arena config --preload)"',)),),
        )
    if owner.elf.soname == "libc.so.6":
        own = _symbolic(loaded)
        if own is not None:
            return own
    if owner.elf.soname == "libc.so.6" or owner.place == "needed":
        return Finding(
            "ok",
            f"{owner.path} owns malloc and free, whole",
            "Python's objects get into arenas by hooks. The memory of C libraries stays outside, "
            "unless the program runs under malloc-arena run.",
        )
    return Finding(
        "warn",
        f"the malloc of {owner.path} is the first that is found",
        "Python's objects get into arenas by hooks. But under malloc-arena run, what is preloaded "
        "already stays in front of the arena library, which then sees none of C's memory.",
        _to_the_front(target, loaded, owner),
    )


def _split(target: Target, found: Split, where: str) -> Finding:
    free = found.owners["free"]
    strangers = {name: one for name, one in found.owners.items() if name != "free"}
    others = tuple(dict.fromkeys(strangers.values()))
    parts = [f"{_and([n for n, o in strangers.items() if o is one])}: {one.path}" for one in others]
    meaning = (
        f"{_FITS} Here blocks of one implementation get to the free of another, which corrupts "
        "memory, unless that one passes on what is not its own."
    )
    if found.callers:
        names = sorted({one.name for one in found.callers})
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        meaning += f" Called by {', '.join(names[:3])}{more}."
    else:
        meaning += " Nothing that is loaded now calls them."
    fixes: list[Fix] = []
    for one in found.partial:
        missing = [name for name in FAMILY if name not in one.elf.defines]
        if one.place == "preload":
            fixes += _without(target, one)
        fixes.append(
            Fix(
                f"or in {one.name}" if one.place == "preload" else f"in {one.name}",
                (
                    f"define the whole family: {', '.join(missing)}",
                    "are missing; or define none of it, or hide it (-fvisibility=hidden)",
                ),
            )
        )
    return Finding(
        "fail" if found.callers else "warn",
        f"malloc is split{where}: free: {free.path}; {'; '.join(parts)}",
        meaning,
        tuple(fixes),
    )


def _symbolic(loaded: Objects) -> Finding | None:
    """An object that uses its own part of the family for itself, and the process's for the rest."""
    for one in loaded.all:
        mine = [name for name in FAMILY if name in one.elf.defines]
        if one.elf.is_symbolic and mine and not one.is_ours and not one.is_whole:
            return Finding(
                "fail",
                f"{one.path} is linked -Bsymbolic and defines only {_and(mine)}",
                f"{_FITS} This object uses its own for these, and the process's for the rest.",
                (Fix(f"in {one.name}", ("link without -Bsymbolic, or hide these routines",)),),
            )
    return None


def _to_the_front(target: Target, loaded: Objects, owner: Loaded) -> tuple[Fix, ...]:
    if owner.name.startswith(_SANITIZERS):
        # They insist on being the first, and check that.
        return (Fix("this program", ("build and run it without the sanitizer",)),)
    if owner.place == "program":
        return (
            Fix(
                "the program",
                (
                    "Link it without a malloc of its own: nothing can be preloaded in front of it",
                    "(a shared libjemalloc.so or the like behind the arena library is fine)",
                ),
            ),
        )
    path = loaded.ours[0].path if loaded.ours else str(LIBRARY)
    if owner.place == "needed":
        return (Fix("this shell", (f"export LD_PRELOAD={shlex.quote(path)}",)),)
    words = [word for word in preload_words(target) if word.rpartition("/")[2] != OURS]
    return (Fix("this shell", (f"export LD_PRELOAD={shlex.quote(' '.join([path, *words]))}",)),)


def _without(target: Target, one: Loaded) -> tuple[Fix, ...]:
    words = preload_words(target)
    left = [word for word in words if not one.is_called(word)]
    if len(left) == len(words):
        return (Fix("/etc/ld.so.preload", (f"remove the line {one.path}",)),)
    line = f"export LD_PRELOAD={shlex.quote(' '.join(left))}" if left else "unset LD_PRELOAD"
    return (Fix("this shell", (line,)),)


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _names(loaded: tuple[Loaded, ...]) -> str:
    return " and ".join(one.path for one in loaded)


def _details(loaded: Objects) -> dict[str, Any]:
    found = owners(loaded.scope)
    return {
        "owners": {name: one.path for name, one in found.items()},
        "objects": [
            {
                "path": one.path,
                "place": one.place,
                "defines": sorted(one.elf.defines),
                "binds": {
                    name: (one if one.elf.is_symbolic and name in one.elf.defines else to).path
                    for name in sorted(one.elf.calls | one.elf.defines.keys())
                    if (to := found.get(name)) is not None
                },
            }
            for one in loaded.all
        ],
        "unread": list(loaded.unread),
    }
