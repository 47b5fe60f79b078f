//! `/v1/x/fine_tuning/jobs/{id}/stream`: jobs followed as they go on.

use domain::audit::AuditKind;
use domain::id::{JobId, ProjectId};
use domain::job_event::JobEvent;
use futures::StreamExt;
use reqwest::Method;
use serde_json::{Value, json};

use crate::administration::{new_project, ok};
use crate::support::{App, entry, make_key, make_key_with, now};

/// What is read of a stream, block by block.
struct Blocks {
    bytes: futures::stream::BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    text: String,
}

impl Blocks {
    async fn open(app: &App, path: &str) -> Self {
        let response = app.request(Method::GET, path).send().await.unwrap();
        assert_eq!(response.status(), 200);
        let kind = response.headers()["content-type"].to_str().unwrap();
        assert!(kind.starts_with("text/event-stream"), "{kind}");
        Self {
            bytes: response.bytes_stream().boxed(),
            text: String::new(),
        }
    }

    /// The next block; `None` at the end.
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.text = rest;
                return Some(block);
            }
            let chunk = self.bytes.next().await?.unwrap();
            self.text += std::str::from_utf8(&chunk).unwrap();
        }
    }

    async fn rest(&mut self) -> Vec<String> {
        let mut blocks = Vec::new();
        while let Some(block) = self.next().await {
            blocks.push(block);
        }
        blocks
    }
}

fn data(block: &str) -> Value {
    let line = block.lines().find_map(|line| line.strip_prefix("data: "));
    serde_json::from_str(line.unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_come_as_they_happen_and_the_job_at_the_end() {
    let app = App::start().await;
    let job = app.new_job(json!({})).await;
    let path = format!("/v1/x/fine_tuning/jobs/{job}/stream");
    let mut followers = Vec::new();
    for _ in 0..3 {
        let mut blocks = Blocks::open(&app, &path).await;
        let first = blocks.next().await.unwrap();
        let event = data(&first);
        let head = format!(
            "id: {}\nevent: fine_tuning.job.event\ndata: ",
            event["id"].as_str().unwrap()
        );
        assert!(first.starts_with(&head), "{first}");
        assert_eq!(event["message"], format!("Created fine-tuning job: {job}"));
        followers.push(blocks);
    }
    app.succeed(&JobId::parse(&job).unwrap()).await;
    for mut blocks in followers {
        let mut rest = blocks.rest().await;
        assert_eq!(rest.pop().unwrap(), "data: [DONE]");
        let last = rest.pop().unwrap();
        assert!(last.starts_with("event: fine_tuning.job\n"), "{last}");
        let ended = app.get(&format!("/v1/fine_tuning/jobs/{job}")).await.json();
        assert_eq!(data(&last), ended);
        assert_eq!(ended["status"], "succeeded");
        let events = format!("/v1/fine_tuning/jobs/{job}/events?limit=100");
        let mut listed = app.get(&events).await.json()["data"]
            .as_array()
            .unwrap()
            .clone();
        listed.reverse();
        let read: Vec<Value> = rest.iter().map(|block| data(block)).collect();
        assert_eq!(read, listed[1..]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_cut_off_goes_on_behind_the_last_event() {
    let app = App::start().await;
    let job = app.new_job(json!({})).await;
    app.apply(&JobId::parse(&job).unwrap(), JobEvent::CancelRequested)
        .await;
    let path = format!("/v1/x/fine_tuning/jobs/{job}/stream");
    let all = Blocks::open(&app, &path).await.rest().await;
    assert!(all.len() >= 4, "{all:?}");
    let first = data(&all[0])["id"].as_str().unwrap().to_owned();
    let after = Blocks::open(&app, &format!("{path}?after={first}"))
        .await
        .rest()
        .await;
    assert_eq!(after, all[1..]);
    let request = app
        .request(Method::GET, &path)
        .header("last-event-id", &first);
    let text = request.send().await.unwrap().text().await.unwrap();
    let blocks: Vec<&str> = text.split_terminator("\n\n").collect();
    assert_eq!(blocks, all[1..]);
    let unknown = app.get(&format!("{path}?after=ftevent-no")).await;
    assert_eq!(unknown.status, 404);
}

#[tokio::test]
async fn a_foreign_job_is_no_job() {
    let app = App::start().await;
    let job = app.new_job(json!({})).await;
    let path = format!("/v1/x/fine_tuning/jobs/{job}/stream");
    let foreign = app.foreign(Method::GET, &path).await;
    let unknown = app.get("/v1/x/fine_tuning/jobs/ftjob-no/stream").await;
    assert_eq!(
        (foreign.status.as_u16(), unknown.status.as_u16()),
        (404, 404)
    );
    assert_eq!(
        foreign.json()["error"]["code"],
        unknown.json()["error"]["code"]
    );
}

/// The stream of the job as whoever has this key follows it, behind the events of its making.
async fn followed(app: &mut App, key: String, job: &str) -> Blocks {
    let own = std::mem::replace(&mut app.key, key);
    let mut blocks = Blocks::open(app, &format!("/v1/x/fine_tuning/jobs/{job}/stream")).await;
    app.key = own;
    for _ in ["created", "validating"] {
        assert!(blocks.next().await.unwrap().starts_with("id: "));
    }
    blocks
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_what_opened_it() {
    let mut app = App::start().await;
    let job = app.new_job(json!({})).await;
    let (store, config, project) = (app.store.clone(), app.config.clone(), app.project.clone());
    let mut id = None;
    let revoked = make_key_with(&store, &config, &project.id, |key| {
        id = Some(key.id.clone());
    });
    let revoked = revoked.await;
    let expiring = make_key_with(&store, &config, &project.id, |key| {
        key.expires_at = Some(now().plus_s(3));
    });
    let expiring = expiring.await;
    let lasting = app.key.clone();
    let mut lasting = followed(&mut app, lasting, &job).await;
    let ending = [
        followed(&mut app, revoked, &job).await,
        followed(&mut app, expiring, &job).await,
    ];
    // By another process.
    let id = id.unwrap();
    let told = entry(
        &project.organization_id,
        AuditKind::ApiKeyDeleted,
        id.as_str(),
    );
    let is_revoked = store.api_keys().revoke(&project.id, &id, &told).await;
    assert_eq!(is_revoked, Ok(true));
    for mut blocks in ending {
        assert_eq!(blocks.rest().await, [""; 0]);
    }
    // Another key reads on.
    app.apply(&JobId::parse(&job).unwrap(), JobEvent::CancelRequested)
        .await;
    assert_eq!(lasting.rest().await.pop().unwrap(), "data: [DONE]");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_when_its_project_is_archived() {
    let mut app = App::start().await;
    let project = ProjectId::parse(&new_project(&app, "short-lived").await).unwrap();
    let own = make_key(&app.store, &app.config, &project).await;
    let default = std::mem::replace(&mut app.key, own.clone());
    let job = app.new_job(json!({})).await;
    app.key = default;
    let mut blocks = followed(&mut app, own, &job).await;
    let archive = format!("/organization/projects/{project}/archive");
    ok(app.admin(Method::POST, &archive, Value::Null).await);
    assert_eq!(blocks.rest().await, [""; 0]);
}
