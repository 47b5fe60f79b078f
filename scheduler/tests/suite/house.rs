//! A scheduler with everything it stands on, and what a client of the API would have done.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use domain::base_model::{BaseModel, ManifestFile};
use domain::event::Event;
use domain::file::{File, Purpose};
use domain::hyperparameters::{Auto, Hyperparameters};
use domain::id::{FileId, JobId, base62};
use domain::job::{FineTuningJob, JobSpec, JobState};
use domain::method::Method;
use domain::object_key;
use domain::page::{Order, PageRequest};
use domain::project::Project;
use domain::time::Timestamp;
use platform::config::{Config, ModelPrice, ObjectsConfig, Secret};
use platform::objects::Objects;
use platform::service_token::{self, ServiceKey};
use scheduler::{Clock, Hints, Scheduler, SchedulerOptions, bind};
use store::{InsertLimits, Store, StoreConfig};

use crate::lossy_queue::LossyQueue;
use crate::scripted_worker::ScriptedWorker;

pub const BASE: &str = "tiny-chat";
const KEY: &str = "a service key of at least thirty-two bytes";

pub struct House {
    pub scheduler: Scheduler,
    pub address: SocketAddr,
    pub store: Store,
    pub objects: Objects,
    pub queue: LossyQueue,
    pub project: Project,
    pub config: Config,
    pub clock: Arc<AtomicI64>,
    _dir: tempfile::TempDir,
}

impl House {
    /// Without a broker, as on one machine.
    pub async fn new() -> Self {
        Self::with_queue(LossyQueue::none()).await
    }

    pub async fn with_queue(queue: LossyQueue) -> Self {
        Self::with(queue, |_config| {}).await
    }

    /// With these prices, spelled as in the configuration.
    pub async fn with_prices(prices: &[&str]) -> Self {
        let prices = prices.iter().map(|price| price.parse().unwrap());
        let prices: Vec<ModelPrice> = prices.collect();
        Self::with(LossyQueue::none(), |config| config.prices.models = prices).await
    }

    pub async fn with(queue: LossyQueue, change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        change(&mut config);
        let store = open(&config).await;
        store.migrate().await.unwrap();
        let objects = Objects::open(&config.objects).unwrap();
        let clock = Arc::new(AtomicI64::new(1_700_000_000_000_000));
        let now = Timestamp(clock.load(Ordering::SeqCst));
        let project = store
            .projects()
            .ensure_default([[1; 24], [2; 24]], now)
            .await
            .unwrap();
        let (scheduler, address) = open_door(&config, &store, &objects, &queue, &clock).await;
        let house = Self {
            scheduler,
            address,
            store,
            objects,
            queue,
            project,
            config,
            clock,
            _dir: dir,
        };
        house.install(BASE, None).await;
        house
    }

    /// Another scheduler on the same database, with connections of its own.
    pub async fn second_scheduler(&self) -> (Scheduler, SocketAddr) {
        let store = open(&self.config).await;
        open_door(
            &self.config,
            &store,
            &self.objects,
            &self.queue,
            &self.clock,
        )
        .await
    }

    /// The door of a scheduler that cannot reach its bucket.
    pub async fn door_without_objects(&self) -> SocketAddr {
        // A port that was free a moment ago: nobody answers there.
        let free = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let config = ObjectsConfig {
            url: "s3://bucket".to_owned(),
            endpoint: Some(format!("http://{free}")),
            access_key_id: Some("id".to_owned()),
            secret_access_key: Some(Secret::from("secret")),
            ..ObjectsConfig::default()
        };
        let objects = Objects::open(&config).unwrap();
        open_door(
            &self.config,
            &self.store,
            &objects,
            &self.queue,
            &self.clock,
        )
        .await
        .1
    }

    pub fn now(&self) -> Timestamp {
        Timestamp(self.clock.load(Ordering::SeqCst))
    }

    pub fn advance_s(&self, seconds: i64) {
        self.clock.fetch_add(seconds * 1_000_000, Ordering::SeqCst);
    }

    /// Lets time pass while the reaper keeps watch.
    pub async fn advance_reaping_s(&self, seconds: i64) {
        for _ in 0..seconds {
            self.advance_s(1);
            self.scheduler.reap_pass().await.unwrap();
        }
    }

    /// A base model from the golden chat model, with a template of its own if given.
    pub async fn install(&self, name: &str, template: Option<&str>) {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../text/tests/fixtures/chatml");
        let object_prefix = object_key::base_model(name, "0123");
        let mut files = Vec::new();
        for file in [
            "tokenizer.json",
            "tokenizer_config.json",
            "config.json",
            "chat_template.jinja",
        ] {
            let bytes = match (file, template) {
                ("chat_template.jinja", Some(template)) => template.as_bytes().to_vec(),
                _ => std::fs::read(fixtures.join(file)).unwrap(),
            };
            let key = format!("{object_prefix}/{file}");
            let stored = self
                .objects
                .put_bytes(&key, Bytes::from(bytes))
                .await
                .unwrap();
            files.push(ManifestFile {
                name: file.to_owned(),
                size_bytes: stored.size_bytes,
                sha256: stored.sha256,
            });
        }
        // Weights are listed and never fetched: there are none.
        files.push(ManifestFile {
            name: "model.safetensors".to_owned(),
            size_bytes: 1 << 40,
            sha256: "none".to_owned(),
        });
        let base = BaseModel {
            name: name.to_owned(),
            sha256: format!("hash-of-{name}"),
            object_prefix,
            files,
            architecture: "LlamaForCausalLM".to_owned(),
            hidden_size: 576,
            n_parameters: 1_000,
            context_length: 2_048,
            created_at: self.now(),
        };
        self.store.base_models().upsert(&base).await.unwrap();
    }

