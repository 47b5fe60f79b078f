//! What processes say to each other keeps its shape: an old worker and a new scheduler meet during every upgrade.
//! `LUTHIER_UPDATE_GOLDEN=1` writes the files anew; a change of an existing line is a break.

mod sample;

use std::path::Path;

use domain::base_model::{BaseModel, ManifestFile};
use domain::dry_run::MemoryPlan;
use domain::error::FailureClass;
use domain::generation::{
    ChatMessage, EchoedToken, FinishReason, Priority, ResponseFormat, Role, SamplingParams,
    TokenLogprob, ToolCall, ToolChoice, TopLogprob,
};
use domain::hyperparameters::ResolvedHyperparameters;
use domain::id::WorkerId;
use domain::message::*;
use domain::metrics::StepMetrics;
use domain::model::ServedModel;
use domain::preference::Preference;
use domain::speed::{DeviceKind, TrainingSpeed};
use domain::usage::TokenUsage;
use domain::worker::WorkerStatus;
use domain::x_training::{GradientCheckpointing, Training};
use sample::{adapter, at, checkpoint, dispatch, entropy, error, step};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The value is spelled as the file says, and the file reads back as the value.
fn check<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(name: &str, value: &T) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.json"));
    let spelled = serde_json::to_string_pretty(value).unwrap() + "\n";
    if std::env::var_os("LUTHIER_UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &spelled).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(spelled, golden, "{name}");
    assert_eq!(
        &serde_json::from_str::<T>(&golden).unwrap(),
        value,
        "{name}"
    );
    accepts_what_a_later_version_adds::<T>(name, &golden, value);
}

fn accepts_what_a_later_version_adds<T: DeserializeOwned + PartialEq + std::fmt::Debug>(
    name: &str,
    golden: &str,
    value: &T,
) {
    let mut json: serde_json::Value = serde_json::from_str(golden).unwrap();
    if let Some(object) = json.as_object_mut() {
        object.insert("added_later".into(), serde_json::json!({"x": [1]}));
        assert_eq!(&serde_json::from_value::<T>(json).unwrap(), value, "{name}");
    }
}

fn worker_id() -> WorkerId {
    WorkerId::mint(entropy(9))
}

fn status() -> WorkerStatus {
    WorkerStatus {
        worker_id: worker_id(),
        address: "http://127.0.0.1:9000".into(),
        base_models: vec!["tiny".into()],
        adapters: vec!["aa".into()],
        n_live: 1,
        max_live: 8,
        device: "cpu, 2 threads".into(),
    }
}

fn base_model() -> BaseModel {
    BaseModel {
        name: "tiny".into(),
        sha256: "dd".into(),
        object_prefix: "base-models/tiny/dd".into(),
        files: vec![ManifestFile {
            name: "config.json".into(),
            size_bytes: 5,
            sha256: "ee".into(),
        }],
        architecture: "LlamaForCausalLM".into(),
        hidden_size: 64,
        n_parameters: 100_000,
        context_length: 128,
        created_at: at(0),
    }
}

fn offer() -> OfferMessage {
    OfferMessage {
        version: 1,
        job_id: sample::job().0.id,
        dispatch_id: dispatch(5),
    }
}

fn assignment() -> Assignment {
    let dataset = DatasetRef {
        object_key: "k".into(),
        sha256: "ff".into(),
        size_bytes: 7,
    };
    Assignment {
        job_id: sample::job().0.id,
        attempt: 2,
        object_prefix: "projects/p/jobs/j/attempts/2".into(),
        base_model: base_model(),
        training_file: dataset.clone(),
        validation_file: Some(dataset),
        hyperparameters: ResolvedHyperparameters {
            n_epochs: 3,
            batch_size: 4,
            learning_rate_multiplier: 1.0,
            learning_rate: 1.25e-3,
        },
        total_steps: 6,
        seed: 42,
        resume: Some(ResumePoint {
            step: 2,
            state: checkpoint(1, 2, None).state,
        }),
        lease_ttl_s: 30,
        training: Some(Training::default_for(128)),
        start: Some(adapter(6)),
        preference: Some(Preference::default()),
    }
}

