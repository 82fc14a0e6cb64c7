"""What a user of the C side gets: from the wheel, and from `meson install` without Python."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VENV_BIN = Path(sys.executable).parent

# The RFC's listing, as it was posted, in a function.
LISTING = """\
#include <malloc_arena.h>
#include <stdlib.h>

void
listing (size_t size)
{
  void *password_storage;
  malloc_arena *secure_arena = NULL;

  secure_arena = malloc_arena_get (HEAP_SECURE);
  if (secure_arena == NULL)
    abort();
  password_storage = malloc_arena (secure_arena, malloc, size);
  /* Completely different TU, or scope... */
  free (password_storage);
}
"""

# The two functions are C for the C compilers and C++ for the C++ compilers, as the main program is.
OTHER = """\
#include <stdlib.h>

void
other_unit (void *password_storage)
{
  free (password_storage);
}
"""

# A neighbour keeps the page mapped, so that the bytes of the freed block can be looked at; the
# address goes through a volatile integer, so that the compiler cannot reason about a freed pointer.
MAIN = """\
#include <malloc_arena.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void listing (size_t);
void other_unit (void *);

int
main (int argc, char **argv)
{
  unsigned kind = HEAP_SECURE;
  if (argc > 1 && strcmp (argv[1], "isolated") == 0)
    kind |= HEAP_ISOLATED;
  listing (100);

  malloc_arena *arena = malloc_arena_get (kind);
  if (arena == NULL)
    return 2;
  void *neighbour = malloc_arena (arena, malloc, 100);
  void *secret = malloc_arena (arena, malloc, 100);
  if (secret == NULL || neighbour == NULL)
    return 3;
  if (malloc_arena_of (secret) != arena)
    return 4;
  if (malloc_arena_of (&kind) != NULL)
    return 5;
  memset (secret, 'S', 100);
  volatile uintptr_t address = (uintptr_t)secret;
  other_unit (secret);
  puts ("freed");
  fflush (stdout);
  for (size_t i = 0; i < 100; i++)
    if (((volatile char *)address)[i] == 'S')
      return 6;
  free (neighbour);
  return 0;
}
"""

LANGUAGES = [
    ("gcc", "c11"),
    ("gcc", "c17"),
    ("gcc", "c2x"),
    ("g++", "c++17"),
    ("clang", "c11"),
    ("clang", "c17"),
    ("clang", "c2x"),
    ("clang++", "c++17"),
]


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    fails: bool = False,
) -> str:
    """What a command that must succeed, or must fail, prints."""
    done = subprocess.run(
        command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert (done.returncode != 0) == fails, f"{shlex.join(map(str, command))}\n{done.stdout}"
    return done.stdout


def need(tool: str) -> str:
    path = shutil.which(tool)
    if path is None:
        pytest.skip(f"{tool} is not installed")
    return path


def meson(*arguments: str | Path, fails: bool = False) -> str:
    path = f"{VENV_BIN}:{os.environ['PATH']}"
    if shutil.which("meson", path=path) is None or shutil.which("ninja", path=path) is None:
        pytest.skip("meson and ninja are not installed")
    return run(["meson", *arguments], cwd=ROOT, env={**os.environ, "PATH": path}, fails=fails)


@pytest.fixture(scope="session")
def package() -> Path:
    spec = importlib.util.find_spec("malloc_arena")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


@pytest.fixture(scope="session")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C library alone, built and installed; then moved, as a relocatable prefix may be."""
    work = tmp_path_factory.mktemp("clone")
    meson("setup", work / "build", f"--prefix={work}/first", "-Dpython=false", "-Dwerror=true")
    meson("compile", "-C", work / "build")
    meson("install", "-C", work / "build", "--quiet")
    return (work / "first").rename(work / "moved")


def pkg_config(directory: Path) -> list[str]:
    env = {**os.environ, "PKG_CONFIG_PATH": str(directory)}
    return shlex.split(run([need("pkg-config"), "--cflags", "--libs", "malloc_arena"], env=env))


def flags_of(origin: str, package: Path, prefix: Path) -> list[str]:
    if origin == "malloc-arena config":
        command = [sys.executable, "-m", "malloc_arena", "config", "--cflags", "--libs"]
        return shlex.split(run(command))
    if origin == "wheel .pc":
        return pkg_config(package / "lib" / "pkgconfig")
    return pkg_config(prefix / "lib" / "pkgconfig")


