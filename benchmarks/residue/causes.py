"""Why something is left: the causes that were found, and which operation's remnants each explains.

Each was found by watching: who freed the block that the scan then found (a preloaded free() that
looks into what it is given, with the call stack), or who still refers to the object.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    key: str
    what: str
    helps: str
    left: tuple[tuple[str, str], ...]  # (outside or inside, mode)
    operations: tuple[str, ...]


# Of a C library, which only the preloaded library brings into the arena. A sweep wipes most of what
# it has freed.
_C_MEMORY = (("outside", "scope"), ("outside", "sweep"))
_C_HELP = "`malloc-arena run`; most of it, `scope(sweep=True)`"

CAUSES = (
    Cause(
        "SQLite's memory",
        "Values of statements, sorters, page cache: from `malloc`; `sqlite3_free` wipes nothing.",
        _C_HELP,
        _C_MEMORY,
        ("sqlite_memory", "sqlite_file", "sqlite_literal"),
    ),
    Cause(
        "OpenSSL's and Rust's memory",
        "`cryptography` copies keys and numbers into Rust vectors and OpenSSL's big numbers, "
        "libssl reads records into buffers of 16 KiB: from `malloc`. OpenSSL cleanses what it "
        "knows to be a key; these are not, or only in part.",
        _C_HELP,
        _C_MEMORY,
        (
            "fernet",
            "aes_cbc",
            "private_key",
            "signing_key",
            "tls_client",
            "tls_in_memory",
        ),
    ),
    Cause(
        "pandas' parser",
        "The C reader of `read_csv` keeps its lines in memory from `malloc`; `parser_free` "
        "wipes nothing.",
        _C_HELP,
        _C_MEMORY,
        ("pandas_csv",),
    ),
    Cause(
        "directory listing",
        "The secret is a file's name: `opendir` has a buffer of 32 KiB from `malloc`, which "
        "`closedir` frees as it is.",
        _C_HELP,
        _C_MEMORY,
        ("file_named",),
    ),
    Cause(
        "the environment",
        "`os.environ[...] = secret` is `setenv`: glibc keeps every string that was ever set, "
        "also after `unsetenv`, in memory from `malloc` that it never frees. Under "
        "`malloc-arena run` it lies in the arena, alive.",
        "pass `env=` to the one child that needs it; `malloc_arena.sources.from_env`",
        (*_C_MEMORY, ("inside", "run")),
        ("environment",),
    ),
    Cause(
        "standard streams",
        "The buffers of `sys.stdout` and `sys.stderr` are older than any arena, and keep what "
        "was written last: a log line, a traceback with the message in it.",
        "wiped at the end of an outermost scope, if they were flushed",
        tuple(("outside", mode) for mode in ("scope", "sweep", "run")),
        (
            "standard_output",
            "log_stderr",
            "exception_in_thread",
            "exception_interactive",
            "exception_summary",
        ),
    ),
    Cause(
        "float free list",
        "CPython keeps dead floats for reuse: a plain scope is given some that were made before"
        " it, outside the arena, and they hold its values until their next use.",
        "`scope(sweep=True)`",
        (("outside", "scope"),),
        ("float_values", "float_text", "complex_values"),
    ),
    Cause(
        "digits of floats",
        "CPython reads and writes the texts of floats with integers of any length, in lists of its "
        "own that no allocator sees: the digits of the last ones stay, in binary.",
        "`scope(sweep=True)`",
        (("outside", "scope"),),
        ("float_digits",),
    ),
    Cause(
        "shared memory",
        "`multiprocessing.Array` and its like lie in a mapping of a deleted file, which the module "
        "keeps for the next one: no `malloc` and no `free`.",
        "overwrite it; pass secrets through a pipe",
        tuple(("outside", mode) for mode in ("scope", "sweep", "run")),
        ("process_array",),
    ),
    Cause(
        "caches of the library",
        "Compiled patterns (`re`), formats of dates (`time.strptime`), patterns of names "
        "(`fnmatch`), split URLs (`urllib.parse`), lines (`linecache`), any "
        "`functools.lru_cache`, attributes by name (CPython's type cache): alive, in the arena, "
        "until something else takes their place.",
        "`scope(sweep=True)`",
        (("inside", "scope"),),
        (
            "regex_of_secret",
            "file_pattern",
            "url_split",
            "line_cache",
            "cached_call",
            "attribute_name",
        ),
    ),
    Cause(
        "the last error of a session",
        "An interactive session keeps it as `sys.last_value`, with all that its frames refer to.",
        "`scope(sweep=True)`",
        (("inside", "scope"),),
        ("exception_interactive",),
    ),
    Cause(
        "interned for ever",
        "CPython 3.12 makes interned strings immortal: names of attributes, `sys.intern`, the "
        "parts of a path that `pathlib` interns, and string constants of compiled code that look "
        "like names (`eval`, `exec`, an imported module). 3.13 does so only with names in compiled "
        "code, and with such constants of a `.pyc`. They stay alive in the arena, locked.",
        "do not make a secret a name, a path or a constant of code; Python 3.11",
        tuple(("inside", mode) for mode in ("scope", "sweep", "run")),
        ("str_intern", "attribute_name", "file_named"),
    ),
)


def find(operation: str, mode: str, where: str) -> Cause | None:
    """What explains it."""
    for cause in CAUSES:
        if operation in cause.operations and (where, mode) in cause.left:
            return cause
    return None


HEAD = """# What is left of a secret

`benchmarks/residue` does {count} things with a secret, each in a fresh process, drops every
reference, collects, and has the finished process searched from outside, with its child processes
if any are left: memory, registers, every encoding that `malloc-arena audit` knows, and fragments
from 8 bytes. The operation must give the secret back, so that it was really used. This page is made
by

    python benchmarks/residue/run.py --python ... --json result.json --doc docs/residue.md

"""
