//! A house for one worker: a bucket in a directory, a scripted door, a tiny model.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use domain::base_model::{BaseModel, ManifestFile};
use domain::generation::{ChatMessage, Role, SamplingParams};
use domain::hyperparameters::ResolvedHyperparameters;
use domain::id::JobId;
use domain::message::{Assignment, DatasetRef, GenerateEvent, GenerateRequest, ResumePoint};
use domain::model::{AdapterRef, ServedModel};
use domain::object_key;
use domain::time::Timestamp;
use gpu_worker::{WorkerError, WorkerOptions};
use platform::config::{ObjectsConfig, QueueConfig, Secret, WorkerConfig};
use platform::objects::Objects;
use platform::queue::Queue;
use platform::service_token::{self, ServiceKey};
use platform::shutdown::Shutdown;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::door::{Door, Script};
use crate::tiny_model;

pub struct House {
    pub dir: TempDir,
    pub objects: Objects,
    pub door: Arc<Door>,
    pub model: BaseModel,
    pub key: ServiceKey,
    /// What the next worker hears of jobs by.
    pub queue: QueueConfig,
}

/// A worker in this process.
pub struct Running {
    pub task: JoinHandle<Result<(), WorkerError>>,
    pub shutdown: Shutdown,
    pub address: String,
}

impl Running {
    /// As kill -9 would: no word to anyone.
    pub async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.is_err_and(|error| error.is_cancelled()));
    }

    /// As SIGTERM would.
    pub async fn stop(self) -> Result<(), WorkerError> {
        self.shutdown.begin();
        tokio::time::timeout(Duration::from_secs(60), self.task)
            .await
            .expect("drains in time")
            .unwrap()
    }
}

impl House {
    pub async fn new() -> Self {
        let (dir, objects) = bucket();
        let model = install(&objects, "tiny", 1).await;
        Self::of(dir, objects, model).await
    }

    /// With a model that a GPU can train.
    pub async fn for_gpu() -> Self {
        let (dir, objects) = bucket();
        let files = tiny_model::files_for_gpu(1).into_iter();
        let files = files
            .map(|(name, bytes)| (name.to_owned(), bytes))
            .collect();
        let model = install_files(&objects, "tiny", 1, files).await;
        Self::of(dir, objects, model).await
    }

    /// With a model that reads and writes so many tokens.
    pub async fn with_context(context: usize) -> Self {
        let (dir, objects) = bucket();
        let files = tiny_model::files_with_context(1, context).into_iter();
        let files = files
            .map(|(name, bytes)| (name.to_owned(), bytes))
            .collect();
        let mut model = install_files(&objects, "tiny", 1, files).await;
        model.context_length = context as u32;
        Self::of(dir, objects, model).await
    }

    /// With a model whose tokenizer puts a token before any text.
    pub async fn with_beginning() -> Self {
        let (dir, objects) = bucket();
        let files = tiny_model::files_with_beginning(1).into_iter();
        let files = files
            .map(|(name, bytes)| (name.to_owned(), bytes))
            .collect();
        let model = install_files(&objects, "tiny", 1, files).await;
        Self::of(dir, objects, model).await
    }

    async fn of(dir: TempDir, objects: Objects, model: BaseModel) -> Self {
        let key = ServiceKey::new(&Secret::from("0123456789abcdef0123456789abcdef"));
        let door = Door::open(key.clone()).await;
        door.with(|script| script.base_models = vec![model.clone()]);
        Self {
            dir,
            objects,
            door,
            model,
            key,
            queue: QueueConfig::default(),
        }
    }

