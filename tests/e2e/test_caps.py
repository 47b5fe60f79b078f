"""What a project may store and train at the same time, as its administrator sets it and its client meets it, in both forms."""

import unittest

import openai

from service import MODEL, Embedded, OneService, Production, examples, finish, wait_until


class Caps(OneService):
    """Mixed into one class per form."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        admin_key = cls.service.luthier("admin-key", "create", *cls.service.place)
        cls.projects = cls.service.client("unused", admin_api_key=admin_key).admin.organization.projects

    def project(self, name):
        """The id of a new project, and a client of it that tries nothing twice."""
        project = self.projects.create(name=name)
        caps = (project.x_max_stored_bytes, project.x_max_unfinished_jobs, project.x_max_running_jobs)
        self.assertEqual(caps, (None, None, None))
        key = self.projects.service_accounts.create(project.id, name="bot").api_key.value
        return project.id, self.service.client(key, max_retries=0)

    def cap(self, project, **caps):
        self.projects.update(project, extra_body=caps)
        found = self.projects.retrieve(project)
        self.assertEqual({name: getattr(found, name) for name in caps}, caps)

    def refused(self, kind, ask, **error):
        with self.assertRaises(kind) as refused:
            ask()
        message = refused.exception.body.pop("message")
        self.assertEqual(refused.exception.body, error)
        return message

    def test_a_project_stores_what_it_may(self):
        project, bot = self.project("small")
        content = examples(12)

        def upload():
            return bot.files.create(file=("train.jsonl", content), purpose="fine-tune")

        def announce():
            return bot.uploads.create(
                bytes=len(content), filename="train.jsonl", mime_type="text/jsonl", purpose="fine-tune")

        n_bytes = 2 * len(content) - 1
        self.cap(project, x_max_stored_bytes=n_bytes)
        first = upload()
        for ask, param in ((upload, None), (announce, "bytes")):
            message = self.refused(
                openai.BadRequestError, ask, type="invalid_request_error", param=param, code="storage_limit_exceeded")
            self.assertIn(f"may store {n_bytes} bytes of files, and {len(content)} are stored", message)
            self.assertIn("ask an administrator for a higher x_max_stored_bytes", message)
        self.assertEqual([file.id for file in bot.files.list()], [first.id])
        # Another project has its own room.
        self.upload(content)
        bot.files.delete(first.id)
        second = upload()
        self.cap(project, x_max_stored_bytes=0)
        self.assertEqual(bot.files.content(second.id).read(), content)
        self.refused(openai.BadRequestError, upload, type="invalid_request_error", param=None, code="storage_limit_exceeded")
        self.cap(project, x_max_stored_bytes=None)
        upload()

    def test_a_project_trains_what_it_may(self):
        project, bot = self.project("busy")
        self.cap(project, x_max_unfinished_jobs=2, x_max_running_jobs=1)
        content = examples(400)
        train = bot.files.create(file=("train.jsonl", content), purpose="fine-tune").id
        method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 50, "batch_size": 1}}}

        def make():
            return bot.fine_tuning.jobs.create(model=MODEL, training_file=train, method=method).id

        def standing(client, job):
            job = client.fine_tuning.jobs.retrieve(job)
            return job.status, job.x_queue_position

        def runs_alone():
            jobs = sorted(bot.fine_tuning.jobs.list(), key=lambda job: job.status)
            statuses = [(job.status, job.x_queue_position) for job in jobs]
            return [job.id for job in jobs] if statuses == [("queued", None), ("running", None)] else None

        made = [make(), make()]
        message = self.refused(
            openai.RateLimitError, make, type="rate_limit_error", param=None, code="rate_limit_exceeded")
        self.assertIn("already has 2 unfinished fine-tuning jobs", message)
        self.assertIn("ask an administrator for a higher x_max_unfinished_jobs", message)
        waiting, running = wait_until("one runs, and the other waits for it", runs_alone)
        self.assertEqual({waiting, running}, set(made))
        # The next worker that is free takes another project's job, though it was made later.
        other = self.client.fine_tuning.jobs.create(model=MODEL, training_file=self.upload(content), method=method).id
        wait_until("the other project's is next", lambda: standing(self.client, other) == self.next)
        self.assertEqual(standing(bot, waiting), ("queued", None))
        self.client.fine_tuning.jobs.cancel(other)
        finish(self.client, other)
        self.cap(project, x_max_running_jobs=None)
        wait_until("the one that waits is next", lambda: standing(bot, waiting) == self.next)
        self.assertEqual(standing(bot, running), ("running", None))
        bot.fine_tuning.jobs.cancel(running)
        finish(bot, running)
        for job in (make(), waiting):
            bot.fine_tuning.jobs.cancel(job)
            finish(bot, job)


class CapsEmbedded(Caps, unittest.TestCase):
    make = Embedded
    # Its one worker is busy.
    next = ("queued", 0)


class CapsProduction(Caps, unittest.TestCase):
    make = Production
    next = ("running", None)


if __name__ == "__main__":
    unittest.main()
