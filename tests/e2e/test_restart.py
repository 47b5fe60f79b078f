"""Everything is still there after a stop, a crash and a new start; the embedded form."""

import signal
import subprocess
import unittest

from service import LUTHIER, MODEL, Embedded, environment, examples, finish, wait_until


class Restart(unittest.TestCase):
    def setUp(self):
        self.service = Embedded()
        self.client = self.service.client()
        self.addCleanup(self.service.close)

    def order(self, n_epochs):
        file = self.client.files.create(file=("train.jsonl", examples(60)), purpose="fine-tune")
        return self.client.fine_tuning.jobs.create(
            model=MODEL, training_file=file.id,
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": n_epochs, "batch_size": 4}}})

    def restart(self, sig):
        self.service.stop("up", sig, limit_s=60)
        self.service.start()
        self.client = self.service.client()

    def test_a_stop_and_a_crash_in_the_middle_of_a_job_lose_nothing(self):
        job = self.order(n_epochs=40)
        for sig in (signal.SIGTERM, signal.SIGKILL):
            wait_until("the job runs", lambda: self.client.fine_tuning.jobs.retrieve(job.id).status == "running")
            self.restart(sig)
        ended = finish(self.client, job.id)
        self.assertEqual(ended.status, "succeeded", f"{ended.error}\n{self.service.logs()}")
        reply = self.client.chat.completions.create(
            model=ended.fine_tuned_model, messages=[{"role": "user", "content": "Hi"}], max_tokens=2)
        self.assertEqual(reply.usage.completion_tokens, 2)

    def test_a_second_service_on_the_same_directory_is_refused(self):
        done = subprocess.run(
            [LUTHIER, "up", "--data-dir", str(self.service.data_dir), "--listen", "127.0.0.1:0"],
            capture_output=True, text=True, timeout=60, env=environment())
        self.assertNotEqual(done.returncode, 0)
        self.assertIn(str(self.service.data_dir), done.stderr)
