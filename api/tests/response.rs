//! `/v1/responses`.

use domain::generation::{ResponseFormat, Role, ToolChoice};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{App, BASE_MODEL, Reply};

const RESPONSES: &str = "/v1/responses";

async fn respond(app: &App, input: Value, fields: Value) -> Reply {
    let mut body = json!({"model": BASE_MODEL, "input": input});
    for (key, value) in fields.as_object().unwrap() {
        body[key] = value.clone();
    }
    app.post(RESPONSES, body).await
}

/// A response that succeeds.
async fn responded(app: &App, input: Value, fields: Value) -> Value {
    let reply = respond(app, input, fields).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.json()
}

fn id(object: &Value) -> &str {
    object["id"].as_str().unwrap()
}

fn get() -> Value {
    json!({"type": "function", "name": "get", "parameters": null, "strict": false})
}

/// The suffix that the ids of a response's items share with it.
fn suffix(response: &Value) -> &str {
    id(response).strip_prefix("resp_").unwrap()
}

#[tokio::test]
async fn a_response_has_every_field() {
    let app = App::start().await;
    let reply = respond(&app, json!("hi"), json!({"temperature": 0.7})).await;
    let response = reply.json();
    let text =
        json!({"type": "output_text", "text": "Hello wörld", "annotations": [], "logprobs": []});
    let message = json!({
        "id": format!("msg_{}_0", suffix(&response)), "type": "message", "status": "completed", "role": "assistant",
        "content": [text],
    });
    let expected = json!({
        "id": response["id"], "object": "response", "created_at": response["created_at"],
        "completed_at": response["completed_at"], "status": "completed", "error": null, "incomplete_details": null,
        "background": false, "instructions": null, "max_output_tokens": null, "model": BASE_MODEL,
        "output": [message], "parallel_tool_calls": true, "previous_response_id": null, "store": true,
        "temperature": 0.7, "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [],
        "top_logprobs": 0, "top_p": 1.0, "truncation": "disabled", "metadata": {},
        "usage": {
            "input_tokens": 7, "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
            "output_tokens": 3, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 10,
        },
    });
    assert_eq!(response, expected);
    assert!(response["completed_at"].as_i64() >= response["created_at"].as_i64());
    assert_eq!(reply.header("openai-model"), BASE_MODEL);
}

#[tokio::test]
async fn what_is_asked_for_reaches_the_worker() {
    let app = App::start().await;
    let input = json!([
        {"role": "developer", "content": "In verse."},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"type": "function_call", "call_id": "call_9", "name": "get", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_9", "output": "20"},
    ]);
    let schema = json!({"type": "object"});
    let fields = json!({
        "instructions": "Be brief.", "temperature": 0.5, "top_p": 0.9, "max_output_tokens": 19, "top_logprobs": 2,
        "include": ["message.output_text.logprobs"], "tools": [get()], "tool_choice": {"type": "function", "name": "get"},
        "parallel_tool_calls": false, "metadata": {"k": "v"}, "user": "u", "reasoning": {"effort": "low"},
        "text": {"format": {"type": "json_schema", "name": "x", "strict": true, "schema": schema}},
    });
    let response = responded(&app, input, fields.clone()).await;
    let asked = app.worker.last();
    let said: Vec<_> = asked
        .messages
        .iter()
        .map(|m| (m.role, m.content.as_deref()))
        .collect();
    let expected = [
        (Role::System, Some("Be brief.")),
        (Role::Developer, Some("In verse.")),
        (Role::User, Some("ab")),
        (Role::Assistant, None),
        (Role::Tool, Some("20")),
    ];
    assert_eq!(said, expected);
    assert_eq!(asked.messages[3].tool_calls[0].id, "call_9");
    assert_eq!(asked.messages[4].tool_call_id.as_deref(), Some("call_9"));
    let function = json!({"type": "function", "function": {"name": "get", "strict": false}});
    assert_eq!(asked.tools, [function]);
    assert_eq!(asked.tool_choice, ToolChoice::Named("get".to_owned()));
    let format = ResponseFormat::JsonSchema {
        schema,
        strict: true,
    };
    assert_eq!(asked.response_format, format);
    assert_eq!(
        (asked.sampling.temperature, asked.sampling.top_p),
        (0.5, 0.9)
    );
    assert_eq!(
        (
            asked.n,
            asked.max_tokens,
            asked.top_logprobs,
            asked.parallel_tool_calls
        ),
        (1, Some(19), Some(2), false)
    );
    for key in [
        "instructions",
        "temperature",
        "top_p",
        "max_output_tokens",
        "top_logprobs",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "metadata",
    ] {
        assert_eq!(response[key], fields[key], "{key}");
    }
    assert_eq!(response["text"], fields["text"]);
    let logprobs = &response["output"][0]["content"][0]["logprobs"];
    assert_eq!(logprobs[1]["top_logprobs"].as_array().unwrap().len(), 2);
}

