"""The command line from outside: exit codes, streams, schemas."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from malloc_arena import cli
from malloc_arena.audit import CannotLook, Hit
from malloc_arena.cli.config import library
from malloc_arena.cli.run import preload
from malloc_arena.demo import measure
from malloc_arena.render import demo as render

RFC = r"""
#include <malloc_arena.h>
int main (void)
{
  char *password_storage;
  size_t size = 100;
  malloc_arena *secure_arena = NULL;
  secure_arena = malloc_arena_get (HEAP_SECURE);
  if (secure_arena == NULL)
    abort();
  password_storage = malloc_arena (secure_arena, malloc, size);
  int owned = malloc_arena_of (password_storage) == secure_arena;
  free (password_storage);
  return owned ? 7 : 1;
}
"""


def malloc_arena(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "malloc_arena", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=120,
    )


def test_usage_errors_exit_2() -> None:
    for arguments in ((), ("nonsense",), ("run",), ("run", "--"), ("config",), ("demo", "--no")):
        done = malloc_arena(*arguments)
        assert (done.returncode, done.stdout) == (2, ""), arguments
        assert "usage: malloc-arena" in done.stderr
    assert malloc_arena("demo", "budget", "--list").returncode == 2
    done = malloc_arena("demo", "--jobs", "nonsense")
    assert done.returncode == 2
    assert "'nonsense'" in done.stderr
    assert "sqlite" in done.stderr


def test_each_verb_has_help() -> None:
    for verb in cli.VERBS:
        done = malloc_arena(verb.name, "--help", COLUMNS="80")
        assert done.returncode == 0
        assert max(map(len, done.stdout.splitlines())) <= 80
        assert verb.name in malloc_arena("--help").stdout


def test_nothing_heavy_is_imported_before_a_verb_runs() -> None:
    program = "import sys, malloc_arena.cli; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert not loaded & {"rich", "inspect", "json", "subprocess", "typing", "malloc_arena.audit"}


def test_run_gives_the_programs_own_exit_code() -> None:
    assert malloc_arena("run", "--", "sh", "-c", "exit 37").returncode == 37
    assert malloc_arena("run", "sh", "-c", "kill -TERM $$").returncode == -15


def test_run_says_when_there_is_no_such_program(tmp_path: Path) -> None:
    done = malloc_arena("run", "--", "no-such-program-here")
    assert (done.returncode, done.stderr) == (
        127,
        "malloc-arena run: no-such-program-here: not found\n",
    )
    done = malloc_arena("run", "--", "")
    assert (done.returncode, done.stderr) == (127, "malloc-arena run: : not found\n")
    plain = tmp_path / "plain"
    plain.write_text("")
    done = malloc_arena("run", str(plain))
    assert done.returncode == 126
    assert str(plain) in done.stderr


def test_run_says_where_nothing_can_be_preloaded(tmp_path: Path) -> None:
    program = tmp_path / "program"
    build = ["cc", "-x", "c", "-", "-static", "-o", str(program)]
    subprocess.run(build, input="int main (void) { return 5; }", check=True, text=True)
    done = malloc_arena("run", "--", str(program))
    assert done.returncode == 5
    assert done.stderr == (
        f"malloc-arena run: {program}: it is a static program, so that nothing of it will be in "
        "an arena\n"
    )


def test_run_says_where_the_loader_ignores_the_library(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    program = tmp_path / "program"
    shutil.copy("/bin/true", program)
    os.chown(program, 65534, 65534)
    program.chmod(0o755)
    assert malloc_arena("run", str(program)).stderr == ""
    program.chmod(0o4755)
    done = malloc_arena("run", str(program))
    assert done.returncode == 0
    assert "set-uid), and the loader ignores LD_PRELOAD, so that nothing of it" in done.stderr


def test_run_says_where_capabilities_keep_the_library_out() -> None:
    """Of who is not root: root has them anyhow, and the loader does not mind."""
    if os.geteuid() != 0:
        pytest.skip("only root can give capabilities to a file")
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        program = Path(directory, "program")
        shutil.copy("/bin/true", program)
        # Version 2, effective: CAP_NET_RAW.
        capabilities = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
        try:
            os.setxattr(program, "security.capability", capabilities)
        except OSError as error:
            pytest.skip(f"the file system keeps no capabilities: {error}")
        look = """
