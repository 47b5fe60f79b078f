//! Responses that are kept.

use domain::generation::{Role, TokenLogprob};
use domain::id::{ProjectId, ResponseId};
use domain::response::{
    Item, ItemContent, Response, ResponseRequest, ResponseStatus, StoredResponse, TextPart,
};
use domain::usage::TokenUsage;
use serde_json::json;
use store::StoreError;

use crate::harness::{Db, on_both};
use crate::sample::{self, at};

on_both!(
    a_stored_response_reads_back_whole,
    a_deleted_response_is_gone,
    old_ones_go_and_the_others_stay,
);

pub fn stored(project: &ProjectId, s: i64) -> StoredResponse {
    let id = ResponseId::mint(sample::entropy());
    let said = |role, text: &str| ItemContent::Message {
        role,
        parts: vec![TextPart {
            text: text.into(),
            logprobs: vec![TokenLogprob {
                token: "é".into(),
                bytes: "é".into(),
                logprob: -0.1,
                top: Vec::new(),
            }],
        }],
    };
    let call = ItemContent::FunctionCall {
        call_id: "call_1".into(),
        name: "get".into(),
        arguments: "{\"☃\": 1}".into(),
    };
    let output = ItemContent::FunctionCallOutput {
        call_id: "call_1".into(),
        output: "'; DROP TABLE responses; --\0".into(),
    };
    let input = [said(Role::User, "hi"), call, output].into_iter();
    StoredResponse {
        project_id: project.clone(),
        input: input
            .enumerate()
            .map(|(i, content)| Item::of_input(&id, i, content))
            .collect(),
        response: Response {
            created_at: at(s),
            request: ResponseRequest {
                model: "tiny".into(),
                instructions: Some("Be brief.".into()),
                previous_response_id: Some(ResponseId::mint(sample::entropy())),
                max_output_tokens: Some(16),
                temperature: 0.7,
                top_p: 1.0,
                top_logprobs: 0,
                tools: vec![json!({"name": "get"})],
                tool_choice: json!("auto"),
                parallel_tool_calls: true,
                text_format: json!({"type": "text"}),
                metadata: vec![("z".into(), "1".into()), ("a".into(), "2".into())],
                store: true,
            },
            status: ResponseStatus::Completed { at: at(s + 1) },
            output: vec![Item::of_output(&id, 0, said(Role::Assistant, "é"))],
            usage: Some(TokenUsage {
                prompt_tokens: 7,
                cached_tokens: 3,
                completion_tokens: 2,
            }),
            id,
        },
    }
}

async fn a_stored_response_reads_back_whole(db: Db) {
    let project = sample::project(&db.store).await;
    let (responses, stored) = (db.store.responses(), stored(&project.id, 1));
    responses.insert(&stored).await.unwrap();
    let found = responses.find(&project.id, &stored.response.id).await;
    assert_eq!(found, Ok(Some(stored.clone())));
    let again = responses.insert(&stored).await;
    assert!(matches!(again, Err(StoreError::Conflict(_))), "{again:?}");
}

async fn a_deleted_response_is_gone(db: Db) {
    let project = sample::project(&db.store).await;
    let (responses, stored) = (db.store.responses(), stored(&project.id, 1));
    let id = &stored.response.id;
    responses.insert(&stored).await.unwrap();
    assert_eq!(responses.delete(&project.id, id).await, Ok(true));
    assert_eq!(responses.delete(&project.id, id).await, Ok(false));
    assert_eq!(responses.find(&project.id, id).await, Ok(None));
}

async fn old_ones_go_and_the_others_stay(db: Db) {
    let project = sample::project(&db.store).await;
    let responses = db.store.responses();
    let (old, new) = (stored(&project.id, 1), stored(&project.id, 2));
    for stored in [&old, &new] {
        responses.insert(stored).await.unwrap();
    }
    assert_eq!(responses.remove_older(at(2)).await, Ok(1));
    let gone = responses.find(&project.id, &old.response.id).await;
    assert_eq!(gone, Ok(None));
    let there = responses.find(&project.id, &new.response.id).await;
    assert_eq!(there, Ok(Some(new.clone())));
}
