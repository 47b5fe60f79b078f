//! Where a worker has its adapters: in memory within a budget, on its disk, in the bucket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use domain::message::{GenerateError, GenerateEvent, GenerateRequest};
use domain::model::AdapterRef;
use engine::Precision;
use engine::config::ModelConfig;
use engine::lora::{Adapter, LoraConfig};
use platform::config::WorkerConfig;

use crate::door::Script;
use crate::generate::for_ever;
use crate::house::{House, Running, ask, install, with_adapter};
use crate::tiny_model;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// Of the model that all houses have.
fn model() -> ModelConfig {
    let files = tiny_model::files(1);
    let config = files.iter().find(|(name, _)| *name == "config.json");
    ModelConfig::from_json(std::str::from_utf8(&config.unwrap().1).unwrap()).unwrap()
}

/// An adapter that no other seed makes, in the bucket.
async fn bring(house: &House, seed: u64) -> AdapterRef {
    let config = LoraConfig {
        init_lora_weights: engine::lora::Init::Gaussian,
        ..LoraConfig::all_linear(4, 8.0)
    };
    let adapter = Adapter::init(&model(), &config, seed).unwrap();
    let object_prefix = format!("projects/p/adapters/{seed}");
    let put = async |file: &str, bytes: Vec<u8>| {
        let key = format!("{object_prefix}/{file}");
        house.objects.put_bytes(&key, bytes.into()).await.unwrap()
    };
    put(CONFIG, adapter.config_json("tiny").into_bytes()).await;
    let mut weights = adapter.to_safetensors();
    // B is zero in a fresh adapter: the last values in the file are made to do something.
    let at = weights.len() - 4 * 64;
    for value in weights[at..].chunks_exact_mut(4) {
        value.copy_from_slice(&(0.5 * seed as f32).to_le_bytes());
    }
    let stored = put(WEIGHTS, weights).await;
    AdapterRef {
        object_prefix: object_prefix.clone(),
        sha256: stored.sha256,
        size_bytes: stored.size_bytes,
        frozen_weights: Default::default(),
    }
}

fn request(adapter: &AdapterRef) -> GenerateRequest {
    with_adapter(ask("What is 2?", 12), adapter)
}

async fn answer(house: &House, worker: &Running, adapter: &AdapterRef) -> Vec<GenerateEvent> {
    house.generate(worker, &request(adapter)).await
}

async fn remove_from_bucket(house: &House, adapter: &AdapterRef) {
    for file in [CONFIG, WEIGHTS] {
        let key = format!("{}/{file}", adapter.object_prefix);
        house.objects.delete(&key).await.unwrap();
    }
}

/// The files of the only adapter on the disk of worker `name`.
fn cached(house: &House, name: &str) -> PathBuf {
    let dir = house.dir.path().join(name).join("adapters");
    let folders: Vec<_> = std::fs::read_dir(dir).unwrap().collect();
    let [folder] = folders.try_into().expect("one adapter");
    folder.unwrap().path()
}

