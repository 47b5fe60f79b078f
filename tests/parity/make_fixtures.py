#!/usr/bin/env python3
"""Makes the golden fixtures from transformers and PEFT: make_fixtures.py [PART…] (default: all).

text     text/tests/fixtures: chat templates and token ids
real     text/tests/fixtures/real: hashes of what real chat templates write
tiny     engine/tests/fixtures/tiny_*: tiny random models, adapters, logits, gradients, losses, generations; or one by its name
adapters engine/tests/fixtures/adapters: kinds of adapters on tiny models, which must be there
embeddings engine/tests/fixtures/embeddings.json: what the tiny models, which must be there, make of a text
preference engine/tests/fixtures/preference: what TRL computes on a tiny model, which must be there
smollm2  engine/tests/fixtures/smollm2: slices of the same for the real SmolLM2-135M-Instruct
quant    engine/tests/fixtures/quant: weights as bitsandbytes, PyTorch and gguf quantise them

Versions: tests/parity/requirements.txt. Random numbers come from fixed seeds; a re-run with the same versions on the
same kind of processor gives the same files, other processors differ in the last bits.
"""

import os
import sys

PARTS = ["text", "real", "tiny", "adapters", "embeddings", "preference", "smollm2", "quant"]
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


def main():
    parts = sys.argv[1:] or PARTS
    from tiny_models import TINY

    tiny = [name for name in TINY if name in parts or "tiny" in parts]
    unknown = set(parts) - {*PARTS, *TINY}
    if unknown:
        sys.exit(f"unknown part {sorted(unknown)}; known: {', '.join([*PARTS, *TINY])}")
    cache = os.environ.get("LUTHIER_TEST_CACHE", os.path.join(ROOT, "target", "test-cache"))
    if "text" in parts:
        import text_fixtures

        text_fixtures.make(os.path.join(ROOT, "text", "tests", "fixtures"), cache)
    if "real" in parts:
        import real_expected

        real_expected.make(os.path.join(ROOT, "text", "tests", "fixtures", "real"), cache)
    if tiny:
        import engine_fixtures

        for name in tiny:
            engine_fixtures.make(os.path.join(ROOT, "engine", "tests", "fixtures"), name)
    if "adapters" in parts:
        import adapter_fixtures

        adapter_fixtures.make(os.path.join(ROOT, "engine", "tests", "fixtures"))
    if "embeddings" in parts:
        import embedding_fixtures

        embedding_fixtures.make(os.path.join(ROOT, "engine", "tests", "fixtures"))
    if "preference" in parts:
        import preference_fixtures

        preference_fixtures.make(os.path.join(ROOT, "engine", "tests", "fixtures"))
    if "smollm2" in parts:
        import smollm2_fixtures

        smollm2_fixtures.make(os.path.join(ROOT, "engine", "tests", "fixtures"), cache)
    if "quant" in parts:
        import quant_fixtures

        quant_fixtures.make(os.path.join(ROOT, "engine", "tests", "fixtures", "quant"))


if __name__ == "__main__":
    main()
