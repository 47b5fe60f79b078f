//! A completion of texts, chunk by chunk.

use bytes::Bytes;
use domain::message::GenerateEvent;
use domain::usage::TokenUsage;
use futures::Stream;

use super::{DONE, push, push_error, spelled};
use crate::app::chat::broken_off;
use crate::app::completion::{Answers, Event};
use crate::app::workers::api_error;
use crate::wire::chat_reply::finish_reason;
use crate::wire::completion_reply::{CompletionChunk, CompletionChunkChoice, CompletionLogprobs};
use crate::wire::nullable::Nullable;

/// What is the same in every chunk, and where the answers stand.
struct Frame {
    id: String,
    created: i64,
    model: String,
    has_logprobs: bool,
    include_usage: bool,
    /// Where the next token of each answer begins. Characters.
    offsets: Vec<u64>,
    usage: TokenUsage,
    /// Prompts whose answers are not all there.
    n_left: u32,
    /// The last event was seen; nothing follows it.
    ended: bool,
}

/// The answers' events as bytes.
pub fn sse(answers: Answers, include_usage: bool) -> impl Stream<Item = Bytes> + Send + 'static {
    let frame = Frame {
        id: answers.id.to_string(),
        created: answers.created,
        model: answers.model,
        has_logprobs: answers.has_logprobs,
        include_usage,
        offsets: vec![0; (answers.n_prompts * answers.n) as usize],
        usage: TokenUsage::default(),
        n_left: answers.n_prompts,
        ended: false,
    };
    let broken_off = Err(api_error(&broken_off()));
    spelled(answers.events, broken_off, frame, Frame::bytes)
}

impl Frame {
    /// What the event adds; `None` once the answers have ended.
    fn bytes(&mut self, event: Event) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let mut out = Vec::new();
        match event {
            Ok(GenerateEvent::Delta {
                index,
                text,
                logprobs,
            }) => {
                let mut shown = CompletionLogprobs::none();
                if let Some(offset) = self.offsets.get_mut(index as usize) {
                    for token in logprobs {
                        *offset = shown.push(token, *offset);
                    }
                }
                let shown = self.has_logprobs.then_some(shown);
                self.choice(&mut out, index, text, shown, None);
            }
            Ok(GenerateEvent::Echo {
                index,
                text,
                tokens,
            }) => {
                if let Some(offset) = self.offsets.get_mut(index as usize) {
                    *offset += text.chars().count() as u64;
                }
                let mut shown = CompletionLogprobs::none();
                for token in tokens {
                    shown.push_echoed(token);
                }
                self.choice(&mut out, index, text, Some(shown), None);
            }
            Ok(GenerateEvent::Finished {
                index,
                finish_reason: reason,
            }) => self.choice(
                &mut out,
                index,
                String::new(),
                None,
                Some(finish_reason(reason)),
            ),
            Ok(GenerateEvent::Done { usage }) => {
                self.usage += usage;
                self.n_left -= 1;
                if self.n_left == 0 {
                    if self.include_usage {
                        push(&mut out, &self.chunk(Vec::new(), Some(self.usage)));
                    }
                    out.extend_from_slice(DONE);
                    self.ended = true;
                }
            }
            Ok(_) => {}
            Err(error) => {
                push_error(&mut out, &error);
                self.ended = true;
            }
        }
        Some(out.into())
    }

    fn choice(
        &self,
        out: &mut Vec<u8>,
        index: u32,
        text: String,
        logprobs: Option<CompletionLogprobs>,
        finish_reason: Option<&'static str>,
    ) {
        let choice = CompletionChunkChoice {
            text,
            index,
            logprobs: Nullable(logprobs),
            finish_reason: Nullable(finish_reason),
        };
        push(out, &self.chunk(vec![choice], None));
    }

    fn chunk(
        &self,
        choices: Vec<CompletionChunkChoice>,
        usage: Option<TokenUsage>,
    ) -> CompletionChunk {
        CompletionChunk {
            id: self.id.clone(),
            object: "text_completion",
            created: self.created,
            model: self.model.clone(),
            choices,
            usage: self.include_usage.then(|| Nullable(usage.map(Into::into))),
        }
    }
}

#[cfg(test)]
mod tests {
    use domain::generation::FinishReason;
    use domain::id::CompletionId;
    use futures::StreamExt;

    use super::*;

    fn of_answer(index: u32) -> [Event; 3] {
        let usage = TokenUsage {
            prompt_tokens: 5,
            cached_tokens: 0,
            completion_tokens: 2,
        };
        [
            Ok(GenerateEvent::Delta {
                index,
                text: "é".to_owned(),
                logprobs: Vec::new(),
            }),
            Ok(GenerateEvent::Finished {
                index,
                finish_reason: FinishReason::Length,
            }),
            Ok(GenerateEvent::Done { usage }),
        ]
    }

    async fn bytes_of(events: Vec<Event>) -> String {
        let answers = Answers {
            id: CompletionId::mint([0; 24]),
            created: 7,
            model: "m".to_owned(),
            n_prompts: 2,
            best_of: 1,
            n: 1,
            has_logprobs: false,
            rate: None,
            events: futures::stream::iter(events).boxed(),
        };
        let bytes: Vec<Bytes> = sse(answers, true).collect().await;
        let text = String::from_utf8(bytes.concat()).unwrap();
        text.replace("cmpl-000000000000000000000000", "ID")
    }

    fn chunk(choices: &str, usage: &str) -> String {
        format!(
            "data: {{\"id\":\"ID\",\"object\":\"text_completion\",\"created\":7,\"model\":\"m\",\"choices\":[{choices}],\"usage\":{usage}}}\n\n"
        )
    }

    #[tokio::test]
    async fn a_stream_ends_when_every_prompt_is_answered() {
        let events: Vec<Event> = of_answer(1).into_iter().chain(of_answer(0)).collect();
        let text = |index: u32| {
            let text =
                format!(r#"{{"text":"é","index":{index},"logprobs":null,"finish_reason":null}}"#);
            chunk(&text, "null")
        };
        let end = |index: u32| {
            let end = format!(
                r#"{{"text":"","index":{index},"logprobs":null,"finish_reason":"length"}}"#
            );
            chunk(&end, "null")
        };
        let usage = r#"{"prompt_tokens":10,"prompt_tokens_details":{"cached_tokens":0},"completion_tokens":4,"total_tokens":14}"#;
        let expected = [
            text(1),
            end(1),
            text(0),
            end(0),
            chunk("", usage),
            "data: [DONE]\n\n".to_owned(),
        ];
        assert_eq!(bytes_of(events).await, expected.concat());
    }

    #[tokio::test]
    async fn a_prompt_that_is_not_answered_ends_all_with_an_error() {
        let text = bytes_of(of_answer(0).into_iter().collect()).await;
        assert!(text.contains("data: {\"error\""), "{text}");
        assert!(!text.contains("[DONE]"), "{text}");
    }
}
