"""Base models: from a hub (a local server that speaks its two routes), from a folder, and what is refused."""

import http.server
import json
import shutil
import subprocess
import tempfile
import threading
import unittest
from pathlib import Path

import tiny_model
from service import LUTHIER, environment


class Hub(http.server.BaseHTTPRequestHandler):
    """`/api/models/{repo}` and `/{repo}/resolve/{sha}/{file}` over a folder; everything else is 404."""

    folder = None
    requests = []

    def do_GET(self):
        self.requests.append(self.path)
        if self.path == "/api/models/someone/Tiny-Llama":
            names = [path.name for path in self.folder.iterdir()] + ["onnx/model.onnx"]
            body = json.dumps({"sha": "abc123", "siblings": [{"rfilename": name} for name in names]}).encode()
        elif self.path.startswith("/someone/Tiny-Llama/resolve/abc123/"):
            body = (self.folder / self.path.rsplit("/", 1)[1]).read_bytes()
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


class Models(unittest.TestCase):
    def setUp(self):
        self.dir = Path(tempfile.mkdtemp(prefix="luthier-models-"))
        self.addCleanup(shutil.rmtree, self.dir)
        self.tiny = tiny_model.write(self.dir / "tiny")

    def luthier(self, *args, env=None):
        return subprocess.run(
            [LUTHIER, *map(str, args), "--data-dir", str(self.dir / "data")],
            capture_output=True, text=True, timeout=120, env=environment(env))

    def names(self):
        return [line.split("\t")[0] for line in self.luthier("model", "list").stdout.splitlines()]

    def test_a_repository_of_the_hub_becomes_a_model(self):
        Hub.folder, Hub.requests = self.tiny, []
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.addCleanup(server.shutdown)
        env = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}
        done = self.luthier("model", "pull", "someone/Tiny-Llama", env=env)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(self.names(), ["tiny-llama"])
        self.assertFalse([path for path in Hub.requests if "onnx" in path], "fetched what nobody needs")
        before = len(Hub.requests)
        self.assertEqual(self.luthier("model", "pull", "someone/Tiny-Llama", env=env).returncode, 0)
        self.assertEqual(len(Hub.requests), before, "the second pull went to the network")
        missing = self.luthier("model", "pull", "someone/absent", env=env)
        self.assertNotEqual(missing.returncode, 0)
        self.assertIn("404", missing.stderr)

    def test_what_cannot_be_used_is_refused_and_installs_nothing(self):
        def config(**changes):
            path = self.tiny / "config.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

        def refused(*words):
            done = self.luthier("model", "add", "broken", self.tiny)
            self.assertNotEqual(done.returncode, 0)
            for word in words:
                self.assertIn(word, done.stderr)
            tiny_model.write(self.tiny)

        config(architectures=["MambaForCausalLM"])
        refused("MambaForCausalLM", "LlamaForCausalLM")
        config(num_hidden_layers=3)
        refused("model.layers.2")
        (self.tiny / "tokenizer.json").unlink()
        refused("tokenizer.json")
        weights = (self.tiny / "model.safetensors").read_bytes()
        (self.tiny / "model.safetensors").write_bytes(weights[: len(weights) // 2])
        refused("model.safetensors")
        self.assertEqual(self.names(), [])
        self.assertNotEqual(self.luthier("model", "add", "a:b", self.tiny).returncode, 0)
