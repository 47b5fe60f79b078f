//! A chat completion, chunk by chunk.

use bytes::Bytes;
use domain::message::GenerateEvent;
use domain::usage::TokenUsage;
use futures::Stream;

use super::{DONE, push, push_error, spelled};
use crate::app::chat::{Answer, broken_off};
use crate::app::workers::api_error;
use crate::wire::chat_reply::{ChatCompletionChunk, ChunkChoice, Delta, Logprobs, finish_reason};
use crate::wire::nullable::Nullable;

/// What is the same in every chunk.
struct Frame {
    id: String,
    created: i64,
    model: String,
    n: u32,
    has_logprobs: bool,
    include_usage: bool,
    /// The last event was seen; nothing follows it.
    ended: bool,
}

/// The answer's events as bytes.
pub fn sse(answer: Answer, include_usage: bool) -> impl Stream<Item = Bytes> + Send + 'static {
    let frame = Frame {
        id: answer.id.to_string(),
        created: answer.created_at.unix_s(),
        model: answer.model,
        n: answer.n,
        has_logprobs: answer.has_logprobs,
        include_usage,
        ended: false,
    };
    let broken_off = GenerateEvent::Failed {
        error: broken_off(),
    };
    spelled(answer.events, broken_off, frame, Frame::bytes)
}

