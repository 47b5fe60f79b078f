"""Every case of the list is attacked by a test of its own, or says why it is not."""

import re
import sys
import unittest
from pathlib import Path

N_CASES = 120
NOT_HERE = {
    "there is no console yet": [26, 27, 28, 29, 30, 31, 32, 113],
    "base models, with their tokenizers and templates, are installed by the operator alone": [81],
    "a job is trained in the worker's own process and runs no code of a tenant, so there is no child to shut in": [117],
}


def numbers():
    """The cases that tests of this folder are named after."""
    text = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    return {int(number) for number in re.findall(r"def test_s(\d+)_", text)}


class Cases(unittest.TestCase):
    def test_every_case_is_attacked_or_says_why_not(self):
        tested, left = numbers(), {n for cases in NOT_HERE.values() for n in cases}
        self.assertEqual(tested & left, set(), "these are attacked, and said not to be")
        self.assertEqual(set(range(1, N_CASES + 1)) - tested - left, set(), "nobody says anything of these")
        print(file=sys.stderr)
        for reason, cases in NOT_HERE.items():
            print(f"skipped: {', '.join(f's{n:02}' for n in cases)} because {reason}", file=sys.stderr)
