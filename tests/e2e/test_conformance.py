"""An outside conformance kit through several openai-python, where one is at hand: OPENAI_CONFORMANCE_KIT names its folder."""

import json
import os
import re
import subprocess
import sys
import time
import unittest

from service import MODEL, ROOT, free_port
from test_webhooks import EmbeddedWithWebhooks, ProductionWithWebhooks
from upstream import KIT

PROGRAM = KIT / "sdk_conformance.py"
# What fails or is not there, as COMPATIBILITY.md tells: the check's name, and its outcome.
DOCUMENTED = {
    "moderations": r"fail: .*This service has no moderation model",
    "graders_validate": r"skip: not implemented \(404\)",
    "graders_run": r"skip: not implemented \(404\)",
    "evals_list": r"skip: not implemented \(404\)",
    # By the schema, which knows numbers alone; what the SDK makes of the text has passed.
    "embeddings": r"fail: response shape: POST /embeddings -> 200 schema: at /data/0/embedding",
}
# A call whose argument the kit does not bound may be longer than the kit lets a random model speak; calls that end are in test_tools.py.
BY_CHANCE = {"chat_tools": r"fail: (length|JSONDecodeError: .*)"}


class OneWorker(ProductionWithWebhooks):
    """So that there is a job that waits while the kit looks at another one, in this form too."""

    n_workers = 1


@unittest.skipUnless(PROGRAM.is_file(), f"skipped: no conformance kit in {KIT.name}/ (set OPENAI_CONFORMANCE_KIT)")
class Conformance(unittest.TestCase):
    def run_kit(self, form, sdk=None):
        """Every check of every level, through an older SDK or this Python's own."""
        service = form()
        self.addCleanup(service.close)
        admin_key = service.luthier("admin-key", "create", *service.place)
        projects = service.client(admin_api_key=admin_key).admin.organization.projects
        neighbour = projects.service_accounts.create(projects.create(name="neighbour").id, name="kit").api_key.value
        # Long enough to be paused, too.
        train = service.dir / "train.jsonl"
        train.write_bytes((KIT / "fixtures/sft.jsonl").read_bytes() * 10)
        results, begun = service.dir / "kit.json", time.monotonic()
        done = subprocess.run(
            [sys.executable if sdk is None else ROOT / f"target/test-tools/openai-{sdk}/bin/python", PROGRAM,
             "--base-url", service.base_url, "--api-key", service.key, "--base-model", MODEL, "--train-file", train,
             "--admin-key", admin_key, "--api-key-2", neighbour, "--webhook-listen", f"127.0.0.1:{free_port()}",
             "--fail-on", "nice", "--json", results, "--poll", "0.3", "--job-timeout", "300"],
            capture_output=True, text=True, timeout=900, env={**os.environ, "EMBED_MODEL": MODEL})
        self.assertTrue(results.is_file(), done.stdout[-4000:] + done.stderr[-2000:])
        told = json.loads(results.read_text())
        print(f"openai-python {told['sdk']}: {done.stdout.strip().splitlines()[-1]}; {time.monotonic() - begun:.0f} s", file=sys.stderr)
        self.assertGreater(len(told["results"]), 100)
        short = {check["name"]: f"{check['status']}: {check['msg']}" for check in told["results"] if check["status"] != "pass"}
        absent = rf"skip: SDK {re.escape(told['sdk'])} has no [\w.]+"
        unexpected = {name: message for name, message in short.items()
                      if not re.match({**BY_CHANCE, **DOCUMENTED}.get(name, absent), message) and not re.fullmatch(absent, message)}
        self.assertEqual(unexpected, {}, f"{done.stdout[-4000:]}\n{done.stderr[-2000:]}\n{service.logs()}")
        self.assertLessEqual(set(DOCUMENTED), set(short), "COMPATIBILITY.md says that it is not there, and it is")

    def test_the_embedded_form_conforms(self):
        self.run_kit(EmbeddedWithWebhooks)

    def test_the_production_form_conforms(self):
        self.run_kit(OneWorker)

    def test_the_embedded_form_conforms_to_openai_python_1(self):
        self.run_kit(EmbeddedWithWebhooks, "1.109.1")

    def test_the_production_form_conforms_to_openai_python_1(self):
        self.run_kit(OneWorker, "1.109.1")

    def test_the_embedded_form_conforms_to_openai_python_2(self):
        self.run_kit(EmbeddedWithWebhooks, "2.54.0")

    def test_the_production_form_conforms_to_openai_python_2(self):
        self.run_kit(OneWorker, "2.54.0")


if __name__ == "__main__":
    unittest.main()
