"""The 200 conversations that every real chat template is run on, with a fixed seed."""

import json
import random

from conversations import CODE, EMOJI, FOREIGN, PROSE, SYSTEMS, TOOLS, WHITESPACE

SEARCH = {
    "type": "function",
    "function": {
        "name": "search_notes",
        "description": "Finds notes.\nTwo lines, \"quotes\", 'apostrophes', \\ and 日本語 🦊",
        "parameters": {
            "type": "object",
            "properties": {
                "query": {"type": "string", "description": "what to look for", "minLength": 1},
                "filters": {
                    "type": "object",
                    "properties": {"tags": {"type": "array", "items": {"type": "string"}}, "since": {"type": ["string", "null"]}},
                    "additionalProperties": False,
                },
                "limit": {"type": "integer", "default": 10, "minimum": 0, "maximum": 1e3},
                "score": {"type": "number", "default": 0.25, "examples": [1e-07, 0.1, 1.0, 1e22, 123456789012345680.0, -0.0, 3.14]},
                "mode": {"type": "string", "enum": ["fast", "exact"], "default": "fast"},
            },
            "required": ["query"],
        },
        "return": {"type": "array", "description": "the notes"},
    },
}
NOTHING = {"type": "function", "function": {"name": "now", "description": "The time", "parameters": {"type": "object", "properties": {}}}}
ARGUMENTS = [
    ("get_weather", {"city": "東京"}),
    ("get_weather", {"city": "São Paulo", "unit": None}),
    ("convert", {"value": 12.50, "to": "km", "exact": True}),
    ("convert", {"value": 1e-07, "to": "mi", "exact": False}),
    ("convert", {"value": 9007199254740993, "to": "mi"}),
    ("search_notes", {"query": "it's \"both\" <tags> & \\slashes\\", "filters": {"tags": ["a", "é", "🦊"], "since": None}, "limit": 3}),
    ("search_notes", {"query": "line\nbreak\ttab", "limit": 0, "score": 1e16}),
    ("search_notes", {"query": "👨‍👩‍👧 no\u00a0break \u200b zero", "filters": {"tags": [], "x": {"y": [[1, [2.5]], {}]}}}),
    ("now", {}),
]
RESULTS = [
    '{"t": 20, "sky": "☁ <grey> & \'wet\'"}',
    "20 °C",
    "",
    "[1, 2.0, null]",
    "  padded\n",
    "Fehler: Stadt »Entenhausen« unbekannt 🦆",
]
THOUGHTS = [
    "<think>\nFirst I count.\nThen I add.\n</think>\n\nIt is 42.",
    "<think>\n\n</think>\n\nDone.",
    "<think>短い考え</think>答えは四十二です。",
    "no opening</think>\n\nthe rest",
]


def _text(rng):
    pool = rng.choices([PROSE, FOREIGN, EMOJI, CODE, WHITESPACE], weights=[4, 3, 2, 2, 2])[0]
    text = rng.choice(pool)
    if rng.random() < 0.25:
        text += rng.choice([" ", "\n", "\n\n"]) + rng.choice(rng.choice([PROSE, FOREIGN, CODE]))
    return text


def _say(role, content):
    return {"role": role, "content": content}


def _system(rng, messages, share=0.5):
    return [_say("system", rng.choice(SYSTEMS)), *messages] if rng.random() < share else messages


def _turns(rng, n, ends_with_user):
    messages = [_say(role, _text(rng)) for _ in range(n) for role in ("user", "assistant")]
    return messages[:-1] if ends_with_user else messages


def _ids(rng, n):
    # Mistral wants nine letters or digits; others get what OpenAI sends
    alphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    short = rng.random() < 0.7
    return ["".join(rng.choices(alphabet, k=9)) if short else "call_" + "".join(rng.choices(alphabet, k=20)) for _ in range(n)]


def _calls(rng, n_calls, content):
    """One assistant message with calls and the messages that answer them."""
    ids = _ids(rng, n_calls)
    picked = [rng.choice(ARGUMENTS) for _ in ids]
    calls = [{"id": i, "type": "function", "function": {"name": name, "arguments": arguments}} for i, (name, arguments) in zip(ids, picked)]
    results = [{**_say("tool", rng.choice(RESULTS)), "tool_call_id": i} for i in ids]
    if rng.random() < 0.4:
        results = [{"role": "tool", "content": r["content"], "name": name, "tool_call_id": r["tool_call_id"]} for r, (name, _) in zip(results, picked)]
    call = {"role": "assistant", "tool_calls": calls} if content is None else {**_say("assistant", content), "tool_calls": calls}
    return [call, *results]


