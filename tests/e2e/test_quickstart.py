"""The quickstart's whole walk on the tiny model: the path is real, only the weights are small."""

import json
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

import tiny_model
from service import LUTHIER, MODEL, environment, examples, free_port


class Quickstart(unittest.TestCase):
    def setUp(self):
        self.dir = Path(tempfile.mkdtemp(prefix="luthier-quickstart-"))
        self.addCleanup(shutil.rmtree, self.dir)
        self.data_dir = self.dir / "data"
        self.run_luthier("model", "add", MODEL, tiny_model.write(self.dir / "tiny"), "--data-dir", self.data_dir)

    def run_luthier(self, *args):
        done = subprocess.run([LUTHIER, *map(str, args)], capture_output=True, text=True, timeout=400, env=environment())
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def test_it_trains_asks_and_writes_its_figures(self):
        data = self.dir / "data.jsonl"
        data.write_bytes(examples(40))
        figures = self.dir / "figures.json"
        for _ in range(2):  # the second run finds everything in place
            out = self.run_luthier(
                "quickstart", "--data-dir", self.data_dir, "--listen", f"127.0.0.1:{free_port()}", "--model", MODEL,
                "--data", data, "--epochs", 2, "--exit", "--json", figures)
        self.assertIn("held-out examples", out)
        written = json.loads(figures.read_text())
        self.assertTrue({"base_score", "tuned_score", "seconds", "tokens_per_s", "peak_memory_bytes"} <= set(written))
        self.assertTrue(0 <= written["base_score"] <= 1 and 0 <= written["tuned_score"] <= 1)
        self.assertGreater(written["tokens_per_s"], 0)
        self.assertIn("train", written["seconds"])
