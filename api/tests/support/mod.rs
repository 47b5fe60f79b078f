//! A running API with its own database, bucket and worker, and what tests say to it.

pub mod jobs;
pub mod worker;

use std::net::SocketAddr;

use api::auth::NewSecret;
use domain::api_key::{AdminKey, ApiKey, KeyKind, KeyOwner};
use domain::audit::{AuditEntry, AuditEvent, AuditKind};
use domain::base_model::BaseModel;
use domain::id::{AuditLogId, KeyId, OrganizationId, ProjectId, UserId};
use domain::project::Project;
use domain::scope::Scopes;
use domain::time::Timestamp;
use platform::config::Config;
use platform::objects::Objects;
use platform::shutdown::Shutdown;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use store::{Store, StoreConfig};

use self::worker::FakeWorker;

pub const BASE_MODEL: &str = "tiny-llama";

/// Two projects of one installation, each with a key.
pub struct App {
    pub base: String,
    pub operational: String,
    pub key: String,
    pub other_key: String,
    pub admin_key: String,
    pub config: Config,
    pub project: Project,
    pub store: Store,
    pub objects: Objects,
    pub worker: FakeWorker,
    pub http: reqwest::Client,
    pub directory: tempfile::TempDir,
    /// Ends the API that answers at `base`.
    pub shutdown: Shutdown,
}

/// A reply, whole.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: reqwest::header::HeaderMap,
    pub bytes: bytes::Bytes,
}

impl Reply {
    pub async fn of(response: reqwest::Response) -> Self {
        let (status, headers) = (response.status(), response.headers().clone());
        let bytes = response.bytes().await.unwrap();
        Self {
            status,
            headers,
            bytes,
        }
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes)
            .unwrap_or_else(|error| panic!("{error}: {:?}", String::from_utf8_lossy(&self.bytes)))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    /// The whole body is this error.
    #[track_caller]
    pub fn assert_error(
        &self,
        status: u16,
        code: Option<&str>,
        param: Option<&str>,
        message: &str,
    ) {
        let kind = match status {
            500 => "server_error",
            503 => "service_unavailable_error",
            _ => "invalid_request_error",
        };
        let expected =
            json!({"error": {"message": message, "type": kind, "param": param, "code": code}});
        assert_eq!((self.status.as_u16(), self.json()), (status, expected));
        assert!(self.header("content-type").starts_with("application/json"));
        assert!(self.header("x-request-id").starts_with("req_"));
    }

    /// The error names this parameter with this code.
    #[track_caller]
    pub fn assert_refused(&self, code: &str, param: &str) {
        let error = &self.json()["error"];
        assert_eq!(
            (self.status.as_u16(), &error["code"], &error["param"]),
            (400, &json!(code), &json!(param)),
            "{error}"
        );
    }
}

/// `n` bytes between two pieces, made while they are sent: tests beside this one measure the process's memory.
pub fn body(before: Vec<u8>, n: usize, behind: Vec<u8>) -> reqwest::Body {
    const CHUNK: bytes::Bytes = bytes::Bytes::from_static(&[b' '; 65_536]);
    let whole = std::iter::repeat_n(CHUNK, n / CHUNK.len());
    let pieces = [before.into()].into_iter();
    let pieces = pieces
        .chain(whole)
        .chain([CHUNK.slice(..n % CHUNK.len()), behind.into()]);
    reqwest::Body::wrap_stream(futures::stream::iter(pieces.map(Ok::<_, std::io::Error>)))
}

pub fn now() -> Timestamp {
    let since = std::time::UNIX_EPOCH.elapsed().unwrap();
    Timestamp(since.as_micros() as i64)
}