impl Frame {
    /// What the event adds; `None` once the answer has ended.
    fn bytes(&mut self, event: GenerateEvent) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let mut out = Vec::new();
        match event {
            // Only completions of texts begin with their prompt.
            GenerateEvent::Queued | GenerateEvent::Echo { .. } => {}
            GenerateEvent::Started { .. } => {
                for index in 0..self.n {
                    self.choice(&mut out, index, Delta::role(), None, None);
                }
            }
            GenerateEvent::Delta {
                index,
                text,
                logprobs,
            } => {
                let logprobs = self.has_logprobs.then(|| Logprobs::from(logprobs));
                self.choice(&mut out, index, Delta::text(text), logprobs, None);
            }
            GenerateEvent::ToolCall {
                index,
                call,
                id,
                name,
            } => self.choice(&mut out, index, Delta::call(call, id, name), None, None),
            GenerateEvent::ToolArguments {
                index,
                call,
                arguments,
            } => {
                let delta = Delta::arguments(call, arguments);
                self.choice(&mut out, index, delta, None, None);
            }
            GenerateEvent::Finished {
                index,
                finish_reason: reason,
            } => {
                self.choice(
                    &mut out,
                    index,
                    Delta::nothing(),
                    None,
                    Some(finish_reason(reason)),
                );
            }
            GenerateEvent::Done { usage } => self.end(&mut out, usage),
            GenerateEvent::Failed { error } => {
                push_error(&mut out, &api_error(&error));
                self.ended = true;
            }
        }
        Some(out.into())
    }

    fn choice(
        &self,
        out: &mut Vec<u8>,
        index: u32,
        delta: Delta,
        logprobs: Option<Logprobs>,
        finish_reason: Option<&'static str>,
    ) {
        let choice = ChunkChoice {
            index,
            delta,
            logprobs: Nullable(logprobs),
            finish_reason: Nullable(finish_reason),
        };
        push(out, &self.chunk(vec![choice], None));
    }

    fn end(&mut self, out: &mut Vec<u8>, usage: TokenUsage) {
        if self.include_usage {
            push(out, &self.chunk(Vec::new(), Some(usage)));
        }
        out.extend_from_slice(DONE);
        self.ended = true;
    }

    fn chunk(&self, choices: Vec<ChunkChoice>, usage: Option<TokenUsage>) -> ChatCompletionChunk {
        ChatCompletionChunk {
            id: self.id.clone(),
            object: "chat.completion.chunk",
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
    use domain::id::ChatCompletionId;
    use domain::time::Timestamp;
    use futures::StreamExt;

    use super::*;

    async fn bytes_of(events: Vec<GenerateEvent>, include_usage: bool) -> String {
        let answer = Answer {
            id: ChatCompletionId::mint([0; 24]),
            created_at: Timestamp::from_unix_s(7),
            model: "m".to_owned(),
            n: 1,
            has_logprobs: false,
            rate: None,
            events: futures::stream::iter(events).boxed(),
        };
        let bytes: Vec<Bytes> = sse(answer, include_usage).collect().await;
        let text = String::from_utf8(bytes.concat()).unwrap();
        text.replace("chatcmpl-000000000000000000000000", "ID")
    }

    fn head(choices: &str, tail: &str) -> String {
        format!(
            "data: {{\"id\":\"ID\",\"object\":\"chat.completion.chunk\",\"created\":7,\"model\":\"m\",\"choices\":[{choices}]{tail}}}\n\n"
        )
    }

    fn events() -> Vec<GenerateEvent> {
        vec![
            GenerateEvent::Started { prompt_tokens: 5 },
            GenerateEvent::Delta {
                index: 0,
                text: "Hé\n".to_owned(),
                logprobs: Vec::new(),
            },
            GenerateEvent::Finished {
                index: 0,
                finish_reason: FinishReason::Stop,
            },
            GenerateEvent::Done {
                usage: TokenUsage {
                    prompt_tokens: 5,
                    cached_tokens: 0,
                    completion_tokens: 2,
                },
            },
        ]
    }

    const ROLE: &str = r#"{"index":0,"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null}"#;
    const TEXT: &str =
        r#"{"index":0,"delta":{"content":"Hé\n"},"logprobs":null,"finish_reason":null}"#;
    const STOP: &str = r#"{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}"#;

    #[tokio::test]
    async fn a_stream_is_spelled_as_openai_spells_it() {
        let expected = [
            head(ROLE, ""),
            head(TEXT, ""),
            head(STOP, ""),
            "data: [DONE]\n\n".to_owned(),
        ]
        .concat();
        assert_eq!(bytes_of(events(), false).await, expected);
    }

    #[tokio::test]
    async fn calls_are_spelled_as_openai_spells_them() {
        let mut calling = events();
        let begins = GenerateEvent::ToolCall {
            index: 0,
            call: 0,
            id: "call_1".to_owned(),
            name: "get".to_owned(),
        };
        let arguments = GenerateEvent::ToolArguments {
            index: 0,
            call: 0,
            arguments: "{}".to_owned(),
        };
        let finished = GenerateEvent::Finished {
            index: 0,
            finish_reason: FinishReason::ToolCalls,
        };
        calling.splice(1..3, [begins, arguments, finished]);
        let begins = r#"{"index":0,"delta":{"tool_calls":[{"index":0,"id":"call_1","type":"function","function":{"name":"get","arguments":""}}]},"logprobs":null,"finish_reason":null}"#;
        let arguments = r#"{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{}"}}]},"logprobs":null,"finish_reason":null}"#;
        let end = r#"{"index":0,"delta":{},"logprobs":null,"finish_reason":"tool_calls"}"#;
        let expected = [
            head(ROLE, ""),
            head(begins, ""),
            head(arguments, ""),
            head(end, ""),
            "data: [DONE]\n\n".to_owned(),
        ]
        .concat();
        assert_eq!(bytes_of(calling, false).await, expected);
    }

    #[tokio::test]
    async fn usage_is_null_until_the_last_chunk() {
        let null = ",\"usage\":null";
        let usage = r#","usage":{"prompt_tokens":5,"prompt_tokens_details":{"cached_tokens":0},"completion_tokens":2,"total_tokens":7}"#;
        let expected = [
            head(ROLE, null),
            head(TEXT, null),
            head(STOP, null),
            head("", usage),
            "data: [DONE]\n\n".to_owned(),
        ]
        .concat();
        assert_eq!(bytes_of(events(), true).await, expected);
    }

    #[tokio::test]
    async fn a_broken_answer_ends_with_an_error_and_without_done() {
        let mut broken = events();
        broken.truncate(2);
        let text = bytes_of(broken, false).await;
        let last = text
            .strip_prefix(&[head(ROLE, ""), head(TEXT, "")].concat())
            .unwrap();
        assert!(
            last.starts_with("data: {\"error\":{\"message\":\"The server had an error"),
            "{last}"
        );
        assert!(
            last.ends_with("\"type\":\"server_error\",\"param\":null,\"code\":null}}\n\n"),
            "{last}"
        );
    }
}
