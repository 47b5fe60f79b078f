"""Whether the service's answers are as OpenAI's own schema says: every client of the tests is watched, as are webhooks and other SDKs.

The schema is not part of this repository: OPENAI_CONFORMANCE_KIT names its folder, else it is looked for in ../shared/openai. Without it
nothing is checked, and the run says so. At the end it says how many answers were checked, by operation.
"""

import atexit
import collections
import functools
import json
import os
import re
import sys
import textwrap
import traceback
import urllib.parse
from pathlib import Path

import httpx2
import jsonschema
import yaml

KIT = Path(os.environ.get("OPENAI_CONFORMANCE_KIT", Path(__file__).resolve().parents[3] / "shared/openai"))
SCHEMA = KIT / "openapi-subset-full.yaml"
METHODS = ("get", "post", "delete", "put", "patch")
# Where OpenAI's service is known not to keep to its schema, and this one does as the service: operation, place, what stands there.
EXCEPTIONS = (
    # A piece of a stream has no reason to be finished before the last one, and its usage comes after that.
    ("createCompletion (stream)", r"/choices/\d+/finish_reason|/usage", type(None)),
    # A prompt's first token follows on nothing.
    ("createCompletion", r"/choices/\d+/logprobs/(token|top)_logprobs/0", type(None)),
    ("createCompletion (stream)", r"/choices/\d+/logprobs/(token|top)_logprobs/0", type(None)),
    # Asked for as base64, which the schema of the request knows and that of the answer does not.
    ("createEmbedding", r"/data/\d+/embedding", str),
    # An empty page has neither; other lists' schemas say so.
    ("listChatCompletions", r"/(first|last)_id", type(None)),
)
CHECKED, UNCHECKED = collections.Counter(), collections.Counter()


@functools.cache
def document():
    return yaml.load(SCHEMA.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) if SCHEMA.is_file() else None


@functools.cache
def routes():
    """(method, expression for the path, operation), the most exact path first."""
    paths = sorted(document()["paths"].items(), key=lambda item: (item[0].count("{"), item[0]))
    return [(method.upper(), re.compile(re.sub(r"\\{[^}]+\\}", "[^/]+", re.escape(path))), operation)
            for path, methods in paths for method, operation in methods.items() if method in METHODS]


def find_operation(method, path):
    return next((operation for of, path_is, operation in routes() if of == method and path_is.fullmatch(path)), None)


def referenced(thing):
    while "$ref" in thing:
        thing = functools.reduce(dict.__getitem__, thing["$ref"].removeprefix("#/").split("/"), document())
    return thing


@functools.cache
def validator(schema):
    """`schema` as JSON text, its references into the document."""
    return jsonschema.Draft202012Validator({**json.loads(schema), "components": document()["components"]})


def without_ours(value):
    """Fields that begin with `x_` are this service's own, wherever they stand (COMPATIBILITY.md)."""
    if isinstance(value, dict):
        return {key: without_ours(inner) for key, inner in value.items() if not key.startswith("x_")}
    return [without_ours(inner) for inner in value] if isinstance(value, list) else value


def differences(name, schema, value):
    """What is not as it should be in an answer of the operation `name`, in words."""
    for error in validator(json.dumps(schema)).iter_errors(without_ours(value)):
        deepest = error
        while deepest.context:
            deepest = max(deepest.context, key=lambda inner: len(inner.absolute_path))
        place = "/" + "/".join(map(str, deepest.absolute_path))
        if not any(name == of and re.fullmatch(where, place) and isinstance(deepest.instance, kind) for of, where, kind in EXCEPTIONS):
            yield f"{place}: {deepest.message[:300]}"


def contents(operation, status):
    """Of an answer with this status: content types and what the document says of each; `None` where it says nothing."""
    if status >= 400:
        return {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}}
    content = dict(referenced(operation["responses"].get(str(status), {})).get("content", {}))
    if operation["operationId"] == "createCompletion":
        # A stream's pieces have the form of a whole answer.
        content["text/event-stream"] = content["application/json"]
    return content or None


