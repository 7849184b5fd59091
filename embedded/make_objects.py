"""Writes the procedural training objects: shards of 500 objects, six views each, with captions.

    python embedded/make_objects.py OUT --count 60000 --seed 0 --threads 2

The format is described in embedded/objects/shards.py. A shard that exists is skipped, so an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from objects import shards


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and write; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path, help="folder of the shards; made if missing")
    parser.add_argument("--count", type=int, default=60000, help="objects in all (500 a shard)")
    parser.add_argument("--seed", type=int, default=0, help="of the data set; the same seed gives the same objects")
    parser.add_argument("--threads", type=int, default=2, help="of the tracer")
    parser.add_argument("--held", action="store_true", help="only held-out (category, colour) pairs, for tests")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet of the first objects to this .png, no shards")
    args = parser.parse_args(argv)
    if args.count < 1 or args.threads < 1:
        print(f"error: --count and --threads must be at least 1, got {args.count} and {args.threads}", file=sys.stderr)
        return 2
    if args.sheet:
        from objects import sheet

        sheet.write(args.sheet, sheet.mixed(args.count, args.seed, args.held))
        return 0
    try:
        shards.write(args.out, args.count, args.seed, args.threads, args.held)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: cannot write to {args.out}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
