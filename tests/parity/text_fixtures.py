"""Writes text/tests/fixtures: chat-template renderings and token ids as transformers produces them."""

import json
import os
import shutil
import tempfile
import zipfile

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import conversations
import smollm2
import templates

TINY_VOCAB = 512


def _write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, ensure_ascii=False, indent=1)
        f.write("\n")


def _write_jsonl(path, rows):
    with open(path, "w", encoding="utf-8") as f:
        for row in rows:
            f.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")


def _train(pre_tokenizer, normalizer, specials):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=TINY_VOCAB - len(specials), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(conversations.corpus(), trainer)
    tokenizer.add_special_tokens(specials)
    assert tokenizer.get_vocab_size() == TINY_VOCAB, tokenizer.get_vocab_size()
    return tokenizer


def _write_tiny(out, tokenizer, config, template, template_in_own_file):
    os.makedirs(out, exist_ok=True)
    tokenizer.save(os.path.join(out, "tokenizer.json"))
    tokenizer_config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    if template_in_own_file:
        with open(os.path.join(out, "chat_template.jinja"), "w", encoding="utf-8") as f:
            f.write(template)
    else:
        tokenizer_config["chat_template"] = template
    _write_json(os.path.join(out, "tokenizer_config.json"), tokenizer_config)
    eos = tokenizer.token_to_id(config["eos_token"])
    _write_json(os.path.join(out, "config.json"), {"eos_token_id": eos, "max_position_embeddings": 2048, "vocab_size": TINY_VOCAB})


