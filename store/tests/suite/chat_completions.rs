//! Chat completions that clients asked to keep.

use domain::chat_completion::{ChatCompletion, Choice, StoredChatCompletion};
use domain::generation::{FinishReason, TokenLogprob, ToolCall, TopLogprob};
use domain::id::{ChatCompletionId, ProjectId};
use domain::page::{Order, PageRequest};
use domain::usage::TokenUsage;
use serde_json::json;
use store::chat_completions::ChatCompletionFilter;
use store::{MetadataFilter, StoreError};

use crate::harness::{Db, on_both};
use crate::sample::{self, at};

on_both!(
    a_stored_completion_reads_back_whole,
    lists_are_filtered_and_paged,
    metadata_is_put_in_place_of_what_there_is,
    a_deleted_completion_leaves_nothing,
    old_ones_go_and_the_others_stay,
);

pub fn stored(project: &ProjectId, s: i64, pairs: &[(&str, &str)]) -> StoredChatCompletion {
    let logprob = TokenLogprob {
        token: "é".into(),
        bytes: "é".into(),
        logprob: -0.1,
        top: vec![TopLogprob {
            token: "☃".into(),
            bytes: "☃".into(),
            logprob: -1.5e-7,
        }],
    };
    let choice = Choice {
        text: "é\0".into(),
        tool_calls: vec![ToolCall {
            id: "call_1".into(),
            name: "get".into(),
            arguments: "{}".into(),
        }],
        logprobs: Some(vec![logprob]),
        finish_reason: FinishReason::ToolCalls,
    };
    let pairs = pairs.iter().map(|(k, v)| ((*k).into(), (*v).into()));
    StoredChatCompletion {
        project_id: project.clone(),
        completion: ChatCompletion {
            id: ChatCompletionId::mint(sample::entropy()),
            created_at: at(s),
            model: "tiny".into(),
            choices: vec![choice],
            usage: TokenUsage {
                prompt_tokens: 7,
                cached_tokens: 3,
                completion_tokens: 2,
            },
        },
        metadata: Some(pairs.collect()),
    }
}

async fn kept(
    db: &Db,
    project: &ProjectId,
    s: i64,
    pairs: &[(&str, &str)],
) -> StoredChatCompletion {
    let stored = stored(project, s, pairs);
    let completions = db.store.chat_completions();
    completions.insert(&stored, &[]).await.unwrap();
    stored
}

async fn a_stored_completion_reads_back_whole(db: Db) {
    let project = sample::project(&db.store).await;
    let completions = db.store.chat_completions();
    let stored = stored(&project.id, 1, &[("z", "1"), ("a", "'; DROP TABLE")]);
    let messages = [
        json!({"role": "user", "content": "hi\0"}),
        json!({"x": [1]}),
    ];
    completions.insert(&stored, &messages).await.unwrap();
    let id = &stored.completion.id;
    assert_eq!(
        completions
            .messages(&project.id, id)
            .await
            .unwrap()
            .unwrap(),
        messages
    );
    let found = completions.find(&project.id, id).await.unwrap();
    assert_eq!(found, Some(stored.clone()));
    let again = completions.insert(&stored, &[]).await;
    assert!(matches!(again, Err(StoreError::Conflict(_))), "{again:?}");
}

async fn lists_are_filtered_and_paged(db: Db) {
    let project = sample::project(&db.store).await;
    let a = kept(&db, &project.id, 1, &[("k", "v")]).await;
    let b = kept(&db, &project.id, 2, &[("k", "v"), ("l", "w")]).await;
    let c = kept(&db, &project.id, 3, &[]).await;
    let pairs = |pairs: &[(&str, &str)]| {
        let pairs = pairs.iter().map(|(k, v)| ((*k).into(), (*v).into()));
        MetadataFilter::All(pairs.collect())
    };
    let list =
        async |model: Option<&str>, metadata, after: Option<&StoredChatCompletion>, limit| {
            let filter = ChatCompletionFilter {
                model: model.map(str::to_owned),
                metadata,
            };
            let page = PageRequest {
                after: after.map(|stored| stored.completion.id.to_string()),
                limit,
                order: Order::OldestFirst,
            };
            let completions = db.store.chat_completions();
            let page = completions.list(&project.id, &filter, &page).await.unwrap();
            (page.items, page.has_more)
        };
    use MetadataFilter::{Any, None_};
    assert_eq!(
        list(None, Any, None, 2).await,
        (vec![a.clone(), b.clone()], true)
    );
    assert_eq!(list(None, Any, Some(&b), 2).await, (vec![c.clone()], false));
    assert_eq!(list(Some("other"), Any, None, 2).await, (vec![], false));
    let both = list(Some("tiny"), pairs(&[("k", "v")]), None, 9).await;
    assert_eq!(both, (vec![a, b.clone()], false));
    let one = list(None, pairs(&[("k", "v"), ("l", "w")]), None, 9).await;
    assert_eq!(one, (vec![b], false));
    assert_eq!(list(None, None_, None, 9).await, (vec![c], false));
}

async fn metadata_is_put_in_place_of_what_there_is(db: Db) {
    let project = sample::project(&db.store).await;
    let completions = db.store.chat_completions();
    let first = kept(&db, &project.id, 1, &[("k", "v"), ("l", "w")]).await;
    let id = &first.completion.id;
    for metadata in [Some(vec![("k".to_owned(), "x".to_owned())]), None] {
        let expected = Some(StoredChatCompletion {
            metadata: metadata.clone(),
            ..first.clone()
        });
        let changed = completions.set_metadata(&project.id, id, metadata).await;
        assert_eq!(changed, Ok(expected.clone()));
        assert_eq!(completions.find(&project.id, id).await, Ok(expected));
    }
    let filter = ChatCompletionFilter {
        metadata: MetadataFilter::None_,
        ..Default::default()
    };
    let page = PageRequest {
        after: None,
        limit: 9,
        order: Order::NewestFirst,
    };
    let bare = completions.list(&project.id, &filter, &page).await.unwrap();
    assert_eq!(bare.items.len(), 1);
}

async fn a_deleted_completion_leaves_nothing(db: Db) {
    let project = sample::project(&db.store).await;
    let completions = db.store.chat_completions();
    let first = kept(&db, &project.id, 1, &[("k", "v")]).await;
    let id = &first.completion.id;
    assert_eq!(completions.delete(&project.id, id).await, Ok(true));
    assert_eq!(completions.delete(&project.id, id).await, Ok(false));
    assert_eq!(completions.find(&project.id, id).await, Ok(None));
    assert_eq!(completions.messages(&project.id, id).await, Ok(None));
    // Nothing of it is in the way of the same id.
    completions.insert(&first, &[]).await.unwrap();
}

async fn old_ones_go_and_the_others_stay(db: Db) {
    let project = sample::project(&db.store).await;
    let completions = db.store.chat_completions();
    let old = kept(&db, &project.id, 1, &[("k", "v")]).await;
    let new = kept(&db, &project.id, 2, &[("k", "v")]).await;
    assert_eq!(completions.remove_older(at(2)).await, Ok(1));
    let find = async |stored: &StoredChatCompletion| {
        let found = completions.find(&project.id, &stored.completion.id).await;
        found.unwrap()
    };
    assert_eq!(find(&old).await, None);
    assert_eq!(find(&new).await, Some(new.clone()));
}