def asked_by():
    """The line of a test that is being run."""
    frames = [frame for frame in traceback.extract_stack() if Path(frame.filename).name.startswith("test_")]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "no test"


def data_of(events):
    """What the events of a stream's bytes say."""
    for event in events.split(b"\n\n"):
        data = b"\n".join(line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))
        if data and data != b"[DONE]":
            yield data


class Judge:
    """Of one service: keeps what differed until someone asks."""

    def __init__(self):
        self.problems = []

    def watch(self, response):
        """A hook of the client of HTTP."""
        if not document():
            return
        content_type = response.headers.get("content-type", "").split(";")[0]
        of = (response.request.method, str(response.url), response.status_code, content_type)
        if content_type == "text/event-stream":
            response.stream = Judged(response.stream, lambda data: self.judge(*of, data))
        else:
            self.judge(*of, response.read() if content_type == "application/json" else None)

    def judge_whole(self, method, url, status, content_type, body):
        """One answer that another program has heard, as text."""
        if not document():
            return
        if content_type == "text/event-stream":
            for data in data_of(body.encode()):
                self.judge(method, url, status, content_type, data)
        else:
            self.judge(method, url, status, content_type, body if content_type == "application/json" else None)

    def judge(self, method, url, status, content_type, body):
        """One answer, or the data of one event of a stream; of what is not JSON the type alone."""
        url = urllib.parse.urlsplit(url)
        path = url.path.removeprefix("/v1")
        if path.startswith("/x/") or "x_dry_run" in url.query:
            UNCHECKED["of our own routes"] += 1
            return
        operation = find_operation(method, path)
        content = operation and contents(operation, status)
        if content is None:
            UNCHECKED[f"{method} {path} {status}" if operation is None else operation["operationId"]] += 1
            return
        name = operation["operationId"] + " (stream)" * (content_type == "text/event-stream")
        CHECKED[name] += 1
        if content_type not in content:
            found = [f"is {content_type!r}, not one of {list(content)}"]
        else:
            found = [] if body is None else differences(name, content[content_type]["schema"], json.loads(body))
        self.problems += [f"{asked_by()}: {method} {path} -> {status} {difference}" for difference in found]

    def judge_webhook(self, body):
        """The body of a delivery."""
        if not document():
            return
        event = json.loads(body)
        told = document()["webhooks"].get(event["type"].replace(".", "_"))
        if told is None:
            UNCHECKED[f"webhook {event['type']}"] += 1
            return
        name = f"webhook {event['type']}"
        CHECKED[name] += 1
        schema = told["post"]["requestBody"]["content"]["application/json"]["schema"]
        self.problems += [f"{name} {difference}" for difference in differences(name, schema, event)]

    def verdict(self):
        """Raises if something differed."""
        problems, self.problems = list(dict.fromkeys(self.problems)), []
        if problems:
            raise AssertionError("answers that are not as OpenAI's schema says:\n" + "\n".join(problems[:40]))


class Judged(httpx2.SyncByteStream):
    """A stream of events that are judged as they pass."""

    def __init__(self, stream, judge):
        self.stream, self.judge, self.rest = stream, judge, b""

    def __iter__(self):
        for piece in self.stream:
            whole, end, self.rest = (self.rest + piece).rpartition(b"\n\n")
            for data in data_of(whole + end):
                self.judge(data)
            yield piece

    def close(self):
        self.stream.close()


@atexit.register
def tell():
    if not document():
        print(f"skipped: answers are not checked against OpenAI's schema: no {SCHEMA.name} in {KIT.name}/ (set OPENAI_CONFORMANCE_KIT)",
              file=sys.stderr)
        return
    print(f"upstream: {CHECKED.total()} answers of {len(CHECKED)} operations were checked against OpenAI's schema, "
          f"{UNCHECKED.total()} not", file=sys.stderr)
    for word, counts in (("checked", CHECKED), ("unchecked", UNCHECKED)):
        listed = word + ": " + ", ".join(f"{name} {n}" for name, n in sorted(counts.items()))
        print(textwrap.indent(textwrap.fill(listed, 130, break_on_hyphens=False), "upstream: "), file=sys.stderr)
