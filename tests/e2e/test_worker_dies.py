"""kill -9 of a worker while it trains: the job ends on another worker with the same adapter bytes."""

import io
import signal
import unittest
import zipfile

from service import MODEL, Production, examples, export, finish, wait_until

ORDER = dict(
    model=MODEL, seed=11,
    method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 12, "batch_size": 4}}},
)


class WorkerDies(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.service = Production()
        cls.client = cls.service.client()

    @classmethod
    def tearDownClass(cls):
        cls.service.close()

    def adapter(self, model):
        with zipfile.ZipFile(io.BytesIO(export(self.service, model))) as archive:
            return archive.read("adapter_model.safetensors")

    def order(self, suffix):
        file = self.client.files.create(file=("train.jsonl", examples(160)), purpose="fine-tune")
        return self.client.fine_tuning.jobs.create(training_file=file.id, suffix=suffix, **ORDER)

    def test_a_killed_worker_costs_nothing_but_time(self):
        undisturbed = finish(self.client, self.order("calm").id)
        self.assertEqual(undisturbed.status, "succeeded", f"{undisturbed.error}\n{self.service.logs()}")

        job = self.order("storm")
        database = self.service.database
        wait_until("a checkpoint exists", lambda: self.service.psql(
            f"select count(*) from checkpoints where job_id = '{job.id}'", database) not in ("", "0"))
        victim = self.trains(job.id)
        self.service.stop(victim, signal.SIGKILL)
        ended = finish(self.client, job.id)
        self.assertEqual(ended.status, "succeeded", f"{ended.error}\n{self.service.logs()}")
        attempts = self.service.psql(f"select count(*) from attempts where job_id = '{job.id}'", database)
        self.assertGreaterEqual(int(attempts), 2, "the worker that was killed was not training")
        self.assertEqual(self.adapter(ended.fine_tuned_model), self.adapter(undisturbed.fine_tuned_model))

        reply = self.client.chat.completions.create(
            model=ended.fine_tuned_model, messages=[{"role": "user", "content": "What is 3+3?"}], max_tokens=4)
        self.assertEqual(reply.usage.completion_tokens, 4)
        messages = [e.message for e in self.client.fine_tuning.jobs.list_events(job.id, limit=100)]
        steps = [m.split(":")[0] for m in messages if m.startswith("Step ")]
        self.assertEqual(len(steps), len(set(steps)), "a step was told twice")

    def trains(self, job_id):
        """The name of the worker process that holds the job, found by its log."""
        def holder():
            for name in ("worker-0", "worker-1"):
                if job_id in (self.service.dir / f"{name}.log").read_text(errors="replace"):
                    return name
            return None

        return wait_until("a worker says that it trains the job", holder)


if __name__ == "__main__":
    unittest.main()