def build_program(compiler: str, standard: str, flags: Sequence[str], where: Path) -> Path:
    suffix = ".cpp" if standard.startswith("c++") else ".c"
    names = []
    for name, text in {"listing": LISTING, "other": OTHER, "main": MAIN}.items():
        names.append(where / (name + suffix))
        names[-1].write_text(text)
    strict = [f"-std={standard}", "-O2", "-Wall", "-Wextra", "-Wshadow", "-Werror"]
    run([need(compiler), *strict, *names, "-o", where / "program", *flags])
    return where / "program"


@pytest.mark.parametrize("origin", ["malloc-arena config", "wheel .pc", "prefix .pc"])
@pytest.mark.parametrize(("compiler", "standard"), LANGUAGES)
def test_the_listing_compiles_and_runs(
    compiler: str, standard: str, origin: str, package: Path, prefix: Path, tmp_path: Path
) -> None:
    need(compiler)
    flags = flags_of(origin, package, prefix)
    program = build_program(compiler, standard, flags, tmp_path)
    env = {k: v for k, v in os.environ.items() if k not in {"LD_LIBRARY_PATH", "LD_PRELOAD"}}
    assert run([program], env=env) == "freed\n"
    isolated = subprocess.run([program, "isolated"], env=env, stdout=subprocess.PIPE, text=True)
    assert isolated.stdout == "freed\n"
    assert isolated.returncode == -11, "a touch after free of an isolated block must fault"


def test_the_prefix_has_the_library_the_header_the_pc_and_the_pages_alone(prefix: Path) -> None:
    header = (ROOT / "include" / "malloc_arena.h").read_text()
    functions = re.findall(r"\b(malloc_arena_(?!call)\w+) \([^;]*?MALLOC_ARENA_NOTHROW", header)
    pages = sorted(f"{name}.3" for name in ["malloc_arena", *functions])
    files = sorted(str(p.relative_to(prefix)) for p in prefix.rglob("*") if not p.is_dir())
    assert files == [
        "include/malloc_arena.h",
        "lib/libmalloc_arena.so",
        "lib/pkgconfig/malloc_arena.pc",
        *(f"share/man/man3/{page}" for page in pages),
    ]


@pytest.mark.parametrize("includedir", ["include/arenas", "/elsewhere/include"])
def test_the_pc_names_the_directory_that_the_header_goes_to(
    includedir: str, tmp_path: Path
) -> None:
    build = tmp_path / "build"
    meson("setup", build, "--prefix=/opt/arenas", f"--includedir={includedir}", "-Dpython=false")
    env = {**os.environ, "PKG_CONFIG_PATH": str(build / "src" / "core")}
    query = [need("pkg-config"), "--define-variable=prefix=/opt/arenas", "malloc_arena"]
    named = run([*query, "--variable=includedir"], env=env).strip()
    assert named == str(Path("/opt/arenas") / includedir)


def test_the_package_has_every_source_file(package: Path) -> None:
    def files(top: Path) -> set[str]:
        return {
            str(p.relative_to(top))
            for p in top.rglob("*")
            if p.is_file() and "__pycache__" not in p.parts
        }

    sources = files(ROOT / "python" / "malloc_arena")
    built = {
        "include/malloc_arena.h",
        "lib/libmalloc_arena.so",
        "lib/libmalloc_arena_trace.so",
        "lib/pkgconfig/malloc_arena.pc",
    }
    installed = {name for name in files(package) if not name.startswith("_core.cpython-")}
    assert installed == sources | built
    assert not [p for p in package.rglob("*") if p.is_symlink()]


def test_the_library_exports_what_the_list_says_and_no_more(package: Path) -> None:
    listed = (ROOT / "tests" / "abi" / "symbols.txt").read_text().splitlines()
    expected = [line for line in listed if line and not line.startswith("#")]
    table = run([need("nm"), "-D", "--defined-only", package / "lib" / "libmalloc_arena.so"])
    exported = sorted({line.split()[-1].split("@")[0] for line in table.splitlines()})
    assert exported == expected


def test_the_library_is_linked_as_an_allocator_must_be(package: Path) -> None:
    dynamic = run([need("readelf"), "-dW", package / "lib" / "libmalloc_arena.so"])
    assert "Library soname: [libmalloc_arena.so]" in dynamic
    assert re.search(r"FLAGS_1.*\bNOW\b.*\bNODELETE\b", dynamic)
    assert "TEXTREL" not in dynamic
    assert "RUNPATH" not in dynamic
    assert "RPATH" not in dynamic
    segments = run([need("readelf"), "-lW", package / "lib" / "libmalloc_arena.so"])
    assert "GNU_RELRO" in segments
    assert re.search(r"GNU_STACK\s.*\sRW\s", segments)
    thread_local = re.search(r"\bTLS\s+0x\w+\s+0x\w+\s+0x\w+\s+0x\w+\s+(0x\w+)", segments)
    assert thread_local
    # A late dlopen gets its initial-exec storage from glibc's small surplus.
    assert int(thread_local[1], 16) <= 64
    relocations = run([need("readelf"), "-rW", package / "lib" / "libmalloc_arena.so"])
    assert "DTPMOD" not in relocations, "a thread-local is not initial-exec"
    assert "TLSDESC" not in relocations


