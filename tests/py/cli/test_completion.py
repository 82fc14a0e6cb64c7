"""What the shells offer after `malloc-arena completion` is sourced."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from malloc_arena import cli
from malloc_arena.doctor import CHECKS

ROOT_LINES = {
    "malloc-arena ": {verb.name for verb in cli.VERBS},
    "malloc-arena do": {"doctor"},
    "malloc-arena doctor mem": {check.name for check in CHECKS if check.name.startswith("mem")},
    "malloc-arena completion ": {"bash", "fish", "zsh"},
    "malloc-arena audit --secret-f": {"--secret-file", "--secret-fd"},
    "malloc-arena audit --secret-file to": {"token"},
    "malloc-arena config --lib": {"--libs", "--libdir"},
    "malloc-arena run --sw": {"--sweep"},
}

# What `complete` calls, without a terminal. The path after an option is readline's own.
ASK_BASH = """
source /dev/stdin <<<"$1"
compopt () { mapfile -t COMPREPLY < <(compgen -f -- "${COMP_WORDS[COMP_CWORD]}"); }
read -ra COMP_WORDS <<<"$2"
[[ $2 == *' ' ]] && COMP_WORDS+=('')
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_malloc_arena
printf '%s\\n' "${COMPREPLY[@]}"
"""


def need(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"no {program}: apt-get install {program}")
    return path


def script(shell: str) -> str:
    command = [sys.executable, "-m", "malloc_arena", "completion", shell]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def ask(where: Path, *command: str) -> set[str]:
    (where / "token").touch()
    env = {**os.environ, "HOME": str(where), "XDG_CONFIG_HOME": str(where)}
    done = subprocess.run(
        command, cwd=where, env=env, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr == ""
    return {line.split("\t")[0] for line in done.stdout.splitlines()}


@pytest.mark.parametrize("line", ROOT_LINES)
def test_bash(line: str, tmp_path: Path) -> None:
    offered = ask(tmp_path, need("bash"), "-c", ASK_BASH, "bash", script("bash"), line)
    if line == "malloc-arena ":
        offered -= {"-h", "--help", "--version"}
    if line == "malloc-arena completion ":
        offered -= {"-h", "--help"}
    assert offered == ROOT_LINES[line]


def test_bash_offers_programs_where_one_stands(tmp_path: Path) -> None:
    for line in ("malloc-arena run ec", "malloc-arena run -- ec", "malloc-arena audit --pid 1 ec"):
        offered = ask(tmp_path, need("bash"), "-c", ASK_BASH, "bash", script("bash"), line)
        assert "echo" in offered, line
    line = "malloc-arena run --sweep cat to"
    assert ask(tmp_path, need("bash"), "-c", ASK_BASH, "bash", script("bash"), line) == {"token"}


@pytest.mark.parametrize("line", ROOT_LINES)
def test_fish(line: str, tmp_path: Path) -> None:
    asking = "source (echo $argv[1] | psub); complete -C $argv[2]"
    assert ask(tmp_path, need("fish"), "-c", asking, script("fish"), line) == ROOT_LINES[line]


def test_fish_offers_programs_where_one_stands(tmp_path: Path) -> None:
    asking = "source (echo $argv[1] | psub); complete -C $argv[2]"
    for line in ("malloc-arena run ech", "malloc-arena run -- ech"):
        assert "echo" in ask(tmp_path, need("fish"), "-c", asking, script("fish"), line)


def test_zsh(tmp_path: Path) -> None:
    """Its completion needs a terminal, so a pseudo-terminal types, and lists with Ctrl-D."""
    typed = tmp_path / "typed"
    (tmp_path / "_malloc-arena").write_text(script("zsh"))
    typed.write_text(
        f"""
zmodload zsh/zpty
zpty shell 'zsh -f -i'
zpty -w shell "fpath=({tmp_path} \\$fpath); autoload -U compinit; compinit -u -D; PS1=''@''@''"
# Only behind a prompt does the editor read what is typed.
zpty -r shell output '*@@*'
for line last in \\
    'malloc-arena ' 'Start a program' \\
    'malloc-arena doctor mem' memlock \\
    'malloc-arena config --lib' 'for the linker'; do
  zpty -w -n shell "$line"$'\\C-d'
  zpty -r shell output "*$last*"
  print -r -- "$output"
  zpty -w -n shell $'\\C-u'
done
zpty -d shell
"""
    )
    env = os.environ | {"HOME": str(tmp_path), "TERM": "dumb", "COLUMNS": "200"}
    done = subprocess.run(
        [need("zsh"), "-f", typed], env=env, capture_output=True, text=True, timeout=60
    )
    words = set(done.stdout.replace("\r", "").split())
    assert {verb.name for verb in cli.VERBS} <= words, done.stdout + done.stderr
    assert {"memlock", "memfd-secret"} <= words
    assert {"--libs", "--libdir"} <= words
