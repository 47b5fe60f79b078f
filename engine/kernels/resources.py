"""Prints what each kernel takes of a card, from ptxas's report: registers, shared memory, spills."""

import re
import sys

log, files = sys.argv[1], sys.argv[2:]
print("| kernel | card | registers | shared memory, fixed | stack | spilled |\n|---|---|---|---|---|---|")
for file in files:
    for card in ("80", "90a", "120"):
        text = open(f"{log}.{file.removesuffix('.cu')}.{card}").read()
        kernels = re.split(r"Compiling entry function '", text)[1:]
        for kernel in sorted(kernels):
            name = kernel.split("'")[0]
            registers = re.search(r"Used (\d+) registers", kernel).group(1)
            shared = re.search(r"(\d+) bytes smem", kernel)
            stack = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", kernel)
            spilled = int(stack.group(2)) + int(stack.group(3))
            print(f"| {name} | sm_{card} | {registers} | {shared.group(1) if shared else 0} | {stack.group(1)} | {spilled} |")