def _write_header(out):
    # Numbers in groups of up to three, words with one leading sign, contractions in any case.
    split = Regex(r"(?i:'[sdmt]|'ll|'ve|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    pre = pre_tokenizers.Sequence([pre_tokenizers.Split(split, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = _train(pre, None, specials)
    bos = tokenizer.token_to_id("<|begin_of_text|>")
    # Adds a second <|begin_of_text|> to whoever encodes a rendered template with add_special_tokens = true.
    tokenizer.post_processor = processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", bos)])
    config = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    _write_tiny(out, tokenizer, config, templates.HEADER_STYLE, template_in_own_file=False)


def _write_chatml(out):
    # Single digits and NFC normalisation; control tokens at the end of the vocabulary.
    split = Regex(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    pre = pre_tokenizers.Sequence([pre_tokenizers.Split(split, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = _train(pre, normalizers.NFC(), specials)
    config = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    _write_tiny(out, tokenizer, config, templates.CHATML_STYLE, template_in_own_file=True)


def _write_smollm2(out, cache):
    with tempfile.TemporaryDirectory() as tmp:
        gguf = smollm2.fetch_gguf(cache)
        smollm2.write_tokenizer(gguf, tmp)
        _write_json(os.path.join(tmp, "config.json"), {"eos_token_id": 2, "max_position_embeddings": 8192, "vocab_size": 49152})
        os.makedirs(out, exist_ok=True)
        with zipfile.ZipFile(os.path.join(out, "tokenizer.zip"), "w", zipfile.ZIP_DEFLATED, compresslevel=9) as z:
            for name in sorted(os.listdir(tmp)):
                entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
                entry.compress_type = zipfile.ZIP_DEFLATED
                z.writestr(entry, open(os.path.join(tmp, name), "rb").read())


class Oracle:
    """Renders and encodes as transformers does, and encodes control spellings in contents as plain text."""

    def __init__(self, folder):
        self.hf = PreTrainedTokenizerFast.from_pretrained(folder)
        self.plain = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
        with open(os.path.join(folder, "tokenizer.json"), encoding="utf-8") as f:
            definition = json.load(f)
        self.control = {t["content"]: t["id"] for t in definition["added_tokens"]}
        definition["added_tokens"], definition["post_processor"] = [], None
        for text in self.control:
            definition["model"]["vocab"].pop(text, None)
        self.plain = Tokenizer.from_str(json.dumps(definition))
        # Private-use stand-ins, one per control token, that no fixture contains.
        self.standins = {text: chr(0xE000 + i) for i, text in enumerate(self.control)}

    def render(self, conversation, messages=None, add_generation_prompt=None):
        return self.hf.apply_chat_template(
            conversation["messages"] if messages is None else messages,
            tools=conversation["tools"],
            tokenize=False,
            add_generation_prompt=conversation["add_generation_prompt"] if add_generation_prompt is None else add_generation_prompt,
        )

    def encode(self, text):
        encoding = self.hf(text, add_special_tokens=False, return_offsets_mapping=True)
        return encoding["input_ids"], encoding["offset_mapping"]

    def encode_separately(self, conversation):
        """Ids in which only the template's own control tokens become control tokens."""
        hidden = json.dumps(conversation["messages"], ensure_ascii=False)
        for text, standin in self.standins.items():
            hidden = hidden.replace(text, standin)
        rendered = self.render(conversation, json.loads(hidden))
        ids, piece, i = [], "", 0
        while i <= len(rendered):
            found = next((t for t in self.control if rendered.startswith(t, i)), None)
            if found is None and i < len(rendered):
                piece += rendered[i]
                i += 1
                continue
            for text, standin in self.standins.items():
                piece = piece.replace(standin, text)
            ids += self.plain.encode(piece, add_special_tokens=False).ids
            piece = ""
            if found is None:
                return ids
            ids.append(self.control[found])
            i += len(found)

    def label_ranges(self, conversation, end_of_turn):
        """Ranges of token indices that are labels: each assistant's content with its end-of-turn token."""
        full = self.render(conversation, add_generation_prompt=False)
        _, offsets = self.encode(full)
        assert all(a < b for a, b in offsets), conversation["id"]
        ranges = []
        for i, message in enumerate(conversation["messages"]):
            if message["role"] != "assistant":
                continue
            prefix = self.render(conversation, conversation["messages"][:i], True)
            upto = self.render(conversation, conversation["messages"][: i + 1], False)
            assert full.startswith(upto) and upto.startswith(prefix), conversation["id"]
            start, end = len(prefix), upto.rindex(end_of_turn) + len(end_of_turn)
            inside = [k for k, (a, b) in enumerate(offsets) if a < end and b > start]
            ranges.append([inside[0], inside[-1] + 1])
        return ranges


def _expected(oracle, folder, all_conversations, with_tools, end_of_turn):
    expected, labels, control = [], [], []
    for c in all_conversations:
        if c["tools"] and not with_tools:
            continue
        text = oracle.render(c)
        row = {"id": c["id"], "text": text}
        if c["id"].startswith("control"):
            row["ids"] = oracle.encode_separately(c)
            control.append(row)
            continue
        row["ids"] = oracle.encode(text)[0]
        # The two encoders are the same function wherever no content spells a control token.
        assert row["ids"] == oracle.encode_separately(c), c["id"]
        expected.append(row)
        if not c["tools"] and c["messages"][-1]["role"] == "assistant" and not c["add_generation_prompt"]:
            labels.append({"id": c["id"], "labels": oracle.label_ranges(c, end_of_turn)})
    _write_jsonl(os.path.join(folder, "expected.jsonl"), expected)
    _write_jsonl(os.path.join(folder, "labels.jsonl"), labels)
    _write_jsonl(os.path.join(folder, "control.jsonl"), control)
    print(f"{folder}: {len(expected)} renderings, {len(labels)} label masks, {len(control)} control spellings")


def make(out, cache):
    os.makedirs(out, exist_ok=True)
    everything = conversations.plain_conversations() + conversations.tool_conversations() + conversations.control_conversations()
    _write_jsonl(os.path.join(out, "conversations.jsonl"), everything)
    chatml, header, smol = (os.path.join(out, name) for name in ("chatml", "header", "smollm2"))
    _write_chatml(chatml)
    _write_header(header)
    _write_smollm2(smol, cache)
    _expected(Oracle(chatml), chatml, everything, True, "<|im_end|>")
    _expected(Oracle(header), header, everything, True, "<|eot_id|>")
    unpacked = tempfile.mkdtemp()
    with zipfile.ZipFile(os.path.join(smol, "tokenizer.zip")) as z:
        z.extractall(unpacked)
    _expected(Oracle(unpacked), smol, everything, False, "<|im_end|>")
    shutil.rmtree(unpacked)