    /// What a worker of its own cache starts with.
    pub fn options(&self, name: &str, change: impl FnOnce(&mut WorkerConfig)) -> WorkerOptions {
        let mut config = WorkerConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            // Tests run beside each other; threads that wait for each other would only burn the cores.
            threads: 1,
            beat_interval_s: 1,
            max_sequences: 4,
            max_cached_tokens: 4096,
            ..WorkerConfig::default()
        };
        change(&mut config);
        WorkerOptions {
            config,
            cache_dir: self.dir.path().join(name),
            door_url: self.door.url.clone(),
            service_key: self.key.clone(),
            objects: self.objects.clone(),
            queue: Queue::open(&self.queue).unwrap(),
        }
    }

    /// Starts a worker of its own cache and waits until it said hello with its base models.
    pub async fn worker(&self, name: &str, change: impl FnOnce(&mut WorkerConfig)) -> Running {
        let options = self.options(name, change);
        let shutdown = Shutdown::new();
        let n_statuses = self.door.with(|script| script.statuses.len());
        let task = tokio::spawn(gpu_worker::run(options, shutdown.clone()));
        let named = move |script: &Script| {
            script.statuses[n_statuses..]
                .iter()
                .any(|status| !status.base_models.is_empty())
        };
        self.door.until("a hello with base models", named).await;
        let address = self
            .door
            .with(|script| script.statuses.last().unwrap().address.clone());
        Running {
            task,
            shutdown,
            address,
        }
    }

    /// Puts a dataset into the bucket.
    pub async fn dataset(&self, name: &str, rows: &[(&str, &str)]) -> DatasetRef {
        let lines: Vec<String> = rows
            .iter()
            .map(|(question, answer)| row(question, answer))
            .collect();
        self.put_dataset(name, lines.join("\n").into_bytes()).await
    }

    pub async fn put_dataset(&self, name: &str, bytes: Vec<u8>) -> DatasetRef {
        let object_key = format!("projects/p/files/{name}");
        let stored = self
            .objects
            .put_bytes(&object_key, Bytes::from(bytes))
            .await
            .unwrap();
        DatasetRef {
            object_key,
            sha256: stored.sha256,
            size_bytes: stored.size_bytes,
        }
    }

    /// A job of ten rows in batches of four: three steps an epoch.
    pub async fn assignment(&self, n_epochs: u32) -> Assignment {
        let rows: Vec<(String, String)> = (0..10)
            .map(|i| {
                (
                    format!("What is {i}?"),
                    format!("It is number {i}{}.", "!".repeat(i)),
                )
            })
            .collect();
        let rows: Vec<(&str, &str)> = rows.iter().map(|(q, a)| (q.as_str(), a.as_str())).collect();
        let job_id = JobId::parse("ftjob-test").unwrap();
        let hyperparameters = ResolvedHyperparameters {
            n_epochs,
            batch_size: 4,
            learning_rate_multiplier: 1.0,
            learning_rate: 1e-2,
        };
        Assignment {
            object_prefix: format!("projects/p/jobs/{job_id}/attempts/1"),
            job_id,
            attempt: 1,
            base_model: self.model.clone(),
            training_file: self.dataset("train", &rows).await,
            validation_file: Some(self.dataset("valid", &rows[3..6]).await),
            hyperparameters,
            total_steps: u64::from(n_epochs) * 3,
            seed: 42,
            resume: None,
            lease_ttl_s: 30,
            training: None,
            start: None,
            preference: None,
        }
    }

    /// One epoch of 400 steps of some ten milliseconds each, so that no epoch ends while a test acts.
    pub async fn long_assignment(&self) -> Assignment {
        let answer = "All work and no play makes a dull day. ".repeat(3);
        let rows = vec![("What do you write?", answer.as_str()); 16 * 400];
        let training_file = self.dataset("long", &rows).await;
        let short = self.assignment(1).await;
        Assignment {
            training_file,
            validation_file: None,
            hyperparameters: ResolvedHyperparameters {
                batch_size: 16,
                ..short.hyperparameters
            },
            total_steps: 400,
            ..short
        }
    }

    pub fn give(&self, assignment: &Assignment) {
        self.door
            .with(|script| script.assignments.push_back(assignment.clone()));
    }

    /// What the scheduler would hand to the next attempt.
    pub fn next_attempt(&self, of: &Assignment) -> Assignment {
        let last = self
            .door
            .with(|script| script.checkpoints.iter().max_by_key(|c| c.step).cloned());
        let attempt = of.attempt + 1;
        Assignment {
            attempt,
            object_prefix: format!("projects/p/jobs/{}/attempts/{attempt}", of.job_id),
            resume: last.map(|c| ResumePoint {
                step: c.step,
                state: c.state,
            }),
            ..of.clone()
        }
    }
}

