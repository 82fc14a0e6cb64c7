"""Completion of the command line for three shells, from its parser."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Option:
    flags: tuple[str, ...]
    help: str
    value: str  # what follows: its metavar; "" for nothing


@dataclass(frozen=True)
class Line:
    """What may stand behind a verb."""

    verb: str
    help: str
    options: tuple[Option, ...]
    words: tuple[str, ...]
    program: bool  # ends in another program's command line


def options_of(parser: argparse.ArgumentParser) -> tuple[Option, ...]:
    return tuple(
        Option(
            tuple(action.option_strings),
            (action.help or "").replace("%(prog)s", parser.prog),
            "" if action.nargs == 0 else str(action.metavar or action.dest.upper()),
        )
        for action in parser._actions
        if action.option_strings
    )


def verbs_of(parser: argparse.ArgumentParser) -> dict[str, tuple[str, argparse.ArgumentParser]]:
    """The help's line and the parser of each verb."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._get_subactions()}
            return {name: (helps[name], one) for name, one in action.choices.items()}
    raise LookupError("no verbs")


def _lines(parser: argparse.ArgumentParser) -> tuple[Line, ...]:
    found = []
    for name, (text, one) in verbs_of(parser).items():
        positional = [action for action in one._actions if not action.option_strings]
        words = [str(word) for action in positional for word in action.choices or ()]
        if name == "doctor":
            from ..doctor import CHECKS

            words = [check.name for check in CHECKS]
        program = any("program" in str(action.metavar) for action in positional)
        found.append(Line(name, text.rstrip("."), options_of(one), tuple(words), program))
    return tuple(found)


BASH = """\
# bash completion of malloc-arena: eval "$(malloc-arena completion bash)"
_malloc_arena ()
{{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD - 1]}}
  local words= values= program= at
  if [[ $COMP_CWORD == 1 ]]; then
    mapfile -t COMPREPLY < <(compgen -W {first} -- "$word")
    return
  fi
  case ${{COMP_WORDS[1]}} in
{cases}
  esac
  # From the first word that is no option on, it is another program's line.
  if [[ $program ]]; then
    for ((at = 2; at < COMP_CWORD; at++)); do
      if [[ ${{COMP_WORDS[at]}} == -- ]]; then
        at=$((at + 1))
        break
      elif [[ " $values " == *" ${{COMP_WORDS[at]}} "* ]]; then
        at=$((at + 1))
      elif [[ ${{COMP_WORDS[at]}} != -* ]]; then
        break
      fi
    done
    if ((at < COMP_CWORD)) && declare -F _command_offset >/dev/null; then
      _command_offset "$at"
      return
    elif ((at < COMP_CWORD)); then
      compopt -o default
      return
    elif ((at == COMP_CWORD)) && [[ $word != -* ]]; then
      mapfile -t COMPREPLY < <(compgen -c -f -- "$word")
      return
    fi
  fi
  if [[ " $values " == *" $before "* ]]; then
    compopt -o default
    return
  fi
  mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
}}
complete -F _malloc_arena malloc-arena
"""


def _bash(table: Sequence[Line], top: Sequence[Option]) -> str:
    first = [line.verb for line in table] + [flag for option in top for flag in option.flags]
    cases = []
    for line in table:
        words = [*line.words, *(flag for option in line.options for flag in option.flags)]
        values = [flag for option in line.options if option.value for flag in option.flags]
        cases.append(
            f"    {line.verb}) words={shlex.quote(' '.join(words))}"
            f" values={shlex.quote(' '.join(values))} program={'yes' if line.program else ''} ;;"
        )
    return BASH.format(first=shlex.quote(" ".join(first)), cases="\n".join(cases))


ZSH = """\
#compdef malloc-arena
# zsh completion of malloc-arena: malloc-arena completion zsh >DIRECTORY-OF-FPATH/_malloc-arena
_malloc_arena ()
{{
  local -a verbs=(
{verbs}
  )
  if ((CURRENT == 2)); then
    _describe verb verbs
    _arguments {first}
    return
  fi
  local verb=$words[2]
  shift words
  ((CURRENT--))
  case $verb in
{cases}
  esac
}}
if [[ $funcstack[1] == _malloc-arena ]]; then
  _malloc_arena "$@"
else
  compdef _malloc_arena malloc-arena
fi
"""


def _zsh_option(option: Option) -> str:
    text = option.help.replace("[", "\\[").replace("]", "\\]").replace(":", "\\:")
    value = ""
    if option.value:
        value = f":{option.value}:{'_files' if option.value == 'FILE' else ''}"
    return " ".join(shlex.quote(f"{flag}[{text}]{value}") for flag in option.flags)


def _zsh(table: Sequence[Line], top: Sequence[Option]) -> str:
    verbs = [f"    {shlex.quote(line.verb + ':' + line.help)}" for line in table]
    cases = []
    for line in table:
        words = [_zsh_option(option) for option in line.options]
        if line.words:
            words.append(shlex.quote(f"*:{line.verb}:({' '.join(line.words)})"))
        if line.program:
            words.append(shlex.quote("*::program:_normal"))
        cases.append(f"    {line.verb}) _arguments {' '.join(words)} ;;")
    first = " ".join(map(_zsh_option, top))
    return ZSH.format(verbs="\n".join(verbs), first=first, cases="\n".join(cases))


def _fish(table: Sequence[Line], top: Sequence[Option]) -> str:
    out = [
        "# fish completion of malloc-arena: malloc-arena completion fish | source",
        "complete -c malloc-arena -f",
    ]

    def add(condition: str, *arguments: str) -> None:
        out.append(shlex.join(["complete", "-c", "malloc-arena", "-n", condition, *arguments]))

    def add_option(condition: str, option: Option) -> None:
        arguments = ["-d", option.help]
        for flag in option.flags:
            arguments += ["-l", flag[2:]] if flag.startswith("--") else ["-s", flag[1:]]
        if option.value:
            arguments += ["-r", "-F"] if option.value == "FILE" else ["-x"]
        add(condition, *arguments)

    for option in top:
        add_option("__fish_use_subcommand", option)
    for line in table:
        add("__fish_use_subcommand", "-a", line.verb, "-d", line.help)
        condition = f"__fish_seen_subcommand_from {line.verb}"
        for option in line.options:
            add_option(condition, option)
        if line.words:
            add(condition, "-a", " ".join(line.words))
        if line.program:
            add(condition, "-x", "-a", "(__fish_complete_subcommand --fcs-skip=2)")
    return "\n".join(out) + "\n"


SHELLS: dict[str, Callable[[Sequence[Line], Sequence[Option]], str]] = {
    "bash": _bash,
    "zsh": _zsh,
    "fish": _fish,
}


def script(shell: str, parser: argparse.ArgumentParser) -> str:
    return SHELLS[shell](_lines(parser), options_of(parser))