impl App {
    pub async fn start() -> Self {
        Self::start_with(|_config| {}).await
    }

    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::embedded(directory.path());
        config.api.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        config.api.operational_listen = SocketAddr::from(([127, 0, 0, 1], 0));
        config.ensure_secrets().unwrap();
        change(&mut config);
        let store = Store::connect(&StoreConfig::new(config.database.url.expose()))
            .await
            .unwrap();
        store.migrate().await.unwrap();
        let objects = Objects::open(&config.objects).unwrap();
        let project = store
            .projects()
            .ensure_default([rand::random(), rand::random()], now())
            .await
            .unwrap();
        let other = Project {
            id: ProjectId::mint(rand::random()),
            name: "other".to_owned(),
            ..project.clone()
        };
        store.projects().insert(&other).await.unwrap();
        let key = make_key(&store, &config, &project.id).await;
        let other_key = make_key(&store, &config, &other.id).await;
        let admin_key = make_admin_key(&store, &config, &project.organization_id).await;
        install_base_model(&store).await;
        let worker = FakeWorker::start(config.service_key().unwrap().clone()).await;
        store
            .workers()
            .upsert(&worker.status(), now())
            .await
            .unwrap();
        let options = api::ApiOptions {
            config: config.clone(),
            store: store.clone(),
            objects: objects.clone(),
        };
        let server = api::bind(options).await.unwrap();
        let base = format!("http://{}", server.address());
        let operational = format!("http://{}", server.operational_address());
        let shutdown = Shutdown::new();
        tokio::spawn(server.serve(shutdown.clone()));
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self {
            base,
            operational,
            key,
            other_key,
            admin_key,
            config,
            project,
            store,
            objects,
            worker,
            http,
            directory,
            shutdown,
        }
    }

    /// One more API of this installation; `base` is its address from now on.
    pub async fn start_another(&mut self) {
        let options = api::ApiOptions {
            config: self.config.clone(),
            store: self.store.clone(),
            objects: self.objects.clone(),
        };
        let server = api::bind(options).await.unwrap();
        self.base = format!("http://{}", server.address());
        tokio::spawn(server.serve(Shutdown::new()));
    }

    /// Whether an API with this configuration opens its listeners.
    pub async fn try_bind(change: impl FnOnce(&mut Config)) -> Result<(), api::ApiStartError> {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::embedded(directory.path());
        config.api.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        config.api.operational_listen = SocketAddr::from(([127, 0, 0, 1], 0));
        config.ensure_secrets().unwrap();
        change(&mut config);
        let store = Store::connect(&StoreConfig::new(config.database.url.expose()))
            .await
            .unwrap();
        let objects = Objects::open(&config.objects).unwrap();
        api::bind(api::ApiOptions {
            config,
            store,
            objects,
        })
        .await
        .map(drop)
    }

    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http
            .request(method, format!("{}{path}", self.base))
            .bearer_auth(&self.key)
    }

    pub async fn get(&self, path: &str) -> Reply {
        Reply::of(self.request(Method::GET, path).send().await.unwrap()).await
    }

    pub async fn delete(&self, path: &str) -> Reply {
        Reply::of(self.request(Method::DELETE, path).send().await.unwrap()).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Reply {
        Reply::of(
            self.request(Method::POST, path)
                .json(&body)
                .send()
                .await
                .unwrap(),
        )
        .await
    }

    /// As the other project.
    pub async fn foreign(&self, method: Method, path: &str) -> Reply {
        self.with_key(&self.other_key, method, path).await
    }

    /// As whoever has this key.
    pub async fn with_key(&self, key: &str, method: Method, path: &str) -> Reply {
        let url = format!("{}{path}", self.base);
        let request = self.http.request(method, url).bearer_auth(key);
        Reply::of(request.send().await.unwrap()).await
    }

    /// As the administrator; `body` where it is not null.
    pub async fn admin(&self, method: Method, path: &str, body: Value) -> Reply {
        self.admin_with(&self.admin_key, method, path, body).await
    }

    /// As the administrator with this key.
    pub async fn admin_with(&self, key: &str, method: Method, path: &str, body: Value) -> Reply {
        let url = format!("{}/v1{path}", self.base);
        let request = self.http.request(method, url).bearer_auth(key);
        let request = match body {
            Value::Null => request,
            body => request.json(&body),
        };
        Reply::of(request.send().await.unwrap()).await
    }

    /// Uploads `content` for fine-tuning; its id.
    pub async fn upload(&self, content: &[u8]) -> String {
        self.upload_for("fine-tune", content).await
    }

    /// Uploads `content` for this purpose; its id.
    pub async fn upload_for(&self, purpose: &'static str, content: &[u8]) -> String {
        let part = reqwest::multipart::Part::bytes(content.to_vec()).file_name("train.jsonl");
        let form = reqwest::multipart::Form::new()
            .text("purpose", purpose)
            .part("file", part);
        let sent = self
            .request(Method::POST, "/v1/files")
            .multipart(form)
            .send()
            .await
            .unwrap();
        let reply = Reply::of(sent).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.json()["id"].as_str().unwrap().to_owned()
    }
}