def test_no_program_gets_a_copy_of_the_region(package: Path, tmp_path: Path) -> None:
    """The library would never look at it again."""
    library = package / "lib" / "libmalloc_arena.so"
    source = tmp_path / "reads.c"
    source.write_text(
        "extern struct { unsigned long base, size; } ma_region;\n"
        "int main (void) { return ma_region.size != 0; }\n"
    )
    build = [need("cc"), "-fPIC", source, library, "-o", tmp_path / "reads"]
    run(build)
    build[1] = "-fPIE"
    assert "copy reloc" in subprocess.run(build, capture_output=True, text=True).stderr


def test_the_extension_finds_its_own_library_and_stays(package: Path) -> None:
    (extension,) = package.glob("_core.cpython-*.so")
    dynamic = run([need("readelf"), "-dW", extension])
    assert "Shared library: [libmalloc_arena.so]" in dynamic
    assert "Library runpath: [$ORIGIN/lib]" in dynamic
    assert re.search(r"FLAGS_1.*\bNODELETE\b", dynamic)
    exported = run([need("nm"), "-D", "--defined-only", extension]).split()[2::3]
    assert exported == ["PyInit__core"]


def refusal(tmp_path: Path, system: str, family: str) -> str:
    """What `meson setup` says, failing, for another machine."""
    cross = tmp_path / "cross.ini"
    cross.write_text(
        f"[binaries]\nc = 'cc'\n[host_machine]\nsystem = '{system}'\n"
        f"cpu_family = '{family}'\ncpu = '{family}'\nendian = 'little'\n"
    )
    return meson("setup", tmp_path / "build", f"--cross-file={cross}", "-Dpython=false", fails=True)


def test_another_system_is_refused_with_a_reason(tmp_path: Path) -> None:
    said = refusal(tmp_path, "freebsd", "x86_64")
    assert "ERROR: Problem encountered: malloc-arena runs on Linux only (this is freebsd)" in said


def test_another_processor_is_refused_with_a_reason(tmp_path: Path) -> None:
    said = refusal(tmp_path, "linux", "riscv64")
    assert (
        "ERROR: Problem encountered: malloc-arena runs on x86_64 and aarch64 (this is riscv64)"
        in said
    )


@pytest.mark.parametrize("lto", ["false", "true"])
def test_the_library_builds_for_aarch64(lto: str, tmp_path: Path) -> None:
    need("aarch64-linux-gnu-gcc")
    need("qemu-aarch64-static")
    cross = ROOT / "cross" / "aarch64-linux-gnu.ini"
    options = ["-Dpython=false", "-Dwerror=true", f"-Db_lto={lto}"]
    meson("setup", tmp_path, f"--cross-file={cross}", *options)
    meson("compile", "-C", tmp_path)
    header = run([need("readelf"), "-h", tmp_path / "src" / "core" / "libmalloc_arena.so"])
    assert re.search(r"Machine:\s+AArch64", header)


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_the_library_builds_with_link_time_optimization(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need(compiler)
    monkeypatch.setenv("CC", compiler)
    meson("setup", tmp_path, "-Dpython=false", "-Dwerror=true", "-Db_lto=true")
    meson("compile", "-C", tmp_path)


@pytest.mark.parametrize("level", ["1", "g"])
def test_a_build_that_is_optimized_little_knows_the_dynamic_linker(
    level: str, tmp_path: Path
) -> None:
    """malloc may have a frame there, below which is what it returns to."""
    meson("setup", tmp_path, "-Dpython=false", "-Dtests=true", f"-Doptimization={level}")
    meson("test", "-C", tmp_path, "loader")


@pytest.mark.parametrize("sanitizer", ["address", "thread", "undefined"])
def test_the_library_builds_with_sanitizers(sanitizer: str, tmp_path: Path) -> None:
    meson("setup", tmp_path, "-Dpython=false", "-Dwerror=true", f"-Db_sanitize={sanitizer}")
    meson("compile", "-C", tmp_path)