import os, sys
from malloc_arena.cli.run import _unreached
print(_unreached(sys.argv[1]))
os.setuid(65534)
print(_unreached(sys.argv[1]))
"""
        said = "its file gives it capabilities, and the loader ignores LD_PRELOAD"
        assert output(look, program) == f"\n{said}\n"


def output(script: str, argument: Path) -> str:
    command = [sys.executable, "-c", script, str(argument)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_run_preloads_the_packages_library_and_keeps_what_was_there() -> None:
    done = malloc_arena(
        "run", "--", "sh", "-c", "echo $LD_PRELOAD; cat /proc/$$/maps", LD_PRELOAD="libm.so.6"
    )
    first, *maps = done.stdout.splitlines()
    assert first == f"libm.so.6 {library()}"
    assert any(line.endswith(str(library())) for line in maps)


def test_run_starts_a_script_with_this_python(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import sys; print(sys.executable, *sys.argv[1:]); sys.exit(5)")
    done = malloc_arena("run", str(script), "--json", "-x")
    assert done.returncode == 5
    assert done.stdout == f"{sys.executable} --json -x\n"


def test_preload_names_the_library_once() -> None:
    assert preload("", "/a/lib.so") == "/a/lib.so"
    assert preload("/b.so:/c.so", "/a/lib.so") == "/b.so /c.so /a/lib.so"
    assert preload("/b.so /a/lib.so", "/a/lib.so") == "/b.so /a/lib.so"


def test_config_json_names_what_exists() -> None:
    data = json.loads(malloc_arena("config", "--json").stdout)
    assert data["schema"] == "malloc-arena/config/1"
    assert Path(data["preload"]).is_file()
    assert (Path(data["includedir"]) / "malloc_arena.h").is_file()
    assert (Path(data["pkgconfigdir"]) / "malloc_arena.pc").is_file()
    assert Path(data["libdir"]) == Path(data["preload"]).parent


def _build_and_run(compiler: str, directory: Path, cflags: str, libs: str) -> int:
    source = directory / "rfc.c"
    source.write_text(RFC)
    program = directory / "rfc"
    subprocess.run(
        [compiler, *cflags.split(), str(source), "-o", str(program), *libs.split()], check=True
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LD_")}
    return subprocess.run([str(program)], env=environment, timeout=30).returncode


def test_config_flags_build_a_program_that_runs(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: apt-get install gcc")
    cflags = malloc_arena("config", "--cflags").stdout
    libs = malloc_arena("config", "--libs").stdout
    assert _build_and_run(compiler, tmp_path, cflags, libs) == 7


def test_pkgconfigdir_builds_a_program_that_runs(tmp_path: Path) -> None:
    compiler, pkg_config = shutil.which("cc"), shutil.which("pkg-config")
    if compiler is None or pkg_config is None:
        pytest.skip("no C compiler or no pkg-config: apt-get install gcc pkg-config")
    directory = malloc_arena("config", "--pkgconfigdir").stdout.strip()

    def flags(kind: str) -> str:
        return subprocess.run(
            [pkg_config, kind, "malloc_arena"],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"PKG_CONFIG_PATH": directory},
        ).stdout

    assert _build_and_run(compiler, tmp_path, flags("--cflags"), flags("--libs")) == 7


def _residue(outside: int, inside: int = 0) -> measure.Residue:
    out = Hit(0x7000, 32, "raw", True, "heap", "[heap]")
    held = Hit(0x9000, 32, "raw", True, "arena", "[anonymous]")
    return measure.Residue((out,) * outside, (held,) * inside, 1 << 20, 0)


def _demo(vault: int, run: int, job: str = "json", inside: int = 0) -> measure.Demo:
    task = next(task for task in measure.TASKS if task.name == job)
    residue = {"plain": _residue(3), "vault": _residue(vault), "run": _residue(run, inside)}
    receipt = measure.Receipt({"locked": True}, "secure: locked")
    return measure.Demo((measure.Result(task, residue),), (), receipt, 1.0)


@pytest.mark.parametrize(
    ("demo", "code"),
    [
        (_demo(vault=0, run=0), 0),
        (_demo(vault=0, run=0, inside=1), 0),
        (_demo(vault=1, run=0), 1),
        (_demo(vault=0, run=1), 1),
        (_demo(vault=1, run=0, job="sqlite"), 0),
        (_demo(vault=1, run=1, job="sqlite"), 1),
    ],
)
def test_demo_exits_1_when_the_arena_leaves_more_than_it_should(
    demo: measure.Demo,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(measure, "measure", lambda *_: demo)
    assert cli.main(["demo"]) == code
    text = capsys.readouterr()
    assert text.err == ""
    assert "\x1b" not in text.out
    assert max(map(len, text.out.splitlines())) <= 80
    assert ("should not be there" in text.out) == bool(code)
    assert cli.main(["demo", "--json"]) == code
    data = json.loads(capsys.readouterr().out)
    assert data["schema"] == "malloc-arena/demo/1"
    assert data["ok"] == (code == 0)


def test_demo_exits_3_when_it_cannot_look(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object) -> measure.Demo:
        raise CannotLook("process 1 cannot be read", "run as root")

    monkeypatch.setattr(measure, "measure", refused)
    assert cli.main(["demo"]) == 3
    assert "process 1 cannot be read: run as root" in capsys.readouterr().err


def test_demo_names_a_missing_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert cli.main(["demo", "--jobs", "token"]) == 3
    assert "requests: python3 -m pip install 'malloc-arena[demo]'" in capsys.readouterr().out


def test_json_has_no_secret_and_every_hit() -> None:
    data = json.loads(render.as_json(_demo(vault=0, run=0, inside=2)))
    modes = data["jobs"][0]["modes"]
    assert modes["plain"]["outside"] == len(modes["plain"]["hits"]) == 3
    assert modes["run"]["inside"] == 2
    assert set(modes["plain"]["hits"][0]) == {
        "address",
        "length",
        "encoding",
        "whole",
        "owner",
        "mapping",
    }


@pytest.fixture
def secret_and_dump(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A secret, a file that has it, and one that does not."""
    secret, found, clean = (tmp_path / name for name in ("secret", "found", "clean"))
    secret.write_text("kT7/+9aQ=zz&Lm4%pWx@c1RfGh5~~~B3")
    found.write_bytes(bytes(9000) + secret.read_bytes() + bytes(9000))
    clean.write_bytes(bytes(18000))
    return secret, found, clean


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_the_exit_code_tells_the_finding_also_to_a_reader_that_has_gone(
    form: list[str], secret_and_dump: tuple[Path, Path, Path]
) -> None:
    secret, found, clean = secret_and_dump
    for arguments, code in (
        (["audit", "--secret-file", str(secret), "--core", str(found)], 1),
        (["audit", "--secret-file", str(secret), "--core", str(clean)], 0),
        (["map"], 0),
        (["doctor", "kernel", "glibc"], malloc_arena("doctor", "kernel", "glibc").returncode),
    ):
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer) as gone:
            done = subprocess.run(
                [sys.executable, "-m", "malloc_arena", *arguments, *form],
                stdout=gone,
                stderr=subprocess.PIPE,
                timeout=120,
            )
        assert (done.returncode, done.stderr) == (code, b""), arguments


