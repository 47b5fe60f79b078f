"""Adapters: archives and weights with tricks, and bytes that change where they are stored."""

import io
import json
import struct
import zipfile
from pathlib import Path

from attack import MODEL, MULTIPART, form, in_both_forms, quoted, tiny_model

CONFIG = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": MODEL, "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"],
          "bias": "none", "lora_dropout": 0.0}
FLOATS = {"F32": (4, "f"), "F16": (2, "e")}


def tensors(r=2, hidden=tiny_model.HIDDEN, value=0.01):
    shapes = {}
    for i in range(tiny_model.LAYERS):
        name = f"base_model.model.model.layers.{i}.self_attn.q_proj.lora"
        shapes |= {f"{name}_A.weight": (r, hidden), f"{name}_B.weight": (hidden, r)}
    return {name: (shape, [value] * (shape[0] * shape[1])) for name, shape in shapes.items()}


def weights(tensors, dtype="F32"):
    """A safetensors file."""
    width, letter = FLOATS[dtype]
    header, data = {}, b""
    for name, (shape, values) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + width * len(values)]}
        data += struct.pack(f"<{len(values)}{letter}", *values)
    return with_header(json.dumps(header).encode(), data)


def with_header(header, data=b""):
    return struct.pack("<Q", len(header)) + header + data


def archive(weights, config=CONFIG, more=(), name="adapter_model.safetensors"):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zip:
        zip.writestr("adapter_config.json", config if isinstance(config, (str, bytes)) else json.dumps(config))
        if weights is not None:
            zip.writestr(name, weights)
        for entry, content in more:
            zip.writestr(entry, content)
    return file.getvalue()


def link():
    entry = zipfile.ZipInfo("adapter_model.safetensors")
    entry.create_system, entry.external_attr = 3, 0o120777 << 16
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zip:
        zip.writestr("adapter_config.json", json.dumps(CONFIG))
        zip.writestr(entry, "/etc/passwd")
    return file.getvalue()


@in_both_forms
class Adapters:
    def bring(self, archive):
        body = form([("base_model", None, MODEL), ("file", "adapter.zip", archive)])
        return self.send("POST", "/v1/x/adapters", body, headers={"Content-Type": MULTIPART})

    def test_s78_weights_and_archives_with_tricks(self):
        good = tensors()
        first = next(iter(good))
        empty = {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(400_000)}
        entry = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
        not_a_number = {**good, first: (good[first][0], [float("nan")] * len(good[first][1]))}
        deep = b"[" * 100_000
        tricks = {
            "a header of 2^64 - 1 bytes": archive(b"\xff" * 8 + b"{}"),
            "a header longer than the file": archive(struct.pack("<Q", 1000) + b"{}"),
            "a tensor twice": archive(with_header(f'{{"a":{entry},"a":{entry}}}'.encode(), b"\0" * 4)),
            "400,000 empty tensors": archive(with_header(json.dumps(empty).encode())),
            "a nesting header": archive(with_header(deep)),
            "another shape": archive(weights(tensors(hidden=7))),
            "NaN": archive(weights(not_a_number)),
            "infinite": archive(weights({**good, first: (good[first][0], [float("inf")] * len(good[first][1]))})),
            "a tensor too many": archive(weights({**good, "evil": ((1, 1), [1.0])})),
            "a tensor missing": archive(weights({k: v for k, v in good.items() if k != first})),
            "rank 10^6": archive(weights(good), {**CONFIG, "r": 10**6}),
            "rank -1": archive(weights(good), {**CONFIG, "r": -1}),
            "rank 1.5": archive(weights(good), {**CONFIG, "r": 1.5}),
            "a regular expression": archive(weights(good), {**CONFIG, "target_modules": "(a+)+$" * 10_000}),
            "a nesting configuration": archive(weights(good), b'{"a":' + deep),
            "no configuration": archive(weights(good), b""),
            "pickled": archive(b"\x80\x02}q\x00.", name="adapter_model.bin"),
            "pickled beside": archive(weights(good), more=[("training_args.pkl", b"\x80\x02.")]),
            "a way out": archive(weights(good), more=[("../../evil", b"x")]),
            "a template": archive(weights(good), more=[("chat_template.jinja", b"{{ 7 * 7 }}")]),
            "a link": link(),
            "no archive": b"\x80\x02}q\x00.",
            "a bomb": archive(b"\0" * (200 << 20)),
            "many entries": archive(weights(good), more=[(f"{i}", b"") for i in range(5_000)]),
        }
        kept = self.target.objects(self.a.project)
        for name, content in tricks.items():
            with self.subTest(name):
                self.refused(self.bring(content), (400, 413))
        self.assertEqual(self.target.objects(self.a.project).keys() - kept.keys(), set(), "a refused adapter left objects behind")

    def test_s79_an_adapter_of_which_a_byte_changed(self):
        brought = self.bring(archive(weights(tensors(value=0.02))))
        self.assertEqual(brought.status, 200, brought)
        # The worker has these weights already, so they change in a folder that it has not met.
        model = brought.json()["id"]
        prefix = self.target.rows(f"select adapter_object_prefix from models where name = '{model}'")[0][0]
        stored, = [path for path in self.target.objects() if prefix in path and path.endswith("adapter_model.safetensors")]
        moved = prefix + "x"
        content = bytearray(Path(stored).read_bytes())
        content[-1] ^= 1
        place = Path(stored.replace(prefix, moved))
        place.parent.mkdir(parents=True)
        place.write_bytes(content)
        config = Path(stored).with_name("adapter_config.json")
        (place.parent / config.name).write_bytes(config.read_bytes())
        self.assertEqual(self.chat(model=model).status, 200)
        self.target.execute(f"update models set adapter_object_prefix = '{moved}' where name = '{model}'")
        reply = self.target.send_unjudged("POST", "/v1/chat/completions", {
            "model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1})
        self.assertEqual(reply.status, 503, reply)
        self.assertEqual(set(reply.error), {"message", "type", "param", "code"})
        self.assertEqual(self.send("DELETE", f"/v1/models/{quoted(model)}").status, 200)