#[test]
fn messages_of_the_queue() {
    assert_eq!(train_queue("tiny"), "train.tiny");
    check("offer", &offer());
    check(
        "control",
        &ControlMessage {
            version: 1,
            job_id: sample::job().0.id,
        },
    );
}

#[test]
fn calls_of_the_scheduler_s_door() {
    check("hello_request", &HelloRequest { status: status() });
    check(
        "hello_reply",
        &HelloReply {
            base_models: vec![base_model()],
        },
    );
    let claim = ClaimRequest {
        worker_id: worker_id(),
        base_models: vec!["tiny".into()],
        offer: Some(offer()),
        wait_s: 20,
    };
    check("claim_request", &claim);
    check(
        "claim_reply",
        &ClaimReply {
            assignment: Some(assignment()),
        },
    );
    check("claim_reply_empty", &ClaimReply { assignment: None });
    let full = StepMetrics {
        valid_loss: Some(0.75),
        valid_mean_token_accuracy: Some(0.5),
        full_valid_loss: Some(0.625),
        full_valid_mean_token_accuracy: Some(0.25),
        ..step(2)
    };
    let beat = BeatRequest {
        status: status(),
        metrics: vec![step(1), full],
        estimated_finish: Some(at(600)),
    };
    check("beat_request", &beat);
    for (name, desired) in [
        ("go_on", Desired::GoOn),
        ("pause", Desired::Pause),
        ("cancel", Desired::Cancel),
    ] {
        check(&format!("attempt_reply_{name}"), &AttemptReply { desired });
    }
    let saved = checkpoint(2, 4, Some(2));
    let request = CheckpointRequest {
        step: 4,
        epoch: Some(2),
        state: saved.state,
        adapter: saved.adapter,
        metrics: saved.metrics,
    };
    check("checkpoint_request", &request);
    check(
        "finish_request",
        &FinishRequest {
            trained_tokens: 5_070,
            adapter: adapter(6),
            speed: None,
        },
    );
    check(
        "finish_request_with_its_speed",
        &FinishRequest {
            trained_tokens: 5_070,
            adapter: adapter(6),
            speed: Some(TrainingSpeed {
                device: DeviceKind::Gpu,
                tokens_per_s: 512.5,
            }),
        },
    );
    for (name, class) in [
        ("user", FailureClass::User),
        ("infra", FailureClass::Infra),
        ("drain", FailureClass::Drain),
    ] {
        check(
            &format!("fail_request_{name}"),
            &FailRequest {
                class,
                error: error("server_error"),
            },
        );
    }
}

fn conversation() -> Vec<ChatMessage> {
    let said = |role, content: &str| ChatMessage {
        role,
        content: Some(content.into()),
        name: None,
        tool_calls: Vec::new(),
        tool_call_id: None,
    };
    let call = ToolCall {
        id: "call_1".into(),
        name: "look_up".into(),
        arguments: "{\"x\":1}".into(),
    };
    vec![
        said(Role::System, "Be brief."),
        ChatMessage {
            name: Some("ann".into()),
            ..said(Role::User, "héllo ☃")
        },
        ChatMessage {
            content: None,
            tool_calls: vec![call],
            ..said(Role::Assistant, "")
        },
        ChatMessage {
            tool_call_id: Some("call_1".into()),
            ..said(Role::Tool, "42")
        },
    ]
}