/// Installs a tiny model in the bucket.
fn bucket() -> (TempDir, Objects) {
    let dir = TempDir::new().unwrap();
    let url = format!("file://{}", dir.path().join("objects").display());
    let config = ObjectsConfig {
        url,
        ..ObjectsConfig::default()
    };
    let objects = Objects::open(&config).unwrap();
    (dir, objects)
}

pub async fn install(objects: &Objects, name: &str, seed: u64) -> BaseModel {
    let files = tiny_model::files(seed).into_iter();
    let files = files.map(|(file, bytes)| (file.to_owned(), bytes));
    install_files(objects, name, seed, files.collect()).await
}

/// Installs the files of a folder in the bucket; `seed` tells models apart.
pub async fn install_files(
    objects: &Objects,
    name: &str,
    seed: u64,
    contents: Vec<(String, Vec<u8>)>,
) -> BaseModel {
    let sha256 = format!("{seed:064x}");
    let object_prefix = object_key::base_model(name, &sha256);
    let mut files = Vec::new();
    for (file, bytes) in contents {
        let stored = objects
            .put_bytes(&format!("{object_prefix}/{file}"), bytes.into())
            .await
            .unwrap();
        files.push(ManifestFile {
            name: file,
            size_bytes: stored.size_bytes,
            sha256: stored.sha256,
        });
    }
    BaseModel {
        name: name.to_owned(),
        sha256,
        object_prefix,
        files,
        architecture: "LlamaForCausalLM".to_owned(),
        hidden_size: tiny_model::HIDDEN as u32,
        n_parameters: 100_000,
        context_length: tiny_model::CONTEXT as u32,
        created_at: Timestamp(0),
    }
}

pub fn row(question: &str, answer: &str) -> String {
    serde_json::json!({"messages": [
        {"role": "user", "content": question}, {"role": "assistant", "content": answer}
    ]})
    .to_string()
}

pub fn message(content: &str) -> ChatMessage {
    ChatMessage::new(Role::User, content)
}

/// A greedy request for one answer of at most `max_tokens`.
pub fn ask(content: &str, max_tokens: u32) -> GenerateRequest {
    let model = ServedModel {
        base_model: "tiny".to_owned(),
        adapter: None,
    };
    GenerateRequest {
        max_tokens: Some(max_tokens),
        sampling: SamplingParams {
            temperature: 0.0,
            ..SamplingParams::default()
        },
        ..GenerateRequest::new(model, "proj_house".to_owned(), vec![message(content)])
    }
}

pub fn with_adapter(mut request: GenerateRequest, adapter: &AdapterRef) -> GenerateRequest {
    request.model.adapter = Some(adapter.clone());
    request
}

impl House {
    pub async fn post(&self, worker: &Running, request: &GenerateRequest) -> reqwest::Response {
        self.post_to(worker, "/v1/generate", request).await
    }

    pub async fn post_to(
        &self,
        worker: &Running,
        path: &str,
        request: &impl serde::Serialize,
    ) -> reqwest::Response {
        let token = service_token::issue(&self.key, "worker", Duration::from_secs(60));
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let url = format!("{}{path}", worker.address);
        client
            .post(url)
            .bearer_auth(token)
            .json(request)
            .send()
            .await
            .unwrap()
    }

    /// Every line of a whole answer.
    pub async fn generate(
        &self,
        worker: &Running,
        request: &GenerateRequest,
    ) -> Vec<GenerateEvent> {
        let reply = self.post(worker, request).await;
        assert_eq!(reply.status(), 200, "{}", reply.text().await.unwrap());
        let text = reply.text().await.unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

/// The whole text of answer `index`.
pub fn text_of(events: &[GenerateEvent], index: u32) -> String {
    let texts = events.iter().filter_map(|event| match event {
        GenerateEvent::Delta { index: i, text, .. } if *i == index => Some(text.as_str()),
        _ => None,
    });
    texts.collect()
}
