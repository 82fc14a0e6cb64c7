"""Builds what a release consists of into dist/, from the last commit, and checks it.

    release.py wheel    the sdist, and a manylinux wheel for each Python found
    release.py check    the same for all Pythons, built twice and compared; each wheel, and the
                        sdist, installed into an empty environment that passes tests/smoke.py;
                        an SBOM

Run by `make wheel` and `make release-check`, which put the tools of the group "release" in PATH.
Release wheels for all platforms are made by .github/workflows/wheels.yml.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
VERSIONS = ("3.11", "3.12", "3.13")
# The oldest glibc that a wheel may promise. __libc_single_threaded is of 2.32, and since 2.34 what
# was in libpthread and libdl is in libc itself, which is there before any constructor runs: older
# ones were never tried.
OLDEST = (2, 34)


def run(*command: str | Path, **environment: str) -> str:
    """Standard output; what went wrong is said, and ends it."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0:
        sys.exit(f"release: {' '.join(map(str, command))}\n{done.stdout}")
    return done.stdout


def pythons() -> Iterator[tuple[str, str]]:
    """Version and interpreter, from PATH or pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    for version in VERSIONS:
        names = [f"python{version}", *map(str, sorted(pyenv.glob(f"{version}.*/bin/python3")))]
        for name in names:
            try:
                base = subprocess.run(
                    [name, "-c", "import sys; print(sys._base_executable)"],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    check=True,
                )
            except (OSError, subprocess.CalledProcessError):
                continue
            yield version, base.stdout.strip()
            break


def pins(where: Path) -> Path:
    """Constraints of isolated builds: another release of a build tool is another wheel."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    lines = [entry for entry in groups["dev"] if isinstance(entry, str)]
    path = where / "constraints.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def build_sdist(where: Path) -> Path:
    run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", where, ".")
    (sdist,) = where.glob("*.tar.gz")
    return sdist


def build_wheel(python: str, sdist: Path, where: Path) -> Path:
    """From the sdist, in an isolated environment, as an installer does it; and repaired."""
    raw = where / "raw"
    run(
        *(sys.executable, "-m", "pip", "--python", environment(python, where / "builder")),
        *("wheel", "--quiet", "--no-deps", "--build-constraint", pins(where)),
        *("--wheel-dir", raw, sdist),
    )
    (wheel,) = raw.glob("*.whl")
    run("auditwheel", "repair", "--wheel-dir", where, wheel)
    (repaired,) = where.glob("*.whl")
    only_renamed(wheel, repaired)
    return repaired


def only_renamed(wheel: Path, repaired: Path) -> None:
    """auditwheel is to give the wheel its tag, and nothing else. The library that the extension
    needs is in the wheel: under another name, or in another place, it could not be preloaded, and
    its copy would be a second allocator."""
    tag = re.search(r"manylinux_(\d+)_(\d+)_", repaired.name)
    if tag is None:
        sys.exit(f"release: {repaired.name} has no manylinux tag")
    if (int(tag[1]), int(tag[2])) < OLDEST:
        sys.exit(f"release: {repaired.name} promises an older glibc than {OLDEST} is tested")
    before, after = (contents(path) for path in (wheel, repaired))
    if before != after:
        sys.exit(
            f"release: auditwheel changed files of {wheel.name}: {before.items() ^ after.items()}"
        )


def contents(wheel: Path) -> dict[str, str]:
    with zipfile.ZipFile(wheel) as archive:
        # Without directories, which auditwheel adds, and the metadata, where it names the tag.
        names = [n for n in archive.namelist() if not n.endswith("/") and ".dist-info/" not in n]
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in names}


def environment(python: str, where: Path, *requirements: str | Path) -> Path:
    """A new environment without pip, and its interpreter."""
    run(python, "-m", "venv", "--without-pip", where)
    interpreter = where / "bin" / "python"
    if requirements:
        run(sys.executable, "-m", "pip", "--python", interpreter, "install", "-q", *requirements)
    return interpreter


def smoke(interpreter: Path) -> None:
    # PATH has the environment alone: nothing is compiled, and nothing else is called.
    run(interpreter, ROOT / "tests" / "smoke.py", PATH=str(interpreter.parent))


def bill_of_materials(work: Path, installed: Path) -> Path:
    """What an installation consists of: the wheel links and holds nothing of others, so that this
    is the package and what it requires."""
    version = run(installed / "bin" / "malloc-arena", "--version").split()[1]
    project = work / "pyproject.toml"
    text = (ROOT / "pyproject.toml").read_text()
    # The tool does not ask the build backend for what is dynamic.
    project.write_text(re.sub(r"^dynamic = .*", f'version = "{version}"', text, flags=re.MULTILINE))
    bom = DIST / f"malloc_arena-{version}.cdx.json"
    run(
        *("cyclonedx-py", "environment", "--output-reproducible", "--validate"),
        *("--pyproject", project, "--mc-type", "library"),
        *("--output-file", bom, installed),
    )
    return bom


def main(check: bool) -> None:
    epoch = run("git", "log", "-1", "--format=%ct").strip()
    os.environ |= {"SOURCE_DATE_EPOCH": epoch, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    if run("git", "status", "--porcelain", "--untracked-files=no"):
        print("release: the checkout has changes that are not committed, and not in what is built")
    found = dict(pythons())
    missing = [version for version in VERSIONS if version not in found]
    if check and missing:
        sys.exit(f"release: Python {', '.join(missing)} not found, in PATH or by pyenv")
    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir()

    with tempfile.TemporaryDirectory(prefix="release-") as directory:
        work = Path(directory)

        def twice(first: Path, build: str, *arguments: str | Path) -> None:
            again = work / "again" / first.name
            second = globals()[build](*arguments, again)
            if digest(first) != digest(second):
                sys.exit(f"release: two builds of {first.name} differ: {first} {second}")

        sdist = DIST / build_sdist(DIST).name
        print(f"release: {sdist.name}")
        if check:
            (work / "again" / sdist.name).mkdir(parents=True)
            twice(sdist, "build_sdist")
        for version, python in found.items():
            wheel = build_wheel(python, sdist, work / version)
            wheel = Path(shutil.move(wheel, DIST))
            if not check:
                print(f"release: {wheel.name}")
                continue
            (work / "again" / wheel.name).mkdir()
            twice(wheel, "build_wheel", python, sdist)
            smoke(environment(python, work / f"wheel-{version}", wheel))
            smoke(environment(python, work / f"sdist-{version}", sdist))
            print(f"release: {wheel.name}: the same twice; wheel and sdist install and work")
        if check:
            bom = bill_of_materials(work, work / f"wheel-{VERSIONS[-1]}")
            print(f"release: {bom.name}")

    files = sorted(DIST.iterdir())
    sums = "".join(f"{digest(path)}  {path.name}\n" for path in files)
    (DIST / "SHA256SUMS").write_text(sums)


if __name__ == "__main__":
    if sys.argv[1:] not in (["wheel"], ["check"]):
        sys.exit("usage: release.py wheel|check")
    main(check=sys.argv[1] == "check")
