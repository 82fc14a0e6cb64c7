"""Completion of this command line in a shell."""

from __future__ import annotations

import argparse

from .output import put


class Completion:
    """Print the completion of this command for a shell.

    eval "$(malloc-arena completion bash)"             in ~/.bashrc
    source <(malloc-arena completion zsh)              in ~/.zshrc, after compinit
    malloc-arena completion fish | source              in config.fish
    """

    name = "completion"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("shell", choices=("bash", "zsh", "fish"))

    def __call__(self, options: argparse.Namespace) -> int:
        from ..render import completion
        from . import parser

        put(lambda: print(completion.script(options.shell, parser()), end=""))
        return 0