def _plain(rng):
    out = []
    for i, text in enumerate(rng.sample(PROSE, 8) + FOREIGN + EMOJI + rng.sample(CODE, 5) + WHITESPACE[:9]):
        messages = [_say("user", text)]
        if i % 3 == 1:
            messages.append(_say("assistant", rng.choice(WHITESPACE + FOREIGN)))
        out.append(_system(rng, messages))
    for system in SYSTEMS:
        out.append([_say("system", system), *_turns(rng, 2, rng.random() < 0.5)])
    while len(out) < 94:
        out.append(_system(rng, _turns(rng, rng.choice([1, 2, 2, 3, 4, 6]), rng.random() < 0.5)))
    out.append(_turns(rng, 40, True))
    out.append([_say("system", " ".join(PROSE * 12)), _say("user", "\n".join(FOREIGN * 30)), _say("assistant", "".join(EMOJI * 100))])
    for i, thought in enumerate(THOUGHTS):
        messages = [_say("user", _text(rng)), _say("assistant", thought), _say("user", "And now?"), _say("assistant", THOUGHTS[-1 - i])]
        out.append(_system(rng, messages if i % 2 else messages[:3]))
    return [{"messages": messages, "tools": None} for messages in out]


def _with_tools(rng):
    out = []
    sets = [TOOLS, TOOLS[:1], [SEARCH], [SEARCH, NOTHING, *TOOLS], [NOTHING]]
    for i in range(86):
        tools = sets[i % len(sets)]
        messages = _system(rng, [_say("user", _text(rng))])
        if i % 6 == 1:
            messages += [_say("assistant", _text(rng)), _say("user", _text(rng))]
        for _ in range([0, 1, 1, 1, 2, 3][i % 6]):
            content = ["", "", "", None, _text(rng), THOUGHTS[0]][rng.randrange(6)]
            messages += _calls(rng, rng.choice([1, 1, 1, 2, 3]), content)
            if rng.random() < 0.3:
                messages += [_say("assistant", _text(rng)), _say("user", _text(rng))]
        end = rng.randrange(4)
        if end == 0 and messages[-1]["role"] == "tool":
            messages.append(_say("assistant", _text(rng)))
        elif end == 1 and messages[-1]["role"] == "tool":
            while messages[-1]["role"] == "tool":
                messages.pop()
        elif end == 2:
            messages += [_say("assistant", _text(rng)), _say("user", _text(rng))] if messages[-1]["role"] == "tool" else [_say("assistant", _text(rng))]
        # calls in the history of a conversation that has no tools any more
        out.append({"messages": messages, "tools": None if i % 12 == 7 else tools})
    return out


def _odd(rng):
    """What templates may refuse: whether they do is compared too."""
    a, b, c = (_text(rng) or "x" for _ in range(3))
    return [
        {"messages": messages, "tools": None}
        for messages in [
            [_say("system", a)],
            [_say("assistant", a)],
            [_say("user", a), _say("user", b)],
            [_say("user", a), _say("assistant", b), _say("assistant", c)],
            [_say("assistant", a), _say("user", b)],
            [_say("user", a), _say("system", b), _say("user", c)],
            [_say("system", a), _say("system", b), _say("user", c)],
            [_say("user", a), _say("assistant", b), _say("system", "Now be brief."), _say("user", c)],
            [_say("developer", a), _say("user", b)],
            [_say("user", a), {**_say("tool", "1"), "tool_call_id": "abcdefgh9"}, _say("assistant", b)],
            [{**_say("user", a), "name": "Zoë"}, {**_say("assistant", b), "name": "bot"}],
            [_say("system", ""), _say("user", "")],
            [_say("user", a), _say("assistant", "")],
            [_say("function", a), _say("user", b)],
        ]
    ]


def conversations():
    """Exactly 200, each `{"id", "tools", "messages"}`; one in ten is rendered without any special tokens."""
    rng = random.Random(20250301)
    out = _plain(rng) + _with_tools(rng) + _odd(rng)
    assert len(out) == 200, len(out)
    return [{"id": i, "has_special_tokens": i % 10 != 9, **json.loads(json.dumps(c))} for i, c in enumerate(out)]
