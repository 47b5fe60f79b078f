//! Stored chat completions.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{App, BASE_MODEL, Reply};

const CHAT: &str = "/v1/chat/completions";

async fn chat(app: &App, fields: Value) -> Reply {
    let parts = json!([{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]);
    let messages = json!([
        {"role": "system", "content": "Be brief.", "name": "s"},
        {"role": "user", "content": parts},
    ]);
    let mut body = json!({"model": BASE_MODEL, "messages": messages});
    for (key, value) in fields.as_object().unwrap() {
        body[key] = value.clone();
    }
    let reply = app.post(CHAT, body).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    reply
}

/// The id of a completion that was kept.
async fn kept(app: &App, metadata: Value) -> String {
    let reply = chat(app, json!({"store": true, "metadata": metadata})).await;
    reply.json()["id"].as_str().unwrap().to_owned()
}

fn ids(list: &Value) -> Vec<&str> {
    let data = list["data"].as_array().unwrap();
    data.iter()
        .map(|item| item["id"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn a_kept_completion_reads_back_as_it_was_answered() {
    let app = App::start().await;
    let fields = json!({"store": true, "n": 2, "logprobs": true, "metadata": {"k": "v"}});
    let mut answer = chat(&app, fields).await.json();
    let path = format!("{CHAT}/{}", answer["id"].as_str().unwrap());
    assert_eq!(answer.get("metadata"), None);
    answer["metadata"] = json!({"k": "v"});
    assert_eq!(app.get(&path).await.json(), answer);
    let listed = app.get(CHAT).await.json();
    let id = &answer["id"];
    let expected = json!({"object": "list", "data": [answer], "first_id": id, "last_id": id, "has_more": false});
    assert_eq!(listed, expected);
}

#[tokio::test]
async fn a_streamed_one_is_kept_too_and_nothing_is_unless_asked_for() {
    let app = App::start().await;
    chat(&app, json!({"metadata": {"k": "v"}})).await;
    chat(&app, json!({"store": false, "stream": true})).await;
    assert_eq!(app.get(CHAT).await.json()["data"], json!([]));
    let tool = json!({"type": "function", "function": {"name": "get"}});
    let calling =
        json!({"store": true, "stream": true, "tools": [tool], "tool_choice": "required"});
    for fields in [json!({"store": true, "stream": true}), calling] {
        let text = String::from_utf8(chat(&app, fields).await.bytes.to_vec()).unwrap();
        assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
        let first: Value = serde_json::from_str(text[6..].lines().next().unwrap()).unwrap();
        let stored = app
            .get(&format!("{CHAT}/{}", first["id"].as_str().unwrap()))
            .await
            .json();
        assert_eq!(stored["created"], first["created"]);
        assert_eq!(stored["metadata"], Value::Null);
        let message = &stored["choices"][0]["message"];
        match message["tool_calls"].as_array() {
            None => assert_eq!(message["content"], json!("Hello wörld")),
            Some(calls) => assert_eq!(calls[1]["function"]["arguments"], json!("{\"n\": 1}")),
        }
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_not_kept() {
    let app = App::start().await;
    for stream in [false, true] {
        let messages = json!([{"role": "user", "content": "breaks off"}]);
        let body =
            json!({"model": BASE_MODEL, "messages": messages, "store": true, "stream": stream});
        app.post(CHAT, body).await;
    }
    assert_eq!(app.get(CHAT).await.json()["data"], json!([]));
}

#[tokio::test]
async fn messages_are_told_as_they_were_spelled() {
    let app = App::start().await;
    let id = kept(&app, json!({})).await;
    let path = format!("{CHAT}/{id}/messages");
    let parts = json!([{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]);
    let (first, second) = (format!("{id}-0"), format!("{id}-1"));
    let expected = json!({
        "object": "list", "first_id": first, "last_id": second, "has_more": false,
        "data": [
            {"id": first, "role": "system", "content": "Be brief.", "content_parts": null, "name": "s", "refusal": null},
            {"id": second, "role": "user", "content": null, "content_parts": parts, "name": null, "refusal": null},
        ],
    });
    assert_eq!(app.get(&path).await.json(), expected);
    let page = app.get(&format!("{path}?limit=1&order=desc")).await.json();
    assert_eq!(
        (ids(&page), &page["has_more"]),
        (vec![second.as_str()], &json!(true))
    );
    let rest = app.get(&format!("{path}?after={first}")).await.json();
    assert_eq!(ids(&rest), [second.as_str()]);
    let unknown = app.get(&format!("{path}?after={id}-2")).await;
    assert_eq!(unknown.json()["error"]["param"], json!("after"));
}

#[tokio::test]
async fn lists_are_filtered_and_paged() {
    let app = App::start().await;
    let a = kept(&app, json!({"k": "v"})).await;
    let b = kept(&app, json!({"k": "v", "l": "w"})).await;
    for (query, expected, has_more) in [
        ("", vec![&a, &b], false),
        ("?order=desc&limit=1", vec![&b], true),
        (&format!("?after={a}"), vec![&b], false),
        ("?metadata[k]=v&metadata[l]=w", vec![&b], false),
        ("?model=tiny-llama", vec![&a, &b], false),
        ("?model=other", vec![], false),
    ] {
        let list = app.get(&format!("{CHAT}{query}")).await.json();
        assert_eq!(ids(&list), expected, "{query}");
        assert_eq!(list["has_more"], json!(has_more), "{query}");
    }
    app.get(&format!("{CHAT}?limit=0"))
        .await
        .assert_refused("integer_below_min_value", "limit");
    app.get(&format!("{CHAT}?order=up"))
        .await
        .assert_refused("invalid_value", "order");
}

#[tokio::test]
async fn metadata_is_changed_and_a_completion_deleted() {
    let app = App::start().await;
    let id = kept(&app, json!({"k": "v"})).await;
    let path = format!("{CHAT}/{id}");
    let changed = app.post(&path, json!({"metadata": {"k": "w"}})).await;
    assert_eq!(changed.json()["metadata"], json!({"k": "w"}));
    let changed = app.post(&path, json!({"metadata": null})).await.json();
    assert_eq!(changed["metadata"], Value::Null);
    assert_eq!(app.get(&path).await.json(), changed);
    app.post(&path, json!({}))
        .await
        .assert_refused("missing_required_parameter", "metadata");
    app.post(&path, json!({"metadata": {}, "model": "x"}))
        .await
        .assert_refused("unknown_parameter", "model");
    let deleted = app.delete(&path).await.json();
    let expected = json!({"id": id, "object": "chat.completion.deleted", "deleted": true});
    assert_eq!(deleted, expected);
    assert_eq!(app.get(&path).await.status, 404);
}

#[tokio::test]
async fn another_projects_completion_is_as_absent_as_one_that_never_was() {
    let app = App::start().await;
    let id = kept(&app, json!({"k": "v"})).await;
    for id in [id.as_str(), "chatcmpl-nope", "nope"] {
        let message = format!(
            "No stored chat completion found with id '{id}'. Only completions that were made with 'store' are kept."
        );
        for (method, path) in [
            (Method::GET, format!("{CHAT}/{id}")),
            (Method::DELETE, format!("{CHAT}/{id}")),
            (Method::GET, format!("{CHAT}/{id}/messages")),
        ] {
            let reply = app.foreign(method, &path).await;
            reply.assert_error(404, None, None, &message);
        }
    }
    let foreign = app.foreign(Method::GET, CHAT).await.json();
    assert_eq!(foreign["data"], json!([]));
    assert_eq!(app.get(&format!("{CHAT}/{id}")).await.status, 200);
}
