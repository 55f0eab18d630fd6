"""The `crust` command: one module per command, imported only when that command runs.

A command is a line in `COMMANDS` and a module `crust.cli.NAME` with two functions:

    def add_arguments(parser: argparse.ArgumentParser) -> None
    def run(args: argparse.Namespace, out: Output) -> int | Coroutine[Any, Any, int]

`--json`, `--config`, `--identity` and `--debug` are there already; `crust.cli.options` has those of the commands that
make a node. `run` returns the exit code and raises what goes wrong: errors of `crust.errors` have their codes (see
`crust.cli.app`), `crust.cli.output.CommandError` carries one of its own. A module-level `INTERRUPTED = 0` changes the
exit code after Ctrl-C or SIGTERM.
"""

from __future__ import annotations

__all__ = ["COMMANDS", "main"]

# Name -> what `crust --help` says. The order is that of the help.
COMMANDS: dict[str, str] = {
    "id": "show this machine's PeerId, creating the identity when there is none",
    "node": "run a node and its services",
    "ping": "connect to a peer, measure round trips, show the path",
    "send": "send files and folders to a peer",
    "receive": "receive files and folders",
    "pipe": "join standard input and output with a peer's",
    "verify": "prove or refute that a file was signed by its sender",
    "expose": "offer a TCP service to peers",
    "forward": "reach a TCP service that a peer exposes",
    "config": "show, check or print the configuration",
    "doctor": "find out what this network allows",
    "lab": "dial between every pair of NATs, in a laboratory on this machine",
    "bench": "measure throughput, latency and memory beside raw sockets",
    "demo": "show the main job on this machine",
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: the arguments without the program's name; those of the process when None.
    """
    from crust.cli.app import run_command_line

    return run_command_line(argv)