/// The address of an API whose database has no tables yet, and its folder.
pub async fn api_without_tables() -> (String, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let mut config = Config::embedded(directory.path());
    config.api.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    config.api.operational_listen = SocketAddr::from(([127, 0, 0, 1], 0));
    config.ensure_secrets().unwrap();
    let url = config.database.url.expose();
    let store = Store::connect(&StoreConfig::new(url)).await.unwrap();
    let objects = Objects::open(&config.objects).unwrap();
    let options = api::ApiOptions {
        config,
        store,
        objects,
    };
    let server = api::bind(options).await.unwrap();
    let base = format!("http://{}", server.address());
    tokio::spawn(server.serve(Shutdown::new()));
    (base, directory)
}

pub async fn make_key(store: &Store, config: &Config, project: &ProjectId) -> String {
    make_key_with(store, config, project, |_key| {}).await
}

/// A key that `change` made another one.
pub async fn make_key_with(
    store: &Store,
    config: &Config,
    project: &ProjectId,
    change: impl FnOnce(&mut ApiKey),
) -> String {
    let secret = NewSecret::mint(config.key_pepper().unwrap(), KeyKind::Project);
    let mut key = ApiKey {
        id: KeyId::mint(rand::random()),
        project_id: project.clone(),
        name: "test".to_owned(),
        hmac: secret.hmac,
        redacted: secret.redacted,
        scopes: Scopes::All,
        owner: KeyOwner::Installation,
        created_at: now(),
        expires_at: None,
        last_used_at: None,
        revoked_at: None,
    };
    change(&mut key);
    let project = store.projects().find(project).await.unwrap().unwrap();
    let made = entry(
        &project.organization_id,
        AuditKind::ApiKeyCreated,
        key.id.as_str(),
    );
    store.api_keys().insert(&key, &made).await.unwrap();
    secret.value
}

pub async fn make_admin_key(
    store: &Store,
    config: &Config,
    organization: &OrganizationId,
) -> String {
    make_admin_key_of(store, config, organization, None).await
}

/// An admin key of this user.
pub async fn make_admin_key_of(
    store: &Store,
    config: &Config,
    organization: &OrganizationId,
    owner: Option<UserId>,
) -> String {
    let secret = NewSecret::mint(config.key_pepper().unwrap(), KeyKind::Admin);
    let key = AdminKey {
        id: KeyId::mint(rand::random()),
        organization_id: organization.clone(),
        name: "test".to_owned(),
        hmac: secret.hmac,
        redacted: secret.redacted,
        owner,
        created_at: now(),
        expires_at: None,
        last_used_at: None,
        revoked_at: None,
    };
    let made = entry(organization, AuditKind::ApiKeyCreated, key.id.as_str());
    store.admin_keys().insert(&key, &made).await.unwrap();
    secret.value
}

/// What the command line writes into the audit log.
pub fn entry(organization: &OrganizationId, kind: AuditKind, resource: &str) -> AuditEntry {
    AuditEntry {
        id: AuditLogId::mint(rand::random()),
        organization_id: organization.clone(),
        effective_at: now(),
        actor: None,
        project: None,
        event: AuditEvent {
            kind,
            resource_id: resource.to_owned(),
            details: json!({}),
        },
    }
}

async fn install_base_model(store: &Store) {
    let model = BaseModel {
        name: BASE_MODEL.to_owned(),
        sha256: "0".repeat(64),
        object_prefix: "base-models/tiny-llama/0".to_owned(),
        files: Vec::new(),
        architecture: "LlamaForCausalLM".to_owned(),
        hidden_size: 64,
        n_parameters: 1000,
        context_length: 512,
        created_at: Timestamp::from_unix_s(1_700_000_000),
    };
    store.base_models().upsert(&model).await.unwrap();
}
