"""An outside conformance kit through several openai-python, where one is at hand: OPENAI_CONFORMANCE_KIT names its folder."""

import json
import os
import subprocess
import sys
import unittest

import tiny_model
from service import ROOT, free_port, wait_until
from test_webhooks import EmbeddedWithWebhooks, ProductionWithWebhooks
from upstream import KIT

PROGRAM = KIT / "sdk_conformance.py"
MODEL = "tiny-quotes"
# What fails or is not there for a reason that COMPATIBILITY.md tells: the check's name, and words of its message.
DOCUMENTED = {
    "moderations": "there is no moderation model",
    "graders_validate": "not implemented (404)",
    "graders_run": "not implemented (404)",
    "evals_list": "not implemented (404)",
}


@unittest.skipUnless(PROGRAM.is_file(), f"skipped: no conformance kit in {KIT.name}/ (set OPENAI_CONFORMANCE_KIT)")
class Conformance(unittest.TestCase):
    def service(self, form):
        """With a model whose strings come to an end, and a second project."""
        service = form()
        self.addCleanup(service.close)
        service.luthier("model", "add", MODEL, tiny_model.write(service.dir / MODEL, quote=3), *service.place)
        service.admin_key = service.luthier("admin-key", "create", *service.place)
        projects = service.client(admin_api_key=service.admin_key).admin.organization.projects
        service.neighbour = projects.service_accounts.create(projects.create(name="neighbour").id, name="kit").api_key.value
        wait_until(f"{MODEL} answers", lambda: service.client().completions.create(model=MODEL, prompt="a", max_tokens=1))
        return service

    def run_kit(self, form, sdk=None):
        """Every check of every level, through an older SDK or this Python's own."""
        service = self.service(form)
        python = sys.executable if sdk is None else ROOT / f"target/test-tools/openai-{sdk}/bin/python"
        results = service.dir / "kit.json"
        done = subprocess.run(
            [python, PROGRAM, "--base-url", service.base_url, "--api-key", service.key, "--base-model", MODEL,
             "--admin-key", service.admin_key, "--api-key-2", service.neighbour, "--webhook-listen", f"127.0.0.1:{free_port()}",
             "--fail-on", "nice", "--json", results, "--poll", "0.3", "--job-timeout", "300"],
            capture_output=True, text=True, timeout=900, env={**os.environ, "EMBED_MODEL": MODEL})
        print(*done.stdout.strip().splitlines()[::len(done.stdout.strip().splitlines()) - 1], sep="\n", file=sys.stderr)
        told = json.loads(results.read_text())["results"]
        self.assertGreater(len(told), 90, done.stdout[-2000:])
        short = {check["name"]: f"{check['status']}: {check['msg']}" for check in told if check["status"] != "pass"}
        unknown = f"skip: SDK {json.loads(results.read_text())['sdk']} has no "
        undocumented = {name: message for name, message in short.items()
                        if DOCUMENTED.get(name, "\0") not in message and not message.startswith(unknown)}
        self.assertEqual(undocumented, {}, f"{done.stdout[-4000:]}\n{done.stderr[-2000:]}")
        self.assertLessEqual(set(DOCUMENTED), set(short), "documented as missing, and there")

    def test_the_embedded_form_conforms(self):
        self.run_kit(EmbeddedWithWebhooks)

    def test_the_production_form_conforms(self):
        self.run_kit(ProductionWithWebhooks)

    def test_the_embedded_form_conforms_to_openai_python_1(self):
        self.run_kit(EmbeddedWithWebhooks, "1.109.1")

    def test_the_production_form_conforms_to_openai_python_1(self):
        self.run_kit(ProductionWithWebhooks, "1.109.1")

    def test_the_embedded_form_conforms_to_openai_python_2(self):
        self.run_kit(EmbeddedWithWebhooks, "2.54.0")

    def test_the_production_form_conforms_to_openai_python_2(self):
        self.run_kit(ProductionWithWebhooks, "2.54.0")


if __name__ == "__main__":
    unittest.main()