/// The events of a stream: each one's name, and its data as text.
fn events(text: &str) -> Vec<(&str, &str)> {
    let blocks = text.strip_suffix("\n\n").unwrap().split("\n\n");
    blocks
        .map(|block| {
            let (name, data) = block.split_once('\n').unwrap();
            let name = name.strip_prefix("event: ").unwrap();
            (name, data.strip_prefix("data: ").unwrap())
        })
        .collect()
}

/// The events of a stream as JSON; each is named as its type, and they are numbered from 0.
async fn streamed(app: &App, input: Value, mut fields: Value) -> Vec<Value> {
    fields["stream"] = json!(true);
    let reply = respond(app, input, fields).await;
    assert!(
        reply
            .header("content-type")
            .starts_with("text/event-stream"),
        "{reply:?}"
    );
    let text = String::from_utf8(reply.bytes.to_vec()).unwrap();
    let parsed = events(&text)
        .into_iter()
        .enumerate()
        .map(|(i, (name, data))| {
            let event: Value = serde_json::from_str(data).unwrap();
            assert_eq!(
                (&event["type"], &event["sequence_number"]),
                (&json!(name), &json!(i))
            );
            event
        });
    parsed.collect()
}

fn without_number(mut event: Value) -> Value {
    event.as_object_mut().unwrap().remove("sequence_number");
    event
}

#[tokio::test]
async fn a_stream_tells_a_text_as_openais_does() {
    let app = App::start().await;
    let mut events = streamed(&app, json!("hi"), json!({})).await;
    let response = events.pop().unwrap()["response"].take();
    assert_eq!(response["status"], json!("completed"));
    assert_eq!(
        app.get(&format!("{RESPONSES}/{}", id(&response)))
            .await
            .json(),
        response
    );
    let mut begun = response.clone();
    begun["status"] = json!("in_progress");
    begun["completed_at"] = Value::Null;
    begun["output"] = json!([]);
    begun.as_object_mut().unwrap().remove("usage");
    let mut done = response["output"][0].clone();
    let part = done["content"][0].clone();
    let item_id = done["id"].clone();
    let in_text = |kind: &str, fields: Value| {
        let mut event =
            json!({"type": kind, "output_index": 0, "item_id": item_id, "content_index": 0});
        for (key, value) in fields.as_object().unwrap() {
            event[key] = value.clone();
        }
        event
    };
    let empty = json!({"type": "output_text", "text": "", "annotations": [], "logprobs": []});
    let mut item = done.take();
    let ended = item.clone();
    item["status"] = json!("in_progress");
    item["content"] = json!([]);
    let expected = vec![
        json!({"type": "response.created", "response": begun}),
        json!({"type": "response.in_progress", "response": begun}),
        json!({"type": "response.output_item.added", "output_index": 0, "item": item}),
        in_text("response.content_part.added", json!({"part": empty})),
        in_text(
            "response.output_text.delta",
            json!({"delta": "Hello", "logprobs": []}),
        ),
        in_text(
            "response.output_text.delta",
            json!({"delta": " wörld", "logprobs": []}),
        ),
        in_text(
            "response.output_text.done",
            json!({"text": "Hello wörld", "logprobs": []}),
        ),
        in_text("response.content_part.done", json!({"part": part})),
        json!({"type": "response.output_item.done", "output_index": 0, "item": ended}),
    ];
    let told: Vec<Value> = events.into_iter().map(without_number).collect();
    assert_eq!(told, expected);
}

#[tokio::test]
async fn a_stream_tells_calls_as_openais_does() {
    let app = App::start().await;
    let fields = json!({"tools": [get()], "tool_choice": "required"});
    let events = streamed(&app, json!("hi"), fields).await;
    let response = &events.last().unwrap()["response"];
    let call = |n: usize, status: &str, arguments: &str| {
        json!({
            "id": format!("fc_{}_{n}", suffix(response)), "type": "function_call", "status": status,
            "call_id": format!("call_{n}"), "name": "get", "arguments": arguments,
        })
    };
    let whole = "{\"n\": 1}";
    assert_eq!(
        response["output"],
        json!([call(0, "completed", whole), call(1, "completed", whole)])
    );
    let told: Vec<Value> = events[2..12].iter().cloned().map(without_number).collect();
    let mut expected = Vec::new();
    for n in 0..2 {
        let item_id = format!("fc_{}_{n}", suffix(response));
        let delta = |delta: &str| json!({"type": "response.function_call_arguments.delta", "output_index": n, "item_id": item_id, "delta": delta});
        let added = call(n, "in_progress", "");
        expected.extend([
            json!({"type": "response.output_item.added", "output_index": n, "item": added}),
            delta("{\"n\": "),
            delta("1}"),
            json!({"type": "response.function_call_arguments.done", "output_index": n, "item_id": item_id, "name": "get", "arguments": whole}),
            json!({"type": "response.output_item.done", "output_index": n, "item": call(n, "completed", whole)}),
        ]);
    }
    assert_eq!(told, expected);
    assert_eq!(events.len(), 13);
}

