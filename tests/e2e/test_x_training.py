"""The options beyond OpenAI's, training on from a tuned model, and adapters that come from elsewhere, in both forms."""

import io
import json
import unittest
import zipfile

import openai

from service import MODEL, Embedded, OneService, Production, examples, export, finish

QUESTION = [{"role": "user", "content": "What is 3+3?"}]


def row(question, answer):
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages}) + "\n"


class XTraining(OneService):
    """Mixed into one class per form."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.train_file = cls.upload(examples(12))

    def order(self, x_training=None, model=MODEL, training_file=None, n_epochs=1, **options):
        hyperparameters = {"n_epochs": n_epochs, "batch_size": 4}
        return self.client.fine_tuning.jobs.create(
            model=model, training_file=training_file or self.train_file, seed=7,
            method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
            extra_body={} if x_training is None else {"x_training": x_training}, **options)

    def train(self, *args, **kwargs):
        job = finish(self.client, self.order(*args, **kwargs).id)
        self.assertEqual(job.status, "succeeded", f"{job.error}\n{self.service.logs()}")
        return job

    def losses(self, job):
        csv = self.client.files.content(job.result_files[0]).read().decode().splitlines()
        return [float(line.split(",")[1]) for line in csv[1:]]

    def adapter(self, model):
        with zipfile.ZipFile(io.BytesIO(export(self.service, model))) as archive:
            return {name: archive.read(name) for name in archive.namelist()}

    def bring(self, files, folder="", **fields):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for name, content in files.items():
                archive.writestr(folder + name, content)
        return self.client.post(
            "/x/adapters", cast_to=object, body={"base_model": MODEL, **fields},
            files={"file": ("adapter.zip", packed.getvalue())},
            options={"headers": {"Content-Type": "multipart/form-data"}})

    def answer(self, model):
        reply = self.client.chat.completions.create(
            model=model, messages=QUESTION, max_tokens=12, temperature=0, logprobs=True)
        return [token.logprob for token in reply.choices[0].logprobs.content]

    def refused(self, param, call):
        with self.assertRaises(openai.BadRequestError) as caught:
            call()
        self.assertEqual(caught.exception.param, param, caught.exception.message)
        return caught.exception

    def test_the_adapter_is_as_it_was_asked_for(self):
        job = self.train({"adapter": {"r": 4, "alpha": 6, "target_modules": ["v_proj", "q_proj"]}})
        self.assertEqual(job.x_training["adapter"]["r"], 4)
        resolved = job.x_training["resolved"]
        self.assertEqual((resolved["adapter"]["alpha"], resolved["adapter"]["bias"]), (6.0, "none"))
        self.assertEqual(resolved["data"]["truncation"], "right")
        config = json.loads(self.adapter(job.fine_tuned_model)["adapter_config.json"])
        self.assertEqual(
            (config["r"], config["lora_alpha"], config["target_modules"]), (4, 6, ["q_proj", "v_proj"]))

    def test_each_option_of_the_engine_trains(self):
        ordinary = self.losses(self.train(n_epochs=4))
        for x_training, shown in OPTIONS:
            with self.subTest(x_training):
                job = self.train(x_training, n_epochs=4)
                losses = self.losses(job)
                self.assertLess(losses[-1], losses[0])
                if shown is SAME_LOSSES:
                    self.assertEqual(losses, ordinary)
                    continue
                self.assertNotEqual(losses, ordinary, "the option changed nothing")
                config = json.loads(self.adapter(job.fine_tuned_model)["adapter_config.json"])
                self.assertEqual({key: config[key] for key in shown}, shown)

    def test_what_is_unknown_or_does_not_go_together_is_refused_by_its_path(self):
        for x_training, param in [
            ({"adapter": {"foo": 1}}, "x_training.adapter.foo"),
            ({"update": "full"}, "x_training.update"),
            ({"adapter": {"r": 0}}, "x_training.adapter.r"),
            ({"adapter": {"dropout": 1.0}}, "x_training.adapter.dropout"),
            ({"optimizer": {"loraplus_lr_ratio": 0.5}}, "x_training.optimizer.loraplus_lr_ratio"),
            ({"precision": {"double_quant": True}}, "x_training.precision.double_quant"),
            ({"precision": {"base_weights": "int4"}}, "x_training.precision.base_weights"),
            ({"adapter": {"init": "pissa"}, "precision": {"base_weights": "nf4"}}, "x_training.adapter.init"),
            ({"data": {"max_length": 1_000_000}}, "x_training.data.max_length"),
            ({"data": {"truncation": "middle"}}, "x_training.data.truncation"),
            ({"data": {"format": "csv"}}, "x_training.data.format"),
        ]:
            with self.subTest(param):
                self.refused(param, lambda: self.order(x_training))

    def test_a_module_that_the_model_has_not_fails_the_job_by_name(self):
        job = finish(self.client, self.order({"adapter": {"target_modules": ["query_key_value"]}}).id)
        self.assertEqual((job.status, job.error.code), ("failed", "invalid_x_training"))
        self.assertEqual(job.error.param, "x_training.adapter")
        self.assertIn("query_key_value", job.error.message)

    def test_long_examples_are_cut_left_out_or_refused(self):
        long = row("What comes then? " * 3, "It is hard to say. " * 20)
        file = self.upload(examples(12) + long.encode() * 2)

        def ordered(truncation):
            data = {"max_length": 120, "truncation": truncation}
            return finish(self.client, self.order({"data": data}, training_file=file).id)

        tokens = {}
        for truncation in ("left", "right", "drop", "split"):
            job = ordered(truncation)
            self.assertEqual(job.status, "succeeded", f"{job.error}\n{self.service.logs()}")
            tokens[truncation] = job.trained_tokens
            story = [e.message for e in self.client.fine_tuning.jobs.list_events(job.id, limit=100)]
            said = {"drop": "left out", "split": "split"}.get(truncation, "cut")
            self.assertIn(f"2 example(s) of the training_file with more than 120 tokens were {said}", story)
        self.assertEqual(tokens["left"], tokens["drop"] + 2 * 120)
        self.assertEqual(tokens["right"], tokens["left"])
        self.assertGreater(tokens["split"], tokens["left"])
        job = ordered("error")
        self.assertEqual((job.status, job.error.code), ("failed", "invalid_training_file"))
        story = " ".join(e.message for e in self.client.fine_tuning.jobs.list_events(job.id) if e.level == "error")
        self.assertIn("line 13 ", story)
        self.assertIn("line 14 ", story)
        self.assertIn("more than max_length 120", story)

    def test_a_file_of_another_tool_trains_as_the_same_in_openais_form(self):
        chat, alpaca, text = "", "", ""
        for i in range(12):
            chat += row(f"Add.\n{i} and {i}", f"It is {2 * i}.")
            alpaca += json.dumps({"instruction": "Add.", "input": f"{i} and {i}", "output": f"It is {2 * i}."}) + "\n"
            text += json.dumps({"prompt": f"{i}+{i}=", "completion": str(2 * i)}) + "\n"
        alpaca_file = self.upload(alpaca.encode())
        as_alpaca = {"data": {"format": "alpaca"}}
        told = self.client.post(f"/x/files/{alpaca_file}/validate", cast_to=object, body={
            "model": MODEL, "x_training": as_alpaca})
        self.assertEqual((told["error"], told["training"]["n_examples"]), (None, 12))
        job = self.train(as_alpaca, training_file=alpaca_file, n_epochs=4)
        self.assertEqual(job.x_training["resolved"]["data"]["format"], "alpaca")
        same = self.train(training_file=self.upload(chat.encode()), n_epochs=4)
        self.assertEqual(job.trained_tokens, same.trained_tokens)
        self.assertEqual(self.losses(job), self.losses(same))
        completions = self.train(
            {"data": {"format": "prompt_completion"}}, training_file=self.upload(text.encode()), n_epochs=4)
        losses = self.losses(completions)
        self.assertLess(losses[-1], losses[0])
        self.assertLess(completions.trained_tokens, job.trained_tokens)

        unnamed = finish(self.client, self.order(training_file=alpaca_file).id)
        self.assertEqual((unnamed.status, unnamed.error.code), ("failed", "invalid_training_file"))
        self.assertIn('set x_training.data.format to "alpaca"', unnamed.error.message)

    def test_training_goes_on_from_a_tuned_model_where_it_ended(self):
        # Every batch is the same, so a loss depends on the adapter alone.
        same = row("What is 2+2?", "It is 4.").encode()
        file, valid = self.upload(same * 12), self.upload(same)
        first = self.train(training_file=file, n_epochs=2, validation_file=valid)
        newest = self.client.fine_tuning.jobs.checkpoints.list(first.id).data[0]
        ended = newest.metrics.full_valid_loss
        began = self.losses(first)[0]
        self.assertLess(ended, began)
        for model, options in [
            (first.fine_tuned_model, None),
            (MODEL, {"adapter": {"continue_from": first.fine_tuned_model}}),
        ]:
            second = self.train(options, model=model, training_file=file, n_epochs=2)
            self.assertEqual(second.model, model)
            adapter = second.x_training["resolved"]["adapter"]
            self.assertEqual(adapter["continue_from"], first.fine_tuned_model)
            losses = self.losses(second)
            # Both are the mean over the same labels, one summed over a batch of four.
            self.assertAlmostEqual(losses[0], ended, delta=1e-5)
            self.assertLess(losses[-1], ended)
        earlier = self.client.fine_tuning.jobs.checkpoints.list(first.id).data[-1].fine_tuned_model_checkpoint
        self.assertIn(":ckpt-step-", earlier)
        from_checkpoint = self.losses(self.train(model=earlier, training_file=file))
        self.assertTrue(ended < from_checkpoint[0] < began)

    def test_a_model_trained_on_nf4_answers_and_goes_on_there(self):
        # Every batch is the same, so a loss depends on the base and the adapter alone.
        same = row("What is 2+2?", "It is 4.").encode()
        file, valid = self.upload(same * 12), self.upload(same)
        nf4 = {"precision": {"base_weights": "nf4"}}
        first = self.train(nf4, training_file=file, n_epochs=2, validation_file=valid)
        precision = first.x_training["resolved"]["precision"]
        self.assertEqual((precision["base_weights"], precision["double_quant"]), ("nf4", True))
        newest = self.client.fine_tuning.jobs.checkpoints.list(first.id).data[0]
        ended = newest.metrics.full_valid_loss
        second = self.train(model=first.fine_tuned_model, training_file=file, n_epochs=2)
        self.assertEqual(second.x_training["resolved"]["precision"], precision)
        self.assertAlmostEqual(self.losses(second)[0], ended, delta=1e-5)
        stored = {"precision": {"base_weights": "stored"}}
        on_stored = self.losses(self.train(stored, model=first.fine_tuned_model, training_file=file))
        self.assertGreater(abs(on_stored[0] - ended), 1e-5)
        with zipfile.ZipFile(io.BytesIO(export(self.service, first.fine_tuned_model, "format=merged"))) as merged:
            self.assertIn("held as nf4_double_quant", merged.read("README.md").decode())
        brought = self.bring(self.adapter(first.fine_tuned_model))["id"]
        self.assertNotEqual(self.answer(first.fine_tuned_model), self.answer(brought))

    def test_what_would_make_it_another_adapter_is_refused(self):
        tuned = self.train().fine_tuned_model
        self.refused("x_training.adapter.r", lambda: self.order({"adapter": {"r": 8}}, model=tuned))
        self.train({"adapter": {"r": 16, "dropout": 0.1}}, model=tuned)
        absent = {"adapter": {"continue_from": "ft:tiny-llama:luthier::absent00"}}
        self.refused("x_training.adapter.continue_from", lambda: self.order(absent))

    def test_a_brought_adapter_is_talked_to_and_trained_on(self):
        job = self.train(n_epochs=4)
        files = self.adapter(job.fine_tuned_model)
        model = self.bring(files, folder="my-adapter/", suffix="brought")
        self.assertRegex(model["id"], rf"^ft:{MODEL}:[^:]+:brought:\w{{8}}$")
        self.assertIn(model["id"], [m.id for m in self.client.models.list()])

        self.assertEqual(self.answer(model["id"]), self.answer(job.fine_tuned_model))
        again = self.adapter(model["id"])
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            self.assertEqual(again[name], files[name])
        self.train(model=model["id"])
        self.assertTrue(self.client.models.delete(model["id"]).deleted)
        self.assertNotIn(model["id"], [m.id for m in self.client.models.list()])

    def test_what_is_no_adapter_of_the_base_is_refused(self):
        files = self.adapter(self.train().fine_tuned_model)
        config, weights = files["adapter_config.json"], files["adapter_model.safetensors"]
        other_rank = json.dumps({**json.loads(config), "r": 5})
        for bad, word in [
            ({"adapter_config.json": config, "adapter_model.bin": b"\x80\x02}q\x00."}, "adapter_model.bin"),
            ({"adapter_config.json": config, "adapter_model.safetensors": weights[:-4]}, "safetensors"),
            ({"adapter_config.json": other_rank, "adapter_model.safetensors": weights}, "lora_A"),
            ({"adapter_config.json": config}, "adapter_model.safetensors"),
            ({**files, "../evil": b""}, "evil"),
        ]:
            with self.subTest(word):
                refusal = self.refused("file", lambda: self.bring(bad))
                self.assertIn(word, refusal.message)
        n_models = len(self.client.models.list().data)
        self.refused("base_model", lambda: self.bring(files, base_model="absent"))
        self.assertEqual(len(self.client.models.list().data), n_models)


# To the same bits: more work in less memory, or passes that so few tokens fit into either way.
SAME_LOSSES = object()
MLP = r"model\.layers\.\d+\.mlp\.(gate|up|down)_proj"

# One job each, and what its adapter_config.json says.
OPTIONS = [
    ({"adapter": {"target_modules": MLP}}, {"target_modules": MLP}),
    ({"adapter": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 5}}},
     {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 5}}),
    ({"adapter": {"use_rslora": True}}, {"use_rslora": True}),
    ({"adapter": {"use_dora": True, "dropout": 0.05}}, {"use_dora": True, "lora_dropout": 0.05}),
    ({"adapter": {"bias": "all", "modules_to_save": ["embed_tokens"]}},
     {"bias": "all", "modules_to_save": ["embed_tokens"]}),
    ({"adapter": {"init": "gaussian"}}, {"init_lora_weights": "gaussian"}),
    ({"adapter": {"init": "pissa", "r": 4}}, {"r": 8, "init_lora_weights": True}),
    ({"optimizer": {"loraplus_lr_ratio": 4}}, {}),
    ({"precision": {"compute": "bf16"}}, {}),
    ({"precision": {"compute": "fp32", "base_weights": "auto"}}, SAME_LOSSES),
    ({"precision": {"base_weights": "int8"}}, {}),
    ({"precision": {"base_weights": "fp8"}}, {}),
    ({"precision": {"base_weights": "nf4", "double_quant": False}, "adapter": {"use_dora": True}}, {"use_dora": True}),
    ({"memory": {"gradient_checkpointing": "none"}}, SAME_LOSSES),
    ({"memory": {"gradient_checkpointing": "selective"}}, SAME_LOSSES),
    ({"memory": {"gradient_checkpointing": "full"}}, SAME_LOSSES),
    ({"data": {"packing": "none"}}, {}),
    ({"data": {"packing": "greedy"}}, SAME_LOSSES),
]


class EmbeddedXTraining(XTraining, unittest.TestCase):
    make = Embedded


class ProductionXTraining(XTraining, unittest.TestCase):
    make = Production