#[test]
fn a_request_for_an_answer() {
    let request = GenerateRequest {
        model: ServedModel {
            base_model: "tiny".into(),
            adapter: Some(adapter(6)),
        },
        scope: "proj_1".into(),
        messages: conversation(),
        tools: vec![serde_json::json!({"type": "function", "function": {"name": "look_up"}})],
        tool_choice: ToolChoice::Named("look_up".into()),
        parallel_tool_calls: false,
        response_format: ResponseFormat::JsonSchema {
            schema: serde_json::json!({"type": "object"}),
            strict: true,
        },
        n: 2,
        max_tokens: Some(64),
        stop: vec!["\n\n".into()],
        stop_token_ids: vec![9],
        sampling: SamplingParams {
            temperature: 0.5,
            top_p: 0.75,
            top_k: Some(40),
            min_p: 0.125,
            frequency_penalty: -0.5,
            presence_penalty: 0.25,
            seed: Some(7),
            logit_bias: vec![(5, -100.0)],
        },
        top_logprobs: Some(1),
        prompt: None,
        echo: false,
        echo_logprobs: false,
        priority: Priority::Live,
    };
    check("generate_request", &request);
    for (name, prompt) in [
        ("generate_request_text", Prompt::Text("Once".into())),
        ("generate_request_tokens", Prompt::Tokens(vec![1, 5])),
    ] {
        let request = GenerateRequest {
            prompt: Some(prompt),
            echo: true,
            ..GenerateRequest::new(request.model.clone(), "proj_1".into(), Vec::new())
        };
        check(name, &request);
    }
    let request = GenerateRequest {
        prompt: Some(Prompt::Text("Once".into())),
        echo: true,
        echo_logprobs: true,
        max_tokens: Some(0),
        top_logprobs: Some(1),
        ..GenerateRequest::new(request.model, "proj_1".into(), Vec::new())
    };
    check("generate_request_echo_logprobs", &request);
    let request = GenerateRequest {
        priority: Priority::Spare,
        ..GenerateRequest::new(request.model, "proj_1".into(), Vec::new())
    };
    check("generate_request_spare", &request);
}

#[test]
fn a_request_for_an_embedding_and_its_answer() {
    let model = ServedModel {
        base_model: "tiny".into(),
        adapter: Some(adapter(6)),
    };
    let request = EmbedRequest {
        model,
        input: Prompt::Tokens(vec![1, 5]),
        priority: Priority::Spare,
    };
    check("embed_request", &request);
    check("embed_event_queued", &EmbedEvent::Queued);
    let embedded = EmbedEvent::Embedded(Embedded {
        embedding: vec![0.6, -0.8],
        prompt_tokens: 2,
    });
    check("embed_event_embedded", &embedded);
    let error = GenerateError::Busy;
    check("embed_event_failed", &EmbedEvent::Failed { error });
}

#[test]
fn the_lines_of_an_answer() {
    let logprob = TokenLogprob {
        token: "hé".into(),
        bytes: "hé".as_bytes().to_vec(),
        logprob: -0.5,
        top: vec![TopLogprob {
            token: "h".into(),
            bytes: b"h".to_vec(),
            logprob: -0.25,
        }],
    };
    check("event_queued", &GenerateEvent::Queued);
    check(
        "event_started",
        &GenerateEvent::Started { prompt_tokens: 12 },
    );
    let delta = GenerateEvent::Delta {
        index: 1,
        text: "hé".into(),
        logprobs: vec![logprob],
    };
    check("event_delta", &delta);
    let first = EchoedToken {
        token: "Once".into(),
        offset: 0,
        logprob: None,
        top: Vec::new(),
    };
    let second = EchoedToken {
        token: " upon".into(),
        offset: 4,
        logprob: Some(-0.5),
        top: vec![TopLogprob {
            token: " a".into(),
            bytes: b" a".to_vec(),
            logprob: -0.25,
        }],
    };
    let echo = GenerateEvent::Echo {
        index: 1,
        text: "Once upon".into(),
        tokens: vec![first, second],
    };
    check("event_echo", &echo);
    let call = GenerateEvent::ToolCall {
        index: 1,
        call: 0,
        id: "call_1".into(),
        name: "look_up".into(),
    };
    check("event_tool_call", &call);
    let arguments = GenerateEvent::ToolArguments {
        index: 1,
        call: 0,
        arguments: "{\"word\": ".into(),
    };
    check("event_tool_arguments", &arguments);
    for (name, finish_reason) in [
        ("stop", FinishReason::Stop),
        ("length", FinishReason::Length),
        ("tool_calls", FinishReason::ToolCalls),
    ] {
        check(
            &format!("event_finished_{name}"),
            &GenerateEvent::Finished {
                index: 0,
                finish_reason,
            },
        );
    }
    let usage = TokenUsage {
        prompt_tokens: 12,
        cached_tokens: 8,
        completion_tokens: 3,
    };
    check("event_done", &GenerateEvent::Done { usage });
    check(
        "event_failed",
        &GenerateEvent::Failed {
            error: GenerateError::Busy,
        },
    );
}

