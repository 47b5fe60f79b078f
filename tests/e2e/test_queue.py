"""What jobs say of the time to come: when they end, how many go before them, when they start; in both forms."""

import time
import unittest

from service import MODEL, Embedded, OneService, Production, examples, finish, wait_until


class Queue(OneService):
    """Mixed into one class per form."""

    def test_who_waits_knows_its_place_and_who_runs_its_end(self):
        client = self.service.client()
        jobs, train = client.fine_tuning.jobs, self.upload(examples(400))
        long = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 50, "batch_size": 1}}}
        ids = [jobs.create(model=MODEL, training_file=train, method=long).id for _ in range(self.n_workers + 3)]

        def settled():
            listed = {job.id: job for job in jobs.list(limit=len(ids)).data}
            mine = [listed[i] for i in ids]
            running = [job for job in mine if job.status == "running" and job.estimated_finish]
            # Those whose files were judged first are first; several are judged at once.
            waiting = [job for job in mine if job.status == "queued" and job.x_queue_position is not None]
            waiting.sort(key=lambda job: job.x_queue_position)
            starts = [job for job in waiting if job.x_estimated_start]
            ready = len(running) == len(starts) == self.n_workers and len(waiting) == 3
            return (running, waiting) if ready else None

        running, waiting = wait_until("jobs run and wait", settled)
        self.assertEqual([job.x_queue_position for job in waiting], [0, 1, 2])
        for job in running:
            self.assertIsNone(job.x_queue_position)
            self.assertIsNone(job.x_estimated_start)
            self.assertTrue(time.time() - 5 <= job.estimated_finish <= time.time() + 3600, job.estimated_finish)
        ends = sorted(job.estimated_finish for job in running)
        # As many as there are workers know their start; the look at the queue may be a second older than the jobs.
        for job, end in zip(waiting, ends):
            self.assertAlmostEqual(job.x_estimated_start, end, delta=60)
        self.assertTrue(all(job.x_estimated_start is None for job in waiting[self.n_workers:]))
        self.assertEqual(jobs.retrieve(waiting[0].id).x_queue_position, 0)
        for i in reversed(ids):
            jobs.cancel(i)
        for i in ids:
            job = finish(client, i)
            told = (job.status, job.estimated_finish, job.x_queue_position, job.x_estimated_start)
            self.assertEqual(told, ("cancelled", None, None, None))


class EmbeddedQueue(Queue, unittest.TestCase):
    make = Embedded
    n_workers = 1


class ProductionQueue(Queue, unittest.TestCase):
    make = Production
    n_workers = Production.n_workers


if __name__ == "__main__":
    unittest.main()
