//! What tiny models make of a text as a whole.

use std::collections::BTreeMap;
use std::sync::Arc;

use engine::Precision;
use engine::generate::Embedding;
use engine::lora::Adapter;
use engine::pool::Pool;
use engine::weights::BaseModel;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::support::{LOGITS_TOLERANCE, fixture, max_abs};
use crate::tiny::each_model;

#[derive(Deserialize)]
struct Expected {
    #[serde(default)]
    tokens: Vec<u32>,
    base: Vec<f32>,
    #[serde(default)]
    adapter: Vec<f32>,
}

fn expected() -> BTreeMap<String, Expected> {
    let file = std::fs::read(fixture("embeddings.json")).unwrap();
    serde_json::from_slice(&file).unwrap()
}

fn begin(base: &Arc<BaseModel>, adapter: Option<&Arc<Adapter>>, tokens: &[u32]) -> Embedding {
    let (base, adapter) = (Arc::clone(base), adapter.cloned());
    Embedding::new(base, adapter, tokens.to_vec(), Precision::Fp32).unwrap()
}

#[track_caller]
fn check(got: &[f32], expected: &[f32], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let far: Vec<f32> = got.iter().zip(expected).map(|(a, b)| a - b).collect();
    assert!(
        max_abs(&far) <= LOGITS_TOLERANCE,
        "{what}: {}",
        max_abs(&far)
    );
    let length: f32 = got.iter().map(|x| x * x).sum();
    assert!((length - 1.0).abs() < 1e-5, "{what}: {length}"); // f32 sum over 64 terms
}

#[test]
fn embeddings_match_with_the_adapter_and_without() {
    let expected = expected();
    each_model(|name, tiny| {
        let tokens = &tiny.golden.documents[0].tokens;
        let adapter = Arc::new(tiny.model.adapter);
        let (base, pool) = (&tiny.model.base, &tiny.model.pool);
        for (adapter, of) in [
            (None, &expected[name].base),
            (Some(&adapter), &expected[name].adapter),
        ] {
            let got = begin(base, adapter, tokens).step(pool).unwrap();
            check(&got.expect("one piece"), of, name);
        }
    });
}

#[test]
fn a_long_text_is_read_in_pieces() {
    let folder = fixture("tiny_llama_tied");
    let wide = tempfile::tempdir().unwrap();
    let config = std::fs::read(folder.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    config["max_position_embeddings"] = json!(2048);
    std::fs::write(wide.path().join("config.json"), config.to_string()).unwrap();
    let weights = "model.safetensors";
    std::fs::copy(folder.join(weights), wide.path().join(weights)).unwrap();
    let pool = Pool::new(2);
    let base = Arc::new(BaseModel::load(wide.path(), &pool).unwrap());
    let Expected {
        tokens, base: of, ..
    } = &expected()["long"];
    let mut reading = begin(&base, None, tokens);
    for _ in 0..2 {
        assert_eq!(reading.step(&pool).unwrap(), None);
    }
    let got = reading.step(&pool).unwrap();
    check(&got.expect("the third of three pieces"), of, "long");
}

#[test]
fn what_has_no_embedding_is_refused() {
    let pool = Pool::new(1);
    let base = Arc::new(BaseModel::load(&fixture("tiny_llama_tied"), &pool).unwrap());
    for tokens in [vec![], vec![512], vec![3; 257]] {
        let base = Arc::clone(&base);
        assert!(Embedding::new(base, None, tokens, Precision::Fp32).is_err());
    }
}
