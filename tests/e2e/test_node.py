"""The stories of these tests once more through openai-node, in both forms: the files of tests/sdk, each on the same service."""

import json
import subprocess
import unittest

from service import MODEL, ROOT, OneService
from test_webhooks import EmbeddedWithWebhooks, ProductionWithWebhooks

STORIES = ROOT / "tests/sdk"


class Node(OneService):
    """Mixed into one class per form."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.admin_key = cls.service.luthier("admin-key", "create", *cls.service.place)

    def tell(self, story):
        record = self.service.dir / f"{story}.jsonl"
        done = subprocess.run(
            ["node", str(STORIES / f"{story}.mjs")], capture_output=True, text=True, timeout=240,
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "NODE_SDK": str(ROOT / "target/test-tools/node"), "BASE_URL": self.service.base_url,
                 "API_KEY": self.service.key, "ADMIN_KEY": self.admin_key, "MODEL": MODEL, "RECORD": str(record)})
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("all checks passed", done.stdout)
        for line in record.read_text().splitlines():
            answer = json.loads(line)
            self.service.judge.judge_whole(answer["method"], answer["url"], answer["status"], answer["type"], answer["body"])

    def test_the_main_job(self):
        self.tell("main_job")

    def test_jobs_that_end_or_learn_otherwise(self):
        self.tell("jobs")

    def test_files_in_parts(self):
        self.tell("uploads")

    def test_everything_that_answers(self):
        self.tell("answers")

    def test_batches(self):
        self.tell("batches")

    def test_webhooks(self):
        self.tell("webhooks")

    def test_administration(self):
        self.tell("admin")


class EmbeddedNode(Node, unittest.TestCase):
    make = EmbeddedWithWebhooks


class ProductionNode(Node, unittest.TestCase):
    make = ProductionWithWebhooks


if __name__ == "__main__":
    unittest.main()