#[test]
fn the_reasons_for_no_answer() {
    let reason = || "because".to_string();
    for (name, error) in [
        (
            "context",
            GenerateError::ContextLengthExceeded {
                context_length: 128,
                prompt_tokens: 200,
            },
        ),
        (
            "unrenderable",
            GenerateError::Unrenderable { reason: reason() },
        ),
        (
            "not_installed",
            GenerateError::ModelNotInstalled {
                model: "tiny".into(),
            },
        ),
        (
            "adapter",
            GenerateError::AdapterUnavailable {
                reason: reason(),
                is_unfit: false,
            },
        ),
        ("busy", GenerateError::Busy),
        ("internal", GenerateError::Internal { reason: reason() }),
    ] {
        check(&format!("generate_error_{name}"), &error);
    }
}

#[test]
fn what_an_earlier_version_left_out_has_a_default() {
    let claim: ClaimRequest =
        serde_json::from_str(r#"{"worker_id": "worker_1", "base_models": [], "offer": null}"#)
            .unwrap();
    assert_eq!(claim.wait_s, 0);
    let mut earlier = serde_json::to_value(assignment()).unwrap();
    let object = earlier.as_object_mut().unwrap();
    assert!(object.remove("training").is_some() && object.remove("start").is_some());
    let read: Assignment = serde_json::from_value(earlier).unwrap();
    assert_eq!((read.training, read.start), (None, None));
    let delta: GenerateEvent =
        serde_json::from_str(r#"{"type": "delta", "index": 0, "text": "a"}"#).unwrap();
    assert_eq!(
        delta,
        GenerateEvent::Delta {
            index: 0,
            text: "a".into(),
            logprobs: Vec::new()
        }
    );
}

#[test]
fn a_request_for_a_memory_plan_and_the_plan() {
    let request = PlanRequest {
        base_model: "tiny".into(),
        training: Training::default_for(128),
        preference: Some(Preference::default()),
        longest: 90,
    };
    check("plan_request", &request);
    let plan = MemoryPlan {
        device: DeviceKind::Cpu,
        gpu_declined: Some("because".into()),
        weights: 400_000,
        adapter: 30_000,
        activations: 2_000_000,
        on_host: 0,
        available: Some(8_000_000_000),
        fits: true,
        pass_tokens: 1_024,
        gradient_checkpointing: GradientCheckpointing::Selective,
        n_recomputed_layers: 2,
        streams_on_host: false,
    };
    check("memory_plan", &plan);
}

#[test]
fn a_request_for_an_export() {
    let request = |format| ExportRequest {
        model: ServedModel {
            base_model: "tiny".into(),
            adapter: Some(adapter(6)),
        },
        name: "ft:tiny:org::abcdefgh".into(),
        format,
    };
    check("export_request_merged", &request(ExportFormat::Merged));
    for (name, file_type) in [
        ("f32", GgufType::F32),
        ("f16", GgufType::F16),
        ("bf16", GgufType::Bf16),
        ("q8_0", GgufType::Q8_0),
    ] {
        let request = request(ExportFormat::Gguf { file_type });
        check(&format!("export_request_{name}"), &request);
    }
}

#[test]
fn the_reasons_for_no_export() {
    let reason = || "because".to_string();
    let model = "tiny".to_string();
    for (name, error) in [
        ("unsupported", ExportError::Unsupported { reason: reason() }),
        ("not_installed", ExportError::ModelNotInstalled { model }),
        (
            "adapter",
            ExportError::AdapterUnavailable { reason: reason() },
        ),
        ("busy", ExportError::Busy),
        ("internal", ExportError::Internal { reason: reason() }),
    ] {
        check(&format!("export_error_{name}"), &error);
    }
}
