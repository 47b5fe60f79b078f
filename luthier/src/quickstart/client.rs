//! The few calls of OpenAI's API that the quickstart makes: a plain HTTP client, as any user would write.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

pub struct Client {
    http: reqwest::Client,
    base_url: String,
}

impl Client {
    pub fn new(base_url: String, api_key: &str) -> Result<Self> {
        let mut headers = reqwest::header::HeaderMap::new();
        let mut bearer = reqwest::header::HeaderValue::from_str(&format!("Bearer {api_key}"))?;
        bearer.set_sensitive(true);
        headers.insert(reqwest::header::AUTHORIZATION, bearer);
        let http = reqwest::Client::builder()
            .default_headers(headers)
            .no_proxy()
            .build()?;
        Ok(Self { http, base_url })
    }

    pub async fn upload(&self, filename: &str, content: String) -> Result<String> {
        let part = reqwest::multipart::Part::text(content).file_name(filename.to_owned());
        let form = reqwest::multipart::Form::new()
            .text("purpose", "fine-tune")
            .part("file", part);
        let file = read(self.http.post(self.url("/files")).multipart(form))
            .await
            .context("upload")?;
        Ok(file["id"]
            .as_str()
            .context("the upload has no id")?
            .to_owned())
    }

    pub async fn create_job(&self, body: &Value) -> Result<String> {
        let job = self.post("/fine_tuning/jobs", body).await?;
        Ok(job["id"].as_str().context("the job has no id")?.to_owned())
    }

    pub async fn job(&self, id: &str) -> Result<Value> {
        self.get(&format!("/fine_tuning/jobs/{id}")).await
    }

    /// The newest events, newest first.
    pub async fn events(&self, id: &str, limit: u32) -> Result<Vec<Value>> {
        let page = self
            .get(&format!("/fine_tuning/jobs/{id}/events?limit={limit}"))
            .await?;
        Ok(page["data"].as_array().cloned().unwrap_or_default())
    }

    /// A greedy answer of at most `max_tokens` tokens.
    pub async fn ask(&self, model: &str, messages: &[Value], max_tokens: u32) -> Result<String> {
        let body = json!({ "model": model, "messages": messages, "max_tokens": max_tokens, "temperature": 0 });
        let answer = self.post("/chat/completions", &body).await?;
        Ok(answer["choices"][0]["message"]["content"]
            .as_str()
            .unwrap_or_default()
            .to_owned())
    }

    /// Waits until `model` answers: the worker has to load the weights first.
    pub async fn wait_until_serving(&self, model: &str) -> Result<()> {
        let spinner = crate::progress::spinner("loading the model");
        let question = [json!({ "role": "user", "content": "Hi" })];
        let mut last = None;
        for _ in 0..600 {
            match self.ask(model, &question, 1).await {
                Ok(_) => {
                    spinner.finish_and_clear();
                    return Ok(());
                }
                Err(e) => last = Some(e),
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        spinner.finish_and_clear();
        Err(last
            .unwrap_or_else(|| anyhow::anyhow!("no answer"))
            .context("the model did not start to answer in 5 minutes"))
    }

    async fn get(&self, path: &str) -> Result<Value> {
        read(self.http.get(self.url(path)))
            .await
            .with_context(|| format!("GET {path}"))
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        read(self.http.post(self.url(path)).json(body))
            .await
            .with_context(|| format!("POST {path}"))
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base_url)
    }
}

/// The reply's JSON; an error carries the service's own message.
async fn read(request: reqwest::RequestBuilder) -> Result<Value> {
    let reply = request.send().await?;
    let status = reply.status();
    let body: Value = reply
        .json()
        .await
        .with_context(|| format!("{status} without JSON"))?;
    if !status.is_success() {
        bail!(
            "{status}: {}",
            body["error"]["message"].as_str().unwrap_or("no message")
        );
    }
    Ok(body)
}
