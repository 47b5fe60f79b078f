"""The main job through openai-python, in both forms."""

import io
import json
import shutil
import unittest
import urllib.error
import zipfile

import openai

import tiny_model
from service import MODEL, ROOT, Embedded, Production, examples, export, finish, wait_until

# Folders of weights, one of each family at least.
FIXTURES = ROOT / "engine" / "tests" / "fixtures"
QUESTION = [{"role": "user", "content": "What is 3+3?"}]


class MainJob:
    """Mixed into one class per form."""

    @classmethod
    def setUpClass(cls):
        cls.service = cls.make()
        cls.client = cls.service.client()
        train = cls.client.files.create(file=("train.jsonl", examples(24)), purpose="fine-tune")
        valid = cls.client.files.create(file=("valid.jsonl", examples(10, 100)), purpose="fine-tune")
        job = cls.client.fine_tuning.jobs.create(
            model=MODEL, training_file=train.id, validation_file=valid.id, suffix="e2e", seed=7,
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 4, "batch_size": 4}}},
        )
        cls.job = finish(cls.client, job.id)

    @classmethod
    def tearDownClass(cls):
        cls.service.close()

    def setUp(self):
        self.assertEqual(self.job.status, "succeeded", f"{self.job.error}\n{self.service.logs()}")

    def test_a_job_ends_with_a_model_a_result_file_and_a_story(self):
        self.assertRegex(self.job.fine_tuned_model, rf"^ft:{MODEL}:[^:]+:e2e:\w{{8}}$")
        self.assertGreater(self.job.trained_tokens, 0)
        csv = self.client.files.content(self.job.result_files[0]).read().decode().splitlines()
        self.assertEqual(csv[0], "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy")
        self.assertEqual(len(csv), 1 + 24)
        first, last = (float(line.split(",")[1]) for line in (csv[1], csv[-1]))
        self.assertLess(last, first, "the loss did not fall")
        events = list(self.client.fine_tuning.jobs.list_events(self.job.id, limit=100))
        self.assertEqual(events[0].message, "The job has successfully completed")
        self.assertEqual(events[-1].message, f"Created fine-tuning job: {self.job.id}")

    def test_the_tuned_model_answers_otherwise_than_its_base(self):
        def logprob(model):
            reply = self.client.chat.completions.create(
                model=model, messages=QUESTION, max_tokens=1, temperature=0, logprobs=True)
            return reply.choices[0].logprobs.content[0].logprob

        self.assertNotAlmostEqual(logprob(MODEL), logprob(self.job.fine_tuned_model), places=3)

    def test_a_stream_carries_the_same_text_as_the_whole_answer(self):
        ask = dict(model=self.job.fine_tuned_model, messages=QUESTION, max_tokens=24, temperature=0)
        whole = self.client.chat.completions.create(**ask)
        chunks = list(self.client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        self.assertEqual(text, whole.choices[0].message.content)
        self.assertEqual(chunks[-1].usage, whole.usage)

    def test_checkpoints_of_the_last_epochs_answer_by_name(self):
        checkpoints = list(self.client.fine_tuning.jobs.checkpoints.list(self.job.id))
        self.assertEqual([c.step_number for c in checkpoints], [24, 18, 12])
        self.assertEqual(checkpoints[0].fine_tuned_model_checkpoint, self.job.fine_tuned_model)
        for checkpoint in checkpoints:
            reply = self.client.chat.completions.create(
                model=checkpoint.fine_tuned_model_checkpoint, messages=QUESTION, max_tokens=2)
            self.assertEqual(reply.usage.completion_tokens, 2)

    def test_the_adapter_is_exported_as_a_peft_folder(self):
        with zipfile.ZipFile(io.BytesIO(export(self.service, self.job.fine_tuned_model))) as archive:
            self.assertLessEqual({"adapter_config.json", "adapter_model.safetensors"}, set(archive.namelist()))

    def test_the_whole_model_is_exported_and_answers_as_the_tuned_one(self):
        """Merged and as GGUF, each installed as a base model of its own."""
        folder = self.service.dir / "merged"
        with zipfile.ZipFile(io.BytesIO(export(self.service, self.job.fine_tuned_model, "format=merged"))) as archive:
            self.assertIsNone(archive.testzip())
            self.assertEqual(set(archive.namelist()), {
                "README.md", "config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"})
            archive.extractall(folder)
        gguf = self.service.dir / "tuned.gguf"
        gguf.write_bytes(export(self.service, self.job.fine_tuned_model, "format=gguf&type=f32"))

        def answer(model):
            return self.client.chat.completions.create(model=model, messages=QUESTION, max_tokens=12, temperature=0)

        tuned = answer(self.job.fine_tuned_model).choices[0].message.content
        for name, path in (("tuned-merged", folder), ("tuned-gguf", gguf)):
            self.service.luthier("model", "add", name, path, *self.service.place)
            installed = wait_until(f"{name} answers", lambda: answer(name))
            self.assertEqual(installed.choices[0].message.content, tuned, name)

    def test_a_model_of_every_family_is_added_and_answers(self):
        """The tiny models that transformers has made for the engine's tests, with a tokenizer beside them."""
        names = []
        for fixture in sorted(FIXTURES.glob("tiny_*")):
            folder = self.service.dir / fixture.name
            folder.mkdir()
            for path in (fixture / "config.json", *fixture.glob("model*")):
                shutil.copy(path, folder)
            config = json.loads((folder / "config.json").read_text())
            tiny_model.write_tokenizer(folder, config["vocab_size"])
            names.append(fixture.name.replace("_", "-"))
            self.service.luthier("model", "add", names[-1], folder, *self.service.place)
        self.assertGreaterEqual(len(names), 12)
        for name in names:
            def answer():
                return self.client.chat.completions.create(
                    model=name, messages=QUESTION, max_tokens=3, logit_bias={"1": -100, "2": -100})

            reply = wait_until(f"{name} answers", answer)
            self.assertIn(reply.usage.completion_tokens, (1, 2, 3), name)
            self.assertGreater(reply.usage.prompt_tokens, 20, name)

    def test_a_quantised_gguf_file_is_a_base_to_train_on(self):
        gguf = self.service.dir / "base-q8_0.gguf"
        gguf.write_bytes(export(self.service, self.job.fine_tuned_model, "format=gguf&type=q8_0"))
        self.service.luthier("model", "add", "base-q8_0", gguf, *self.service.place)
        train = self.client.files.create(file=("train.jsonl", examples(12)), purpose="fine-tune")
        hyperparameters = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 10}

        def create():
            return self.client.fine_tuning.jobs.create(
                model="base-q8_0", training_file=train.id,
                method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}})

        job = finish(self.client, wait_until("the model is there", create).id)
        self.assertEqual(job.status, "succeeded", job.error)
        losses = [m.train_loss for c in self.client.fine_tuning.jobs.checkpoints.list(job.id) for m in [c.metrics]]
        self.assertTrue(losses and all(loss is not None and 0 < loss < 20 for loss in losses), losses)
        reply = self.client.chat.completions.create(model=job.fine_tuned_model, messages=QUESTION, max_tokens=4)
        self.assertEqual(reply.usage.completion_tokens, 4)
        folder = self.service.dir / "from-q8_0"
        with zipfile.ZipFile(io.BytesIO(export(self.service, job.fine_tuned_model, "format=merged"))) as archive:
            archive.extractall(folder)
        self.assertTrue((folder / "model.safetensors").is_file())

    def test_an_export_that_cannot_be_made_names_the_parameter(self):
        for query, param in (("format=onnx", "format"), ("format=gguf&type=q3", "type"), ("format=peft&type=f16", "type")):
            with self.assertRaises(urllib.error.HTTPError) as caught:
                export(self.service, self.job.fine_tuned_model, query)
            self.assertEqual((caught.exception.code, json.load(caught.exception)["error"]["param"]), (400, param))

    def test_a_bad_file_fails_the_job_and_names_every_bad_line(self):
        lines = examples(12).splitlines()
        lines[4], lines[8] = b'{"messages": [oops', b'{"messages": [{"role": "robot", "content": "x"}]}'
        bad = self.client.files.create(file=("bad.jsonl", b"\n".join(lines)), purpose="fine-tune")
        job = self.client.fine_tuning.jobs.create(model=MODEL, training_file=bad.id)
        job = finish(self.client, job.id)
        self.assertEqual((job.status, job.error.code), ("failed", "invalid_training_file"))
        self.assertEqual(job.error.param, "training_file")
        story = "\n".join(e.message for e in self.client.fine_tuning.jobs.list_events(job.id) if e.level == "error")
        self.assertIn("line 5", story.lower())
        self.assertIn("line 9", story.lower())

    def test_a_cancelled_job_stays_cancelled(self):
        train = self.client.files.create(file=("train.jsonl", examples(200)), purpose="fine-tune")
        job = self.client.fine_tuning.jobs.create(
            model=MODEL, training_file=train.id,
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 50, "batch_size": 1}}})
        wait_until("the job runs", lambda: self.client.fine_tuning.jobs.retrieve(job.id).status == "running")
        self.client.fine_tuning.jobs.cancel(job.id)
        self.assertEqual(finish(self.client, job.id).status, "cancelled")
        with self.assertRaises(openai.BadRequestError):
            self.client.fine_tuning.jobs.cancel(job.id)

    def test_a_wrong_key_and_another_project_see_nothing(self):
        with self.assertRaises(openai.AuthenticationError):
            self.service.client("sk-proj-wrong").models.list()


class EmbeddedMainJob(MainJob, unittest.TestCase):
    make = Embedded


class ProductionMainJob(MainJob, unittest.TestCase):
    make = Production