#[tokio::test]
async fn a_stream_that_breaks_off_fails_and_is_not_kept() {
    let app = App::start().await;
    let events = streamed(&app, json!("breaks off"), json!({})).await;
    let last = events.last().unwrap();
    assert_eq!(last["type"], json!("response.failed"));
    let response = &last["response"];
    assert_eq!(
        (&response["status"], &response["error"]["code"]),
        (&json!("failed"), &json!("server_error"))
    );
    let path = format!("{RESPONSES}/{}", id(response));
    assert_eq!(app.get(&path).await.status, 404);
    let whole = respond(&app, json!("breaks off"), json!({})).await;
    assert_eq!(whole.status, 500);
}

#[tokio::test]
async fn an_answer_without_room_is_incomplete() {
    let app = App::start().await;
    let events = streamed(&app, json!("no room"), json!({})).await;
    let last = events.last().unwrap();
    assert_eq!(last["type"], json!("response.incomplete"));
    let response = &last["response"];
    assert_eq!(
        response["incomplete_details"],
        json!({"reason": "max_output_tokens"})
    );
    assert_eq!(response["output"][0]["status"], json!("incomplete"));
    let stored = app.get(&format!("{RESPONSES}/{}", id(response))).await;
    assert_eq!(stored.json(), *response);
}

#[tokio::test]
async fn a_conversation_goes_on_from_a_kept_response() {
    let app = App::start().await;
    let fields = json!({"instructions": "Be brief.", "tools": [get()], "tool_choice": "required"});
    let first = responded(&app, json!("weather?"), fields).await;
    let output = |n: u32| json!({"type": "function_call_output", "call_id": format!("call_{n}"), "output": "20"});
    let going_on = json!({"previous_response_id": first["id"]});
    let second = responded(&app, json!([output(0), output(1)]), going_on).await;
    assert_eq!(second["previous_response_id"], first["id"]);
    let third = json!({"previous_response_id": second["id"], "instructions": "Be kind."});
    let third = responded(&app, json!("thanks"), third).await;
    let roles: Vec<Role> = app.worker.last().messages.iter().map(|m| m.role).collect();
    use Role::{Assistant, System, Tool, User};
    assert_eq!(
        roles,
        [System, User, Assistant, Tool, Tool, Assistant, User]
    );
    let items = format!("{RESPONSES}/{}/input_items", id(&third));
    let listed = app.get(&format!("{items}?order=asc&limit=3")).await.json();
    let message = json!({
        "id": format!("msg_{}_in0", suffix(&first)), "type": "message", "status": "completed", "role": "user",
        "content": [{"type": "input_text", "text": "weather?"}],
    });
    let data = json!([message, first["output"][0], first["output"][1]]);
    let expected = json!({
        "object": "list", "data": data, "first_id": message["id"], "last_id": first["output"][1]["id"],
        "has_more": true,
    });
    assert_eq!(listed, expected);
    let newest = app.get(&format!("{items}?limit=2")).await.json();
    assert_eq!(newest["data"][0]["content"][0]["text"], json!("thanks"));
    assert_eq!(newest["data"][1], second["output"][0]);
    let rest = app
        .get(&format!(
            "{items}?order=asc&after={}",
            newest["data"][1]["id"].as_str().unwrap()
        ))
        .await
        .json();
    assert_eq!(rest["data"], json!([newest["data"][0]]));
    let again = responded(
        &app,
        Value::Null,
        json!({"previous_response_id": third["id"]}),
    )
    .await;
    assert_eq!(
        again["output"],
        json!([{
            "id": format!("msg_{}_0", suffix(&again)), "type": "message", "status": "completed", "role": "assistant",
            "content": third["output"][0]["content"],
        }])
    );
}

