"""Set up this pack with a ComfyUI of its own and run it: `python3 dev.py demo`, `test`, `bench` or `serve`.

    demo    make a video from a text prompt, from nothing to an mp4
    test    run the style checks and the whole test suite on several cores; further arguments go to pytest, on one
    bench   measure this pack beside others, into benchmarks/results.md; further arguments go to the benchmark
    serve   open ComfyUI's editor with this pack in it

Everything is kept in `.dev/` beside this file; delete it to start anew. Standard library only, so that it runs before
anything is installed.
"""

import argparse
import logging
import os
import subprocess
import sys
from pathlib import Path

if sys.version_info < (3, 10):  # noqa: UP036, said before the imports below fail on it
    sys.exit(f"This is Python {sys.version.split()[0]}; run dev.py with Python 3.10 or later.")

from devtools import browser, environment, host, server

BENCHMARKS = (
    "vae",
    "vae_choices",
    "dit",
    "end_to_end",
    "farm",
    "gpu",
    "parallel",
    "parallel_whole",
    "quality",
    "preview",
    "stream",
    "syncs",
)

WORKERS = ["-n", "auto", "--maxprocesses", "4"]  # of the whole suite, see tests/conftest.py

log = logging.getLogger("dev")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; what `test` and `bench` do not know themselves is left for what they run, in `rest`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument(
        "--comfyui",
        metavar="PATH",
        default=os.environ.get("WAN_COMFYUI"),
        help="your own ComfyUI folder (or set WAN_COMFYUI); nothing in it is changed. Default: ComfyUI 0.3.75",
    )
    editor = argparse.ArgumentParser(add_help=False)
    editor.add_argument(
        "--frontend",
        metavar="VERSION",
        help="put the editor of this version before the host, or the newest for `latest`; default: the host's own",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="demo | test | bench | serve")
    demo = commands.add_parser("demo", parents=[own], help="make a video from a text prompt")
    demo.add_argument("--prompt", help="what the video shows; default: a red circle moves right on a blue background")
    demo.add_argument("--workflow", metavar="NAME", help="a file of workflows/; default: the demo family's")
    test = commands.add_parser(
        "test", parents=[own, editor], allow_abbrev=False, help="run the suite; the rest goes to pytest"
    )
    test.add_argument("--require-browser", action="store_true", help="fail where no Chromium is found or installed")
    bench = commands.add_parser("bench", parents=[own], allow_abbrev=False, help="compare with other implementations")
    bench.add_argument("benchmark", choices=BENCHMARKS)
    serve = commands.add_parser("serve", parents=[own, editor], help="open the editor")
    serve.add_argument("--port", type=int, default=8188)
    serve.add_argument("--no-browser", action="store_true", help="only start the server")
    options, options.rest = parser.parse_known_args(arguments)
    if options.rest and options.command not in ("test", "bench"):
        parser.error(f"unknown arguments: {' '.join(options.rest)}")
    return options


def prepare(options: argparse.Namespace) -> tuple[host.Host, environment.Environment]:
    """Host and environment for the command, made where they are not there yet."""
    comfyui = host.locate(options.comfyui)
    place = environment.Environment(comfyui.version)
    place.create()
    host.fetch_floor(comfyui, place)
    place.install_all(comfyui.folder / "requirements.txt", options.command)
    host.prepare_base(comfyui.base)
    if version := getattr(options, "frontend", None):
        os.environ[server.FRONTEND] = str(place.install_frontend(version))
    if options.command == "test":
        browser.provide(place.python, required=options.require_browser)
    return comfyui, place


def command_line(options: argparse.Namespace, comfyui: host.Host, place: environment.Environment) -> list[str]:
    """What to run in the environment for the command."""
    python = str(place.python)
    if options.command == "demo":
        chosen = ["--workflow", options.workflow] if options.workflow else []
        chosen += ["--prompt", options.prompt] if options.prompt else []
        paths = ["--comfyui", str(comfyui.folder), "--base", str(comfyui.base)]
        return [python, "-m", "devtools.demo", *chosen, *paths]
    if options.command == "test":
        chosen = any(Path(argument.split("::")[0]).exists() for argument in options.rest)
        return [python, "-m", "pytest", *([] if chosen else ["tests"]), *(options.rest or WORKERS)]
    if options.command == "bench":
        return [python, f"benchmarks/{options.benchmark}.py", *options.rest]
    cpu = not place.has_accelerator()
    browser = [] if options.no_browser else ["--auto-launch"]
    return server.command(python, comfyui.folder, comfyui.base, options.port, cpu=cpu) + browser


def hand_over(command: list[str]) -> int:
    """Run `command` in place of this process, so that Ctrl-C and signals reach it alone; return its exit status."""
    if os.name == "posix":
        os.execv(command[0], command)
    process = subprocess.Popen(command)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the console sends it to the child as well, which now tidies up
            continue


def main() -> int:
    """Set up, run the command, and return its exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    options = parse(sys.argv[1:])
    try:
        comfyui, place = prepare(options)
    except environment.SetupError as error:
        log.error("%s", error)
        return 1
    os.environ["WAN_COMFYUI"] = str(comfyui.folder)
    os.chdir(Path(__file__).resolve().parent)
    return hand_over(command_line(options, comfyui, place))


if __name__ == "__main__":
    sys.exit(main())