    pub async fn upload(&self, content: &str) -> FileId {
        let id = FileId::mint(rand::random());
        let object_key = object_key::file(&self.project.id, &id);
        let bytes = Bytes::from(content.to_owned());
        let stored = self.objects.put_bytes(&object_key, bytes).await.unwrap();
        let file = File {
            id: id.clone(),
            project_id: self.project.id.clone(),
            filename: "train.jsonl".to_owned(),
            purpose: Purpose::FineTune,
            size_bytes: stored.size_bytes,
            sha256: stored.sha256,
            object_key,
            created_at: self.now(),
            expires_at: None,
        };
        self.store.files().insert(&file, None).await.unwrap();
        id
    }

    /// Two epochs of three steps: 12 examples in batches of 4.
    pub async fn create_job(&self) -> JobId {
        let training_file = self.upload(&conversations(12)).await;
        self.create(spec(training_file)).await
    }

    pub async fn create(&self, spec: JobSpec) -> JobId {
        let (job, events) = FineTuningJob::create(
            JobId::mint(rand::random()),
            self.project.id.clone(),
            self.project.organization_id.clone(),
            self.project.organization_slug.clone(),
            spec,
            base62(&rand::random::<[u8; 8]>()),
            self.now(),
        );
        let limits = InsertLimits { max_active: None };
        self.store
            .jobs()
            .insert(&job, events, &limits, None)
            .await
            .unwrap();
        job.id
    }

    /// A job whose files were found good.
    pub async fn create_queued_job(&self) -> JobId {
        let id = self.create_job().await;
        self.scheduler.validate_pass().await.unwrap();
        assert_eq!(self.state(&id).await, JobState::Queued);
        id
    }

    pub async fn job(&self, id: &JobId) -> FineTuningJob {
        self.store.jobs().get_internal(id).await.unwrap().unwrap()
    }

    pub async fn state(&self, id: &JobId) -> JobState {
        self.job(id).await.state()
    }

    /// The job's story, oldest line first.
    pub async fn events(&self, id: &JobId) -> Vec<Event> {
        let page = PageRequest {
            after: None,
            limit: 10_000,
            order: Order::OldestFirst,
        };
        let mut events = self
            .store
            .events()
            .list(&self.project.id, id, &page)
            .await
            .unwrap()
            .items;
        events.sort_by_key(|event| event.seq);
        events
    }

    pub async fn messages(&self, id: &JobId) -> Vec<String> {
        self.events(id)
            .await
            .into_iter()
            .map(|event| event.message)
            .collect()
    }

    pub fn worker(&self, name: &str) -> ScriptedWorker {
        ScriptedWorker::new(name, self.address, self.objects.clone(), token("door"))
    }

    pub fn worker_at(&self, name: &str, address: SocketAddr) -> ScriptedWorker {
        ScriptedWorker::new(name, address, self.objects.clone(), token("door"))
    }
}

pub fn token(audience: &str) -> String {
    token_of(KEY, audience)
}

pub fn token_of(key: &str, audience: &str) -> String {
    service_token::issue(
        &ServiceKey::new(&Secret::from(key)),
        audience,
        Duration::from_secs(600),
    )
}

pub fn config(dir: &Path) -> Config {
    let mut config = Config::embedded(dir);
    config.secrets.service_key = Some(Secret::from(KEY));
    config.secrets.key_pepper = Some(Secret::from(KEY));
    config.webhooks.allowed_hosts = vec!["127.0.0.1".parse().unwrap()];
    config.webhooks.allow_http = true;
    config.scheduler.lease_ttl_s = 30;
    config
}

pub async fn open(config: &Config) -> Store {
    Store::connect(&StoreConfig::new(config.database.url.expose().clone()))
        .await
        .unwrap()
}

/// A scheduler that answers its door and does nothing by itself.
async fn open_door(
    config: &Config,
    store: &Store,
    objects: &Objects,
    queue: &LossyQueue,
    clock: &Arc<AtomicI64>,
) -> (Scheduler, SocketAddr) {
    let clock = clock.clone();
    let options = SchedulerOptions {
        config: config.clone(),
        store: store.clone(),
        objects: objects.clone(),
        queue: Hints::new(queue.clone()),
        clock: Clock::Given(Arc::new(move || Timestamp(clock.load(Ordering::SeqCst)))),
    };
    let server = bind(options).await.unwrap();
    let (scheduler, address) = (server.scheduler(), server.address());
    tokio::spawn(server.answer(std::future::pending()));
    (scheduler, address)
}

pub fn spec(training_file: FileId) -> JobSpec {
    let hyperparameters = Hyperparameters {
        n_epochs: Auto::Given(2),
        batch_size: Auto::Given(4),
        learning_rate_multiplier: Auto::Auto,
    };
    JobSpec {
        model: BASE.to_owned(),
        training_file,
        validation_file: None,
        suffix: None,
        seed: 7,
        method: Method::Supervised { hyperparameters },
        metadata: None,
        x_training: None,
    }
}

pub fn conversation(question: &str) -> String {
    serde_json::json!({ "messages": [
        { "role": "user", "content": question },
        { "role": "assistant", "content": "yes" },
    ]})
    .to_string()
}

pub fn conversations(n: usize) -> String {
    (0..n)
        .map(|i| conversation(&format!("question {i}")) + "\n")
        .collect()
}