#[tokio::test]
async fn a_call_must_stand_with_what_came_of_it() {
    let app = App::start().await;
    let fields = json!({"tools": [get()], "tool_choice": "required"});
    let first = responded(&app, json!("weather?"), fields).await;
    let going_on = json!({"previous_response_id": first["id"]});
    let reply = respond(&app, json!("well?"), going_on).await;
    let message = "No tool output found for function call call_0.";
    reply.assert_error(400, None, Some("input"), message);
    let orphan = json!([{"type": "function_call_output", "call_id": "call_7", "output": "20"}]);
    let message = "No tool call found for function call output with call_id call_7.";
    respond(&app, orphan, json!({}))
        .await
        .assert_error(400, None, Some("input"), message);
}

#[tokio::test]
async fn what_is_not_kept_cannot_be_read_or_gone_on_with() {
    let app = App::start().await;
    let response = responded(&app, json!("hi"), json!({"store": false})).await;
    assert_eq!(response["store"], json!(false));
    let path = format!("{RESPONSES}/{}", id(&response));
    let message = format!("Response with id '{}' not found.", id(&response));
    app.get(&path).await.assert_error(404, None, None, &message);
    let going_on = json!({"previous_response_id": response["id"]});
    let message = format!("Previous response with id '{}' not found.", id(&response));
    respond(&app, json!("hi"), going_on).await.assert_error(
        400,
        Some("previous_response_not_found"),
        Some("previous_response_id"),
        &message,
    );
}

#[tokio::test]
async fn a_kept_response_is_read_deleted_and_never_cancelled() {
    let app = App::start().await;
    let response = responded(&app, json!("hi"), json!({"metadata": {"k": "v"}})).await;
    let path = format!("{RESPONSES}/{}", id(&response));
    assert_eq!(app.get(&path).await.json(), response);
    app.get(&format!("{path}?stream=true"))
        .await
        .assert_refused("unsupported_value", "stream");
    let cancelled = app.post(&format!("{path}/cancel"), json!({})).await;
    cancelled.assert_error(400, None, None, "Cannot cancel a synchronous response.");
    let deleted = app.delete(&path).await.json();
    assert_eq!(
        deleted,
        json!({"id": response["id"], "object": "response", "deleted": true})
    );
    assert_eq!(app.delete(&path).await.status, 404);
}

#[tokio::test]
async fn another_projects_response_is_as_absent_as_one_that_never_was() {
    let app = App::start().await;
    let response = responded(&app, json!("hi"), json!({})).await;
    for id in [id(&response), "resp_nope", "nope"] {
        let message = format!("Response with id '{id}' not found.");
        for (method, path) in [
            (Method::GET, format!("{RESPONSES}/{id}")),
            (Method::DELETE, format!("{RESPONSES}/{id}")),
            (Method::GET, format!("{RESPONSES}/{id}/input_items")),
            (Method::POST, format!("{RESPONSES}/{id}/cancel")),
        ] {
            let reply = app.foreign(method, &path).await;
            reply.assert_error(404, None, None, &message);
        }
        let body = json!({"model": BASE_MODEL, "input": "hi", "previous_response_id": id});
        let request = app.request(Method::POST, RESPONSES).json(&body);
        let mut request = request.build().unwrap();
        let bearer = format!("Bearer {}", app.other_key).parse().unwrap();
        request.headers_mut().insert("authorization", bearer);
        let reply = Reply::of(app.http.execute(request).await.unwrap()).await;
        reply.assert_refused("previous_response_not_found", "previous_response_id");
    }
}

#[tokio::test]
async fn a_refusal_names_what_the_client_sent() {
    let app = App::start().await;
    for fields in [json!({}), json!({"stream": true})] {
        let reply = respond(&app, json!("unanswerable"), fields.clone()).await;
        reply.assert_error(
            400,
            Some("invalid_value"),
            Some("text.format.schema"),
            "Invalid value for 'text.format.schema': no such keyword.",
        );
        let reply = respond(&app, json!("too long"), fields.clone()).await;
        reply.assert_refused("context_length_exceeded", "input");
        let unknown = respond(&app, json!("hi"), json!({"model": "no-such-model"})).await;
        unknown.assert_error(
            404,
            Some("model_not_found"),
            None,
            "The model `no-such-model` does not exist or you do not have access to it.",
        );
        let busy = respond(&app, json!("busy"), fields).await;
        assert_eq!(busy.status, 503);
    }
    assert_eq!(app.worker.n_asked(), 6);
}

#[tokio::test]
async fn input_is_counted_and_nothing_kept() {
    let app = App::start().await;
    let body = json!({"model": BASE_MODEL, "input": "hi", "instructions": "Be brief."});
    let counted = app.post(&format!("{RESPONSES}/input_tokens"), body).await;
    let expected = json!({"object": "response.input_tokens", "input_tokens": 7});
    assert_eq!(counted.json(), expected);
    assert_eq!(app.worker.last().messages.len(), 2);
}