def test_output_that_cannot_be_written_is_one_line_and_exit_code_3(
    secret_and_dump: tuple[Path, Path, Path],
) -> None:
    secret, _, clean = secret_and_dump
    audit = ["audit", "--secret-file", str(secret), "--core", str(clean)]
    for arguments in (
        audit,
        [*audit, "--json"],
        ["map"],
        ["doctor", "glibc"],
        ["config", "--libs"],
    ):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "malloc_arena", *arguments],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=120,
            )
        assert (done.returncode, done.stderr) == (
            3,
            f"malloc-arena {arguments[0]}: standard output: No space left on device\n",
        )


def test_standard_output_may_be_closed_and_a_window_narrow(
    secret_and_dump: tuple[Path, Path, Path],
) -> None:
    secret, found, _ = secret_and_dump
    audit = ["audit", "--secret-file", str(secret), "--core", str(found)]
    command = [sys.executable, "-m", "malloc_arena"]
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *command, *audit], capture_output=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (1, b"")
    for columns in ("0", "5"):
        for arguments in (audit, ["doctor", "memlock", "-v"], ["map"]):
            done_ = malloc_arena(*arguments, COLUMNS=columns)
            assert done_.returncode in (0, 1)
            assert (done_.stdout != "", done_.stderr) == (True, "")


def test_names_that_are_not_utf_8_are_shown_as_they_can_be(
    secret_and_dump: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    secret, found, _ = secret_and_dump
    strange = os.fsdecode(os.fsencode(tmp_path) + b"/d\xff")
    shutil.copy(found, strange)
    page, report = tmp_path / "page", tmp_path / "report"
    for form in (["--html", str(page)], ["--output", str(report)], []):
        done = malloc_arena(
            *("audit", "--secret-file", str(secret), "--core", strange, *form),
            PYTHONIOENCODING="utf-8:strict",
        )
        assert (done.returncode, done.stderr) == (1, "")
    for text in (page.read_text(), report.read_text(), done.stdout):
        assert r"d\udcff" in text


def test_an_install_without_the_library_and_a_missing_proc_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("malloc_arena.cli.config.library", lambda: tmp_path / "none.so")
    assert cli.main(["config", "--libs"]) == 3
    said = capsys.readouterr()
    assert (said.out, "pip install -e leaves it out" in said.err) == ("", True)

    def refused(*_: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("malloc_arena.doctor.examine", refused)
    assert cli.main(["doctor"]) == 3
    assert capsys.readouterr().err == (
        "malloc-arena doctor: this process, in /proc, cannot be seen: No such file or directory\n"
    )