/// In place of the file, which may be a link to the object.
fn replace(path: &Path, bytes: &[u8]) {
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn without_memory(config: &mut WorkerConfig) {
    config.adapter_memory_bytes = 0;
}

#[tokio::test]
async fn an_adapter_on_the_disk_answers_without_the_bucket_also_after_a_restart() {
    let house = House::new().await;
    let adapter = bring(&house, 1).await;
    let worker = house.worker("a", without_memory).await;
    let first = answer(&house, &worker, &adapter).await;
    remove_from_bucket(&house, &adapter).await;
    assert_eq!(answer(&house, &worker, &adapter).await, first);
    worker.stop().await.unwrap();
    let worker = house.worker("a", without_memory).await;
    assert_eq!(answer(&house, &worker, &adapter).await, first);
    worker.stop().await.unwrap();
    let elsewhere = house.worker("b", |_| {}).await;
    let reply = house.post(&elsewhere, &request(&adapter)).await;
    assert_eq!(reply.status(), 503, "the bucket does not have it any more");
    elsewhere.stop().await.unwrap();
}

#[tokio::test]
async fn damaged_files_on_the_disk_are_fetched_again() {
    let house = House::new().await;
    let adapter = bring(&house, 1).await;
    let worker = house.worker("a", without_memory).await;
    let expected = answer(&house, &worker, &adapter).await;
    let folder = cached(&house, "a");
    let weights = std::fs::read(folder.join(WEIGHTS)).unwrap();
    let no_tensors = vec![0; weights.len()];
    for (file, bytes) in [
        (WEIGHTS, &weights[..weights.len() - 1]),
        (WEIGHTS, &no_tensors[..]),
        (CONFIG, b"{"),
    ] {
        replace(&folder.join(file), bytes);
        assert_eq!(answer(&house, &worker, &adapter).await, expected, "{file}");
        assert_eq!(std::fs::read(folder.join(WEIGHTS)).unwrap(), weights);
    }
    remove_from_bucket(&house, &adapter).await;
    replace(&folder.join(WEIGHTS), &no_tensors);
    let reply = house.post(&worker, &request(&adapter)).await;
    assert!(matches!(
        reply.json().await.unwrap(),
        GenerateError::AdapterUnavailable {
            is_unfit: false,
            ..
        }
    ));
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn adapters_in_memory_take_no_more_than_the_budget_and_are_told_latest_first() {
    let house = House::new().await;
    let one = Adapter::init(&model(), &LoraConfig::all_linear(4, 8.0), 1).unwrap();
    let budget = 2 * one.size_bytes(Precision::of_bf16_weights());
    assert!(
        budget > 2 * 4 * one.n_parameters(),
        "what generation multiplies with counts too"
    );
    let worker = house
        .worker("a", |config| config.adapter_memory_bytes = budget)
        .await;
    let mut adapters = Vec::new();
    for seed in 1..=3 {
        adapters.push(bring(&house, seed).await);
    }
    for adapter in [&adapters[0], &adapters[1], &adapters[0], &adapters[2]] {
        answer(&house, &worker, adapter).await;
    }
    let expected = vec![adapters[2].sha256.clone(), adapters[0].sha256.clone()];
    let told = move |script: &Script| {
        script
            .statuses
            .last()
            .is_some_and(|status| status.adapters == expected)
    };
    house.door.until("the two that were used last", told).await;
    worker.stop().await.unwrap();
}

/// Folders of adapters with weights on the disk of worker `name`.
fn n_cached(house: &House, name: &str) -> usize {
    let dir = house.dir.path().join(name).join("adapters");
    let folders = std::fs::read_dir(dir).into_iter().flatten().flatten();
    folders
        .filter(|folder| folder.path().join(WEIGHTS).exists())
        .count()
}

/// Waits until so many are there, and says how many there are a moment later.
async fn cached_in_time(house: &House, name: &str, n: usize) -> usize {
    for _ in 0..1_000 {
        if n_cached(house, name) >= n {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    n_cached(house, name)
}

#[tokio::test]
async fn adapters_of_those_who_wait_come_ahead_of_their_turn_and_few_at_a_time() {
    let house = House::with_context(4096).await;
    let alone = |config: &mut WorkerConfig| {
        (config.max_sequences, config.max_cached_tokens) = (1, 4096);
    };
    let worker = house.worker("a", alone).await;
    let mut adapters = Vec::new();
    for seed in 1..=8 {
        adapters.push(bring(&house, seed).await);
    }
    // One place is of what is generated, eight of those who come next.
    let for_ever = house.post(&worker, &for_ever()).await;
    let mut next = Vec::new();
    for _ in 0..8 {
        next.push(house.post(&worker, &ask("Hi", 5)).await);
    }
    let mut waiting = Vec::new();
    for adapter in &adapters {
        waiting.push(house.post(&worker, &request(adapter)).await);
    }
    assert_eq!(
        cached_in_time(&house, "a", 4).await,
        4,
        "the first who wait"
    );
    // One that leaves gives its turn to the next.
    drop(waiting.remove(1));
    assert_eq!(cached_in_time(&house, "a", 5).await, 5);
    // What is here needs no bucket.
    remove_from_bucket(&house, &adapters[0]).await;
    drop((for_ever, next));
    for (i, reply) in waiting.into_iter().enumerate() {
        let text = reply.text().await.unwrap();
        let last: GenerateEvent = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert!(matches!(last, GenerateEvent::Done { .. }), "{i}: {last:?}");
    }
    assert_eq!(n_cached(&house, "a"), 8);
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_disk_that_takes_nothing_keeps_no_adapter_from_answering() {
    let house = House::new().await;
    let adapter = bring(&house, 1).await;
    let worker = house.worker("a", |_| {}).await;
    let expected = answer(&house, &worker, &adapter).await;
    worker.stop().await.unwrap();
    // A file where the folder should be.
    let blocked = house.dir.path().join("b/adapters");
    std::fs::create_dir_all(blocked.parent().unwrap()).unwrap();
    std::fs::write(&blocked, "").unwrap();
    let worker = house.worker("b", |_| {}).await;
    assert_eq!(answer(&house, &worker, &adapter).await, expected);
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn one_adapter_on_two_bases_is_checked_against_each() {
    let house = House::new().await;
    let other = install(&house.objects, "other", 2).await;
    let models = vec![house.model.clone(), other];
    house.door.with(|script| script.base_models = models);
    let adapter = bring(&house, 1).await;
    let worker = house.worker("a", |_| {}).await;
    let on_tiny = answer(&house, &worker, &adapter).await;
    let mut elsewhere = request(&adapter);
    elsewhere.model.base_model = "other".to_owned();
    assert_ne!(house.generate(&worker, &elsewhere).await, on_tiny);
    assert_eq!(answer(&house, &worker, &adapter).await, on_tiny);
    cached(&house, "a");
    worker.stop().await.unwrap();
}
