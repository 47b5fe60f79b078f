"""Base models that were made to harm who installs them: the operator's own command refuses them, and lives (API8)."""

import json
import re
import subprocess
import tempfile
import time
from pathlib import Path

from attack import MODEL, in_both_forms, service, tiny_model

MAX_RESIDENT_MIB, MAX_S = 256, 30
# What a template begins with that would be a good one, but for what follows.
GREETING = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
EXPRESSIONS = {
    "parentheses": "(" * 30_000 + "1" + ")" * 30_000,
    "lists": "[" * 30_000 + "1" + "]" * 30_000,
    "an indent of 10^9": "'a' | indent(1000000000)",
    "a width of 10^9": "'%1000000000d' | format(1)",
    "10^9 slices": "range(10) | slice(1000000000) | list",
    "10^10 characters": "('a' * 100000) | replace('a', 'b' * 100000)",
    "a wide range": "range(10000000000) | list | length",
}
# Much to read, and nothing to compute: these are taken, and end nobody.
HARMLESS = {
    "60,000 minus signs": "-" * 60_000 + "1",
    "15,000 times not": "not " * 15_000 + "1",
    "a long sum": "1" + "+1" * 30_000,
    "a long power": "1" + "**1" * 20_000,
    "batches of 10^9": "range(10) | batch(1000000000) | list",
}
STATEMENTS = {
    "3,000 ifs": "{% if 1 %}" * 3_000 + "{% endif %}" * 3_000,
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a macro that calls itself twice": "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "a text that doubles": "{% set ns = namespace(x='aaaaaaaaaaaaaaaa') %}{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
    "a list that doubles": "{% set ns = namespace(x=['a']) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "10^10 rounds": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "much text": "{% for i in range(90000) %}x{% endfor %}",
    "a very long template": "x" * (1 << 20),
}
# Beyond a template's own text, and Python's objects behind its values.
ELSEWHERE = {
    "include": "{% include 'x' %}", "import": "{% import 'x' as x %}", "from": "{% from 'x' import y %}", "extends": "{% extends '/etc/passwd' %}",
    "self": "{{ self.body() }}", "debug": "{{ debug() }}", "an unknown function": "{{ cycle_of() }}", "a field of nothing": "{{ nothing.at_all }}",
    "a call of nothing": "{{ nothing() }}", "nothing as JSON": "{{ nothing | tojson }}", "a sum with nothing": "{{ 1 + nothing }}",
    "the class of a text": "{{ ''.__class__.__mro__ }}", "globals": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "the environment": "{{ environ['PATH'] }}{{ request.application }}{{ config.items() }}", "a message that is changed": "{{ messages.append(1) }}",
    "no end": "{% for %}", "an unknown filter": "{{ 'x' | attr_of }}",
}


@in_both_forms
class Models:
    def add(self, name, folder):
        """(exit status, what was said, memory at its peak in MiB, seconds) of `luthier model add`."""
        with tempfile.TemporaryFile() as output:
            begun, peak = time.monotonic(), 0
            process = subprocess.Popen([service.LUTHIER, "model", "add", name, str(folder), *map(str, self.target.service.place)],
                                       stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=service.environment())
            while process.poll() is None:
                # Of this program alone: what its parent counts for it includes the parent's own before it became the program.
                known = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
                peak = max(peak, int(known[1]) >> 10 if known else 0)
                time.sleep(0.01)
            took_s = time.monotonic() - begun
            output.seek(0)
            return process.returncode, output.read().decode(errors="replace"), peak, took_s

    def chosen(self, templates):
        """All of them in one form, and a few in the other: both have one judge, and differ in what it has judged for."""
        return templates if self.target.is_embedded else dict(list(templates.items())[::5])

    def try_each(self, templates, name, judge):
        """Adds a model with each template, within the bounds of memory and time; `judge` sees how it ended and what it said."""
        with tempfile.TemporaryDirectory(prefix="luthier-security-") as folder:
            good = tiny_model.write(Path(folder) / "model")
            path = good / "tokenizer_config.json"
            config = json.loads(path.read_text())
            for what, template in self.chosen(templates).items():
                with self.subTest(what):
                    path.write_text(json.dumps({**config, "chat_template": template}))
                    status, said, peak, took_s = self.add(name, good)
                    judge(status, said)
                    self.assertLess(peak, MAX_RESIDENT_MIB)
                    self.assertLess(took_s, MAX_S)

    def refuse(self, templates):
        def is_refused(status, said):
            self.assertEqual(status, 1, said)  # a refusal: no signal, no panic
            self.assertIn("cannot be used as a model", said)
            self.assertIn("template", said)
            self.assertNotIn("panicked", said)
            self.assertLess(len(said), 2_000)

        kept = self.target.objects()
        self.try_each(templates, "evil", is_refused)
        listed = self.target.luthier("model", "list")
        self.assertIn(MODEL, listed)
        self.assertNotIn("evil", listed)
        self.assertEqual({path for path in self.target.objects().keys() - kept.keys() if "evil" in path}, set())

    def test_s75_templates_that_never_end_or_fill_the_memory(self):
        self.refuse({name: GREETING + "{{ " + expression + " }}" for name, expression in EXPRESSIONS.items()} |
                    {name: GREETING + statements for name, statements in STATEMENTS.items()})

    def test_s75_templates_that_take_long_to_read(self):
        self.take({name: GREETING + "{{ " + expression + " }}" for name, expression in HARMLESS.items()})

    def take(self, templates):
        self.try_each(templates, "harmless", lambda status, said: self.assertEqual(status, 0, said))
        self.assertIn("harmless", self.target.luthier("model", "list"))

    def test_s77_templates_that_reach_beyond_themselves(self):
        self.refuse({name: GREETING + template for name, template in ELSEWHERE.items()})

    def test_s77_a_template_reads_what_it_is_given_and_nothing_else(self):
        """What is merely not there is nothing, as in Python; so it is told, and not read from somewhere."""
        self.take({"nothing": GREETING + "{{ nothing }}"})
