"""The command line: run the notebooks, sweep their parameters, or explain photographs.

    python -m lib run [--profile bundled] [--only 02 05] [-p NAME VALUE] [--timeout SECONDS]
    python -m lib sweep mnist [--dry-run] [--retry] [--workers 2 | --cluster tcp://HOST:8786]
    python -m lib sweep 02 -g seed 0,1,2 -g epochs 1,3 [-p NAME VALUE] [--profile P] [--name N]
    python -m lib list
    python -m lib explain PHOTO... --out DIR [--sequencer RUN] [--relu guided] [--no-figures]

Installed, it is called `companion`.
"""

import argparse
import sys

import yaml

from lib import execution, paths


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; returns the exit status, 2 for what was asked wrongly."""
    parser = argparse.ArgumentParser(prog="python -m lib", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, dest="command")
    command = commands.add_parser("run", help="execute the notebooks in order")
    command.add_argument(
        "--profile", default="bundled", help="bundled or a folder of notebooks/profiles"
    )
    command.add_argument(
        "--only",
        nargs="+",
        action="extend",
        default=[],
        metavar="NN",
        help="numbers of notebooks: 02 05",
    )
    command.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="given"
    )
    command.add_argument("--timeout", type=int, default=21600, help="seconds one cell may take")
    command.add_argument(
        "--workers",
        type=int,
        default=execution.default_workers(),
        help="notebooks at once; two, where there are two cores",
    )
    command = commands.add_parser("sweep", help="notebooks over a grid of parameters")
    command.add_argument(
        "what",
        nargs="+",
        help="the name of a sweep in notebooks/sweeps, or numbers of notebooks: 02 05",
    )
    command.add_argument(
        "-g",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE,VALUE"),
        dest="grid",
        help="a parameter that varies",
    )
    command.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="given"
    )
    command.add_argument("--profile", help="whose parameters hold otherwise; bundled")
    command.add_argument("--name", help="of the folder in build/sweeps")
    where = command.add_mutually_exclusive_group()
    where.add_argument(
        "--workers",
        type=int,
        default=execution.default_workers(),
        help="notebooks at once; two, where there are two cores",
    )
    where.add_argument("--cluster", metavar="ADDRESS", help="of a Dask scheduler that runs them")
    command.add_argument("--dry-run", action="store_true", help="only say what would be run")
    command.add_argument("--retry", action="store_true", help="run again what failed")
    command.add_argument("--timeout", type=int, default=21600, help="seconds one cell may take")
    commands.add_parser("list", help="the notebooks, profiles and sweeps that there are")
    command = commands.add_parser(
        "explain", help="grades and CLEAR-DR figures of fundus photographs"
    )
    command.add_argument(
        "photographs", nargs="+", metavar="PHOTO", help="a file, or a folder of any number of them"
    )
    command.add_argument(
        "--sequencer",
        help="name or path of a run in data/sequencers/; by default the published weights, which "
        "are for research and teaching only, not for clinical use",
    )
    command.add_argument(
        "--out",
        required=True,
        help="new folder for results.csv and figures, or that of the same command before",
    )
    command.add_argument("--relu", default="guided", help="reading of CLEAR's Eq. 3 (notebook 02)")
    command.add_argument(
        "--no-figures", action="store_true", help="write the tables alone, which is faster"
    )
    options = parser.parse_args(arguments)
    sys.stdout.reconfigure(errors="backslashreplace")  # not every terminal shows every name
    try:
        for name in ("workers", "timeout"):
            if getattr(options, name, 1) < 1:
                raise ValueError(f"--{name} must be 1 or more, got {getattr(options, name)}.")
        if options.command == "explain":
            return _explain(options)
        if options.command == "sweep":
            return _sweep(options)
        if options.command == "list":
            from lib import sweep

            sweep.print_list()
            return 0
        name, chosen = execution.plan(options.profile, options.only, options.given)
        return execution.run(name, chosen, options.timeout, options.workers)
    except OSError as error:
        raw = f"{error.strerror}: {error.filename}. See to that, then give the same command again"
        print(raw if error.filename else error, file=sys.stderr)
    except (ValueError, RuntimeError, yaml.YAMLError) as error:
        print(error, file=sys.stderr)
    except KeyboardInterrupt:  # before the first notebook has begun
        print("Stopped.", file=sys.stderr)
        return 130
    return 2


def _sweep(options: argparse.Namespace) -> int:
    """Sweep what is named, or what the options say."""
    from lib import sweep  # a second, which `run` need not wait for

    words = (options.grid, options.given, options.profile, options.name)
    if all(word.isdecimal() for word in options.what):
        asked = sweep.from_words(
            options.what, options.grid, options.given, options.profile or "bundled", options.name
        )
    elif len(options.what) > 1 or any(words):
        raise ValueError(
            f"{' '.join(options.what)}: give numbers of notebooks, or the name of one sweep, whose "
            "file in notebooks/sweeps says all that -g, -p, --profile and --name do."
        )
    else:
        asked = sweep.read(options.what[0])
    if options.dry_run:
        sweep.dry_run(asked, options.workers, options.retry)
        return 0
    return sweep.run(asked, options.workers, options.cluster, options.timeout, options.retry)


def _explain(options: argparse.Namespace) -> int:
    """Explain photographs from disk and say how many."""
    try:
        import torch

        from lib import memory, photographs, results  # seconds, which `run` need not wait for

        memory.keep_freed()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        count, rejects = photographs.explain_files(
            options.photographs,
            paths.WEIGHTS / "retinas" if options.sequencer is None else options.sequencer,
            options.out,
            options.relu,
            device,
            not options.no_figures,
        )
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from there.")
        return 130
    made = "results.csv and rejects.csv"
    if not options.no_figures:
        made = "results.csv, rejects.csv and a figure for each"
    where = paths.printable(options.out)
    print(f"{count} explained, {len(rejects)} rejected: {made} are in {where}")
    for line in results.counted(rejects):
        print(line)
    return 0 if count else 1


if __name__ == "__main__":
    sys.exit(main())
