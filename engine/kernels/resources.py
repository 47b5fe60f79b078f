"""Prints what each kernel takes of a card, from ptxas's reports in a folder; of files that were not compiled, what built/RESOURCES.md says.
Ends with 1 where a kernel spills."""

import os
import re
import sys

# Kernels that may spill, and why.
MAY_SPILL = {}
HEAD = "| file | kernel | card | registers | shared memory, fixed | stack | spilled |\n|---|---|---|---|---|---|---|"
KEPT = "built/RESOURCES.md"


def report(path, file, card):
    """A row for each kernel in one of ptxas's reports."""
    for kernel in re.split(r"Compiling entry function '", open(path).read())[1:]:
        registers = re.search(r"Used (\d+) registers", kernel).group(1)
        shared = re.search(r"(\d+) bytes smem", kernel)
        stack = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", kernel)
        spilled = int(stack.group(2)) + int(stack.group(3))
        yield [file, kernel.split("'")[0], f"sm_{card}", registers, shared.group(1) if shared else "0", stack.group(1), str(spilled)]


def kept(compiled):
    """The rows that still hold of other files."""
    if os.path.exists(KEPT):
        for line in open(KEPT).read().splitlines()[2:]:
            row = [cell.strip() for cell in line.strip("|").split("|")]
            if row[0] not in compiled and os.path.exists(row[0]):
                yield row


def main():
    folder, files = sys.argv[1], sys.argv[2:]
    rows = [*kept(files)]
    for file in files:
        for card in ("80", "90a", "120"):
            rows += report(f"{folder}/{file.removesuffix('.cu')}.{card}.log", file, card)
    print(HEAD)
    for row in sorted(rows):
        print("| " + " | ".join(row) + " |")
    bad = [row for row in rows if row[-1] != "0" and row[1] not in MAY_SPILL]
    for row in bad:
        print(f"{row[0]}: {row[1]} spills {row[-1]} bytes on {row[2]}", file=sys.stderr)
    return int(bool(bad))


sys.exit(main())
