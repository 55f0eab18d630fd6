#!/usr/bin/env python3
"""Write the figures of a benchmark run into docs/explanation/performance.md.

crust bench --json > bench.json
python tools/bench_table.py bench.json            prints the table
python tools/bench_table.py --write bench.json    puts it between the markers of the page
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from crust.bench import COLUMNS, LABELS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "explanation" / "performance.md"
START, END = "<!-- figures: tools/bench_table.py -->", "<!-- end of figures -->"


def table(run: dict[str, Any]) -> str:
    """The figures, what a datagram costs, and which aims were missed."""
    lines = ["| | " + " | ".join(title for title, _ in COLUMNS.values()) + " | CPU µs/datagram: send, receive |"]
    lines.append("|---" * (len(COLUMNS) + 2) + "|")
    for row, label in LABELS.items():
        values = [(run[row][name], form) for name, (_, form) in COLUMNS.items()]
        cells = ["" if value is None else form.format(value) for value, form in values]
        cost = run["cpu_us_per_packet"].get(row)
        cells.append("" if cost is None else f"{cost['send']:.2f}, {cost['receive']:.2f}")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    system, rounds = run["system"], run["rounds"]
    lines.append(
        f"\nMedians of {rounds} round{'s' * (rounds != 1)}: {system['cores']} cores, {system['kernel']}, "
        f"Python {system['python']}, {system['loop']}.\n"
    )
    missed = [check for check in run["checks"] if check["pass"] is False]
    lines += [
        f"- missed: {LABELS[each['row']]}, {each['figure']} {each['value']}, aim {each['bar']}" for each in missed
    ]
    return "\n".join(lines)


def main() -> int:
    """Print the table of a run, or write it into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="what crust bench --json printed")
    parser.add_argument("--write", action="store_true", help="put the table between the markers of the page")
    args = parser.parse_args()
    text = table(json.loads(args.run.read_text().splitlines()[-1]))
    if not args.write:
        print(text)
        return 0
    page, found = re.subn(
        re.escape(START) + ".*?" + re.escape(END), lambda _: f"{START}\n\n{text}\n\n{END}", PAGE.read_text(), flags=re.S
    )
    if not found:
        print(f"no markers in {PAGE}", file=sys.stderr)
        return 1
    PAGE.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
