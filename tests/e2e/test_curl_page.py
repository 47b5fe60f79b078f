"""docs/curl.md does what it says: every `sh` block of the page, in order, in one shell."""

import os
import re
import subprocess
import unittest

from service import MODEL, ROOT, Embedded, examples


class CurlPage(unittest.TestCase):
    def test_the_whole_job_with_curl_alone(self):
        service = Embedded()
        self.addCleanup(service.close)
        page = (ROOT / "docs/curl.md").read_text()
        blocks = re.findall(r"^```sh\n(.*?)^```$", page, re.S | re.M)
        self.assertGreaterEqual(len(blocks), 5, "the page lost its commands")
        work = service.dir / "curl"
        work.mkdir()
        (work / "train.jsonl").write_bytes(examples(20))
        done = subprocess.run(
            ["sh", "-eu", "-c", "\n".join(blocks)], cwd=work, capture_output=True, text=True, timeout=240,
            env={**os.environ, "BASE_URL": service.base_url, "API_KEY": service.key, "MODEL": MODEL})
        self.assertEqual(done.returncode, 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}\n{service.logs()}")
        self.assertIn('"succeeded"', done.stdout)
        self.assertIn('"chat.completion"', done.stdout)
        self.assertIn('\\"urgent\\"', done.stdout)
        self.assertIn('"open_ticket"', done.stdout)
        self.assertIn('"previous_response_id":"resp_', done.stdout)
