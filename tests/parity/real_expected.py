"""What transformers renders of the real chat templates, as hashes: text/tests/fixtures/real."""

import datetime
import hashlib
import json
import os

import real_conversations
import real_templates
from transformers.utils import chat_template_utils

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


class _Clock(datetime.datetime):
    """Templates write today's date; every day is the same one here."""

    @classmethod
    def now(cls, tz=None):
        return cls(2026, 3, 5, 6, 7, 8)


def render(template, conversation, add_generation_prompt):
    """The text, or None where transformers raises."""
    tokens = SPECIAL_TOKENS if conversation["has_special_tokens"] else {}
    try:
        rendered, _ = chat_template_utils.render_jinja_template(
            [conversation["messages"]],
            tools=conversation["tools"],
            chat_template=template,
            add_generation_prompt=add_generation_prompt,
            **tokens,
        )
    except Exception:  # whatever a template raises, Python's own errors included, is a refusal
        return None
    return rendered[0]


def digest(text):
    """Of one rendering; a refusal has one of its own."""
    return hashlib.sha256(b"\0" if text is None else b"\1" + text.encode("utf-8")).hexdigest()


def make(out, cache):
    chat_template_utils.datetime = _Clock
    os.makedirs(out, exist_ok=True)
    conversations = real_conversations.conversations()
    with open(os.path.join(out, "conversations.jsonl"), "w", encoding="utf-8") as f:
        for conversation in conversations:
            f.write(json.dumps(conversation, ensure_ascii=False, separators=(",", ":")) + "\n")
    real_templates.fetch(cache)
    with open(os.path.join(out, "expected.tsv"), "w", encoding="utf-8") as f:
        f.write("template\trefused\tsha256\tfirst hex digit of each rendering's sha256\n")
        for row in real_templates.table():
            with open(real_templates.cached(cache, row["sha256"]), encoding="utf-8", newline="") as t:
                template = t.read()
            texts = [render(template, c, prompt) for c in conversations for prompt in (False, True)]
            digests = [digest(text) for text in texts]
            whole = hashlib.sha256("".join(digests).encode("ascii")).hexdigest()
            f.write("\t".join([row["sha256"][:16], str(texts.count(None)), whole, "".join(d[0] for d in digests)]) + "\n")
