//! `/v1/completions`.

use domain::message::Prompt;
use serde_json::{Value, json};

use crate::support::{App, BASE_MODEL, Reply};

async fn complete(app: &App, fields: Value) -> Reply {
    let mut body = json!({"model": BASE_MODEL, "prompt": "Once é"});
    for (key, value) in fields.as_object().unwrap() {
        body[key] = value.clone();
    }
    app.post("/v1/completions", body).await
}

fn logprobs(tokens: Value, token_logprobs: Value, top: Value, offsets: Value) -> Value {
    json!({"tokens": tokens, "token_logprobs": token_logprobs, "top_logprobs": top, "text_offset": offsets})
}

#[tokio::test]
async fn an_echoed_prompt_has_its_log_probabilities_before_those_of_the_answer() {
    let app = App::start().await;
    let answer = complete(&app, json!({"echo": true, "logprobs": 1, "n": 2})).await;
    let answer = answer.json();
    let choice = |index: u32| {
        json!({
            "text": "Once éHello wörld", "index": index, "finish_reason": "stop",
            "logprobs": logprobs(
                json!(["Once", " é", "Hello", " wörld"]),
                json!([null, -0.5, -0.5, -0.5]),
                json!([null, {" é": -0.5}, {"Hello": -0.5}, {" wörld": -0.5}]),
                json!([0, 4, 6, 11]),
            ),
        })
    };
    assert_eq!(
        answer,
        json!({
            "id": answer["id"], "object": "text_completion", "created": answer["created"], "model": BASE_MODEL,
            "choices": [choice(0), choice(1)],
            "usage": {"prompt_tokens": 7, "prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens": 6, "total_tokens": 13},
        })
    );
    let asked = app.worker.last();
    assert!(asked.echo && asked.echo_logprobs);
    assert_eq!((asked.n, asked.top_logprobs), (2, Some(1)));
    complete(&app, json!({"logprobs": 1})).await;
    assert!(!app.worker.last().echo_logprobs);
    complete(&app, json!({"echo": true, "best_of": 2})).await;
    assert!(!app.worker.last().echo_logprobs);
}

#[tokio::test]
async fn a_prompt_is_scored_without_an_answer() {
    let app = App::start().await;
    let fields = json!({"prompt": [[5, 6], [7]], "echo": true, "logprobs": 0, "max_tokens": 0});
    let answer = complete(&app, fields).await.json();
    assert_eq!(app.worker.last().max_tokens, Some(0));
    assert_eq!(app.worker.last().prompt, Some(Prompt::Tokens(vec![7])));
    let choice = |index: u32| {
        json!({
            "text": "Once é", "index": index, "finish_reason": "length",
            "logprobs": logprobs(json!(["Once", " é"]), json!([null, -0.5]), json!([null, {}]), json!([0, 4])),
        })
    };
    assert_eq!(answer["choices"], json!([choice(0), choice(1)]));
    let usage = &answer["usage"];
    assert_eq!(
        (&usage["completion_tokens"], &usage["total_tokens"]),
        (&json!(0), &json!(14))
    );
}

#[tokio::test]
async fn a_stream_begins_with_the_prompt_and_its_log_probabilities() {
    let app = App::start().await;
    let fields = json!({"echo": true, "logprobs": 1, "stream": true});
    let streamed = complete(&app, fields).await;
    let chunks: Vec<Value> = std::str::from_utf8(&streamed.bytes)
        .unwrap()
        .lines()
        .filter_map(|line| line.strip_prefix("data: {"))
        .map(|rest| serde_json::from_str(&format!("{{{rest}")).unwrap())
        .collect();
    let shown: Vec<_> = chunks
        .iter()
        .map(|chunk| {
            let choice = &chunk["choices"][0];
            (&choice["text"], &choice["logprobs"]["text_offset"])
        })
        .collect();
    let expected = [
        (json!("Once é"), json!([0])),
        (json!(""), json!([4])),
        (json!("Hello"), json!([6])),
        (json!(" wörld"), json!([11])),
        (json!(""), Value::Null),
    ];
    let expected: Vec<_> = expected.iter().map(|(text, at)| (text, at)).collect();
    assert_eq!(shown, expected);
    assert_eq!(
        chunks[0]["choices"][0]["logprobs"]["token_logprobs"],
        json!([null])
    );
}
