"""The `oarlock` script: finds the command, runs it, and turns whatever goes wrong into one clear line.

Nothing heavy is imported here, so that `oarlock --help` answers at once; each command's module is imported when it is
called. A command is a module with `run(arguments) -> int`. Exit codes: 0 done, 1 failed, 2 wrong usage, 130
interrupted.
"""

import difflib
import importlib
import os
import sys

from oarlock_runtime import __version__

COMMANDS = {
    "serve": ("oarlock_runtime.cli.serve", "serve a model over HTTP and gRPC, with OpenAI's API and PaddleNLP's"),
    "chat": ("oarlock_runtime.cli.chat", "talk to a model in the terminal"),
    "download": ("oarlock_runtime.cli.download", "fetch a model to this machine"),
    "model": ("oarlock_runtime.cli.model", "inspect a model, export it to another container, or make a random one"),
    "bench": ("oarlock_runtime.cli.bench", "measure a server, a model in process, or this machine's floor"),
}


class UsageError(Exception):
    """The command line itself is wrong; the message says what would be right."""


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: oarlock COMMAND [flags]",
            "",
            *lines,
            "",
            "`oarlock COMMAND --help` tells more; `--debug` anywhere shows the traceback of an error.",
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """Runs one command line (without the program's name; default: this process's own) and returns its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(f"oarlock {__version__}")  # not the installed package's: a checkout on the path has none
        return 0
    try:
        return run_command(arguments[0], arguments[1:])
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output left (`| head`): nothing more can be said, not even at interpreter exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            raise
        return report(error)


def run_command(name: str, arguments: list[str]) -> int:
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        raise UsageError(
            f"no command {name!r}" + (f"; did you mean {near[0]!r}?" if near else f"; one of {', '.join(COMMANDS)}")
        )
    result = importlib.import_module(COMMANDS[name][0]).run(arguments)
    return int(result)


def report(error: Exception) -> int:
    """Prints an error as one line on stderr; returns the exit code that goes with its kind."""
    from oarlock_runtime.errors import OarlockError, RequestError, SettingError

    if isinstance(error, UsageError | RequestError | SettingError):
        code, text = 2, str(error)
    elif isinstance(error, OarlockError | OSError | ValueError):
        code, text = 1, str(error) or type(error).__name__
    else:
        code, text = 1, f"{type(error).__name__}: {error} (--debug shows where)"
    print(f"oarlock: {' '.join(text.split())}", file=sys.stderr)
    return code
