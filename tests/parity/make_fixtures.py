#!/usr/bin/env python3
"""Makes the golden fixtures from transformers and PEFT: make_fixtures.py [text] [tiny] [smollm2] [quant] (default: all).

text     text/tests/fixtures: chat templates and token ids
tiny     engine/tests/fixtures/tiny_*: tiny random models, adapters, logits, gradients, losses, generations
smollm2  engine/tests/fixtures/smollm2: slices of the same for the real SmolLM2-135M-Instruct
quant    engine/tests/fixtures/quant: weights as bitsandbytes and gguf quantise them

Versions: tests/parity/requirements.txt. Random numbers come from fixed seeds; a re-run with the same versions on the
same kind of processor gives the same files, other processors differ in the last bits.
"""

import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


def main():
    parts = sys.argv[1:] or ["text", "tiny", "smollm2", "quant"]
    unknown = set(parts) - {"text", "tiny", "smollm2", "quant"}
    if unknown:
        sys.exit(f"unknown part {sorted(unknown)}; known: text, tiny, smollm2, quant")
    cache = os.environ.get("LUTHIER_TEST_CACHE", os.path.join(ROOT, "target", "test-cache"))
    if "text" in parts:
        import text_fixtures

        text_fixtures.make(os.path.join(ROOT, "text", "tests", "fixtures"), cache)
    if "tiny" in parts:
        import engine_fixtures

        engine_fixtures.make_tiny(os.path.join(ROOT, "engine", "tests", "fixtures"))
    if "smollm2" in parts:
        import engine_fixtures

        engine_fixtures.make_smollm2(os.path.join(ROOT, "engine", "tests", "fixtures"), cache)
    if "quant" in parts:
        import quant_fixtures

        quant_fixtures.make(os.path.join(ROOT, "engine", "tests", "fixtures", "quant"))


if __name__ == "__main__":
    main()
