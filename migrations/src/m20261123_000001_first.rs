//! The first schema: tenants, files, models, jobs and what jobs leave behind, and the tables the processes share.

use sea_orm_migration::prelude::*;

use crate::table::{TableSpec, identity, int, real, text};

pub struct First;

impl MigrationName for First {
    fn name(&self) -> &str {
        "m20261123_000001_first"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for First {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in tables() {
            table.create(manager).await?;
        }
        Ok(())
    }
}

fn tables() -> Vec<TableSpec> {
    vec![
        organizations(),
        projects(),
        api_keys(),
        files(),
        base_models(),
        jobs(),
        job_metadata(),
        job_transitions(),
        attempts(),
        events(),
        metrics(),
        checkpoints(),
        models(),
        usage(),
        outbox(),
        workers(),
        leader(),
        idempotency_keys(),
    ]
}

fn organizations() -> TableSpec {
    TableSpec {
        name: "organizations",
        meaning: "Who pays; holds projects",
        columns: vec![
            text("id", "org-…"),
            text("name", "For people"),
            text(
                "slug",
                "Third part of the names of tuned models; holds no colon",
            ),
            int("created_at", "Microseconds since the Unix epoch"),
        ],
        primary_key: &["id"],
        references: &[],
        unique: &[&["slug"]],
        indexes: &[],
    }
}

fn projects() -> TableSpec {
    TableSpec {
        name: "projects",
        meaning: "Who owns files, jobs and tuned models",
        columns: vec![
            text("id", "proj_…"),
            text("organization_id", "The organisation it belongs to"),
            text("name", "What operators call it"),
            int("created_at", "Microseconds since the Unix epoch"),
            int("archived_at", "Set: its keys no longer open anything").or_null(),
        ],
        primary_key: &["id"],
        references: &[("organization_id", "organizations", "id")],
        unique: &[&["name"]],
        indexes: &[&["organization_id"]],
    }
}

fn api_keys() -> TableSpec {
    TableSpec {
        name: "api_keys",
        meaning: "Keys of projects; never the secret itself",
        columns: vec![
            text("id", "key_…"),
            text("project_id", "The project it opens"),
            text("name", "For people"),
            text(
                "hmac",
                "Hex HMAC-SHA256 of the secret under the installation's pepper",
            ),
            text(
                "redacted",
                "First and last characters of the secret, to recognise it",
            ),
            int("created_at", "Microseconds since the Unix epoch"),
            int("last_used_at", "Last use, coarsely").or_null(),
            int("revoked_at", "Set: opens nothing any more").or_null(),
        ],
        primary_key: &["id"],
        references: &[("project_id", "projects", "id")],
        unique: &[&["hmac"]],
        indexes: &[&["project_id", "created_at"]],
    }
}

fn files() -> TableSpec {
    TableSpec {
        name: "files",
        meaning: "Complete files; the object is in the bucket before the row is here",
        columns: vec![
            text("id", "file-…"),
            text("project_id", "Whose it is"),
            text("filename", "Display name; never part of a path"),
            text("purpose", "OpenAI's purpose"),
            int("size_bytes", "Size of the object"),
            text("sha256", "Hex hash of the object"),
            text("object_key", "Where the bytes are in the bucket"),
            int("created_at", "Microseconds since the Unix epoch"),
            int("expires_at", "Deleted by the sweep after this instant").or_null(),
            int(
                "deleted_at",
                "Set: gone for clients; the object stays while a live job needs it",
            )
            .or_null(),
        ],
        primary_key: &["id"],
        references: &[("project_id", "projects", "id")],
        unique: &[],
        indexes: &[
            &["project_id", "created_at", "id"],
            &["deleted_at"],
            &["expires_at"],
        ],
    }
}

fn base_models() -> TableSpec {
    TableSpec {
        name: "base_models",
        meaning: "Models an operator installed for everyone",
        columns: vec![
            text("name", "Second part of the names of tuned models"),
            text("sha256", "Hash over the manifest"),
            text("object_prefix", "Folder in the bucket"),
            text(
                "files",
                "JSON: the manifest, name, size and hash of each file",
            ),
            text("architecture", "e.g. LlamaForCausalLM"),
            int("hidden_size", "Width of the model"),
            int("n_parameters", "Number of weights"),
            int("context_length", "Tokens of prompt and answer together"),
            int("created_at", "Microseconds since the Unix epoch"),
        ],
        primary_key: &["name"],
        references: &[],
        unique: &[],
        indexes: &[],
    }
}

fn jobs() -> TableSpec {
    TableSpec {
        name: "jobs",
        meaning: "Fine-tuning jobs. The columns are what guards and queries need; progress holds the rest",
        columns: vec![
            text("id", "ftjob-…"),
            text("project_id", "Whose it is"),
            text("organization_id", "Whose it was at creation"),
            text("organization_slug", "Third part of the tuned model's name"),
            text("model", "The base model's name"),
            text("training_file", "Pins the file while the job lives"),
            text("validation_file", "Pins the file while the job lives").or_null(),
            text("model_nonce", "Last part of the tuned model's name"),
            text("spec", "JSON: what the client ordered; never changes"),
            int("created_at", "Microseconds since the Unix epoch"),
            text("state", "Where the job stands"),
            int(
                "version",
                "Rises by one with every write; the guard of every UPDATE",
            ),
            int(
                "attempt",
                "Current or last attempt; the fence of every call of a worker",
            ),
            text("worker_id", "Who holds the job").or_null(),
            text("dispatch_id", "The open offer").or_null(),
            int("state_since", "When the state was entered, microseconds"),
            int(
                "lease_until",
                "Set while an attempt holds the job; this column is the truth",
            )
            .or_null(),
            int("not_before", "Not offered before this instant").or_null(),
            int("n_events", "Events so far; the next one's seq is one more"),
            text("progress", "JSON: all that changes"),
        ],
        primary_key: &["id"],
        references: &[("project_id", "projects", "id")],
        unique: &[],
        indexes: &[
            &["project_id", "created_at", "id"],
            &["state", "state_since"],
            &["training_file"],
            &["validation_file"],
        ],
    }
}

fn job_metadata() -> TableSpec {
    TableSpec {
        name: "job_metadata",
        meaning: "A job's metadata, to filter lists by",
        columns: vec![
            text("job_id", "The job"),
            text("key", "At most 64 characters"),
            text("value", "At most 512 characters"),
        ],
        primary_key: &["job_id", "key"],
        references: &[("job_id", "jobs", "id")],
        unique: &[],
        indexes: &[],
    }
}

fn job_transitions() -> TableSpec {
    TableSpec {
        name: "job_transitions",
        meaning: "What happened to a job, in order; all but the beats",
        columns: vec![
            text("job_id", "The job"),
            int("version", "The job's version after it"),
            text("event", "What happened"),
            text("from_state", "State before"),
            text("to_state", "State after"),
            int("attempt", "The job's attempt after it"),
            int("created_at", "Microseconds since the Unix epoch"),
        ],
        primary_key: &["job_id", "version"],
        references: &[("job_id", "jobs", "id")],
        unique: &[],
        indexes: &[],
    }
}

fn attempts() -> TableSpec {
    TableSpec {
        name: "attempts",
        meaning: "Each run of a job on a worker",
        columns: vec![
            text("job_id", "The job"),
            int("number", "1-based, one more with each claim"),
            text("worker_id", "Who ran it"),
            int("claimed_at", "Microseconds since the Unix epoch"),
            int("ended_at", "Null while it runs").or_null(),
            text("ending", "succeeded, failed, lost, released or cancelled").or_null(),
        ],
        primary_key: &["job_id", "number"],
        references: &[("job_id", "jobs", "id")],
        unique: &[],
        indexes: &[],
    }
}

fn events() -> TableSpec {
    TableSpec {
        name: "events",
        meaning: "A job's public story; never withdrawn",
        columns: vec![
            text("job_id", "The job"),
            int("seq", "1-based and dense within the job"),
            text("id", "ftevent-…"),
            text("level", "info, warn or error"),
            text("event_type", "message or metrics"),
            text("message", "What the client reads"),
            text("data", "JSON: the step's numbers, or {}"),
            int("created_at", "Microseconds since the Unix epoch"),
        ],
        primary_key: &["job_id", "seq"],
        references: &[("job_id", "jobs", "id")],
        unique: &[&["id"]],
        indexes: &[],
    }
}

fn metrics() -> TableSpec {
    let mut columns = vec![
        text("job_id", "The job"),
        int("step", "1-based optimizer step"),
    ];
    columns.extend(measurements());
    TableSpec {
        name: "metrics",
        meaning: "What each step measured; a step computed again overwrites its row",
        columns,
        primary_key: &["job_id", "step"],
        references: &[("job_id", "jobs", "id")],
        unique: &[],
        indexes: &[],
    }
}

/// What a step measured; the words are OpenAI's. A null where a loss is due is a number that is none.
fn measurements() -> Vec<crate::table::Col> {
    vec![
        int("n_tokens", "Tokens the step read, labels or not"),
        real("train_loss", "Nats per label token").or_null(),
        real("train_mean_token_accuracy", "0 to 1").or_null(),
        real("valid_loss", "Nats per label token of a sample").or_null(),
        real("valid_mean_token_accuracy", "0 to 1").or_null(),
        real(
            "full_valid_loss",
            "Nats per label token of the whole validation file",
        )
        .or_null(),
        real("full_valid_mean_token_accuracy", "0 to 1").or_null(),
    ]
}

fn checkpoints() -> TableSpec {
    let mut columns = vec![
        text("id", "ftckpt_…"),
        text("job_id", "The job"),
        int("attempt", "The attempt that wrote it"),
        int("step", "Optimizer steps done"),
        int(
            "epoch",
            "Set at the end of an epoch (1-based): only these are shown",
        )
        .or_null(),
        text("name", "The model name clients may use"),
        text("state_object_key", "The trainer's full state in the bucket"),
        text("state_sha256", "Hex hash of the state"),
        int("state_size_bytes", "Size of the state"),
        text(
            "adapter_object_prefix",
            "Folder of the adapter in the bucket",
        ),
        text("adapter_sha256", "Hex hash of the adapter's weights"),
        int("adapter_size_bytes", "Size of the adapter's weights"),
        int("created_at", "Microseconds since the Unix epoch"),
    ];
    columns.extend(measurements());
    TableSpec {
        name: "checkpoints",
        meaning: "From where a job can go on; the objects are durable before the row is here",
        columns,
        primary_key: &["id"],
        references: &[("job_id", "jobs", "id")],
        unique: &[&["job_id", "step"]],
        indexes: &[],
    }
}

fn models() -> TableSpec {
    TableSpec {
        name: "models",
        meaning: "Tuned models and servable checkpoints of jobs that succeeded",
        columns: vec![
            text("name", "ft:base:org:suffix:nonce, perhaps :ckpt-step-n"),
            text("project_id", "Whose it is"),
            text("job_id", "The job that made it"),
            text("base_model", "Name of the base it stands on"),
            text(
                "adapter_object_prefix",
                "Folder of the adapter in the bucket",
            ),
            text("adapter_sha256", "Hex hash of the adapter's weights"),
            int("adapter_size_bytes", "Size of the adapter's weights"),
            text("owned_by", "The organisation's slug"),
            int("created_at", "Microseconds since the Unix epoch"),
            int(
                "deleted_at",
                "Set: gone for clients; the name is never used again",
            )
            .or_null(),
        ],
        primary_key: &["name"],
        references: &[("project_id", "projects", "id"), ("job_id", "jobs", "id")],
        unique: &[],
        indexes: &[&["project_id", "created_at"], &["job_id"]],
    }
}

fn usage() -> TableSpec {
    TableSpec {
        name: "usage",
        meaning: "What was consumed; once per job and kind",
        columns: vec![
            text("job_id", "The job"),
            text("kind", "trained_tokens"),
            text("project_id", "Who consumed it"),
            int("quantity", "How many"),
            int("created_at", "Microseconds since the Unix epoch"),
        ],
        primary_key: &["job_id", "kind"],
        references: &[("job_id", "jobs", "id"), ("project_id", "projects", "id")],
        unique: &[],
        indexes: &[&["project_id", "created_at"]],
    }
}

fn outbox() -> TableSpec {
    TableSpec {
        name: "outbox",
        meaning: "Messages to publish; written with the change they tell of, kept until the broker confirmed",
        columns: vec![
            identity(
                "id",
                "Order of writing; not of commit, so never a watermark",
            ),
            text("queue", "Where to"),
            text("body", "JSON"),
            int("created_at", "Microseconds since the Unix epoch"),
            int("claimed_until", "A relay is publishing it until then").or_null(),
            int("sent_at", "Set: the broker has it").or_null(),
        ],
        primary_key: &[],
        references: &[],
        unique: &[],
        indexes: &[&["sent_at", "id"]],
    }
}

fn workers() -> TableSpec {
    TableSpec {
        name: "workers",
        meaning: "Workers as they last described themselves",
        columns: vec![
            text("id", "worker_…, new at each start"),
            text("status", "JSON: address, base models, adapters, load"),
            int("seen_at", "Alive while this is recent"),
        ],
        primary_key: &["id"],
        references: &[],
        unique: &[],
        indexes: &[&["seen_at"]],
    }
}

fn leader() -> TableSpec {
    TableSpec {
        name: "leader",
        meaning: "Who does work that one process suffices for; saves effort, guards nothing",
        columns: vec![
            text("name", "Which work"),
            text("holder", "Who does it"),
            int("term", "One more at each change of holder"),
            int("until", "Free for others after this instant"),
        ],
        primary_key: &["name"],
        references: &[],
        unique: &[],
        indexes: &[],
    }
}

fn idempotency_keys() -> TableSpec {
    TableSpec {
        name: "idempotency_keys",
        meaning: "Which request made which object, so that its repetition makes none",
        columns: vec![
            identity("id", "Order of writing"),
            text("project_id", "Whose request"),
            text("endpoint", "e.g. POST /fine_tuning/jobs"),
            text("key", "The client's Idempotency-Key").or_null(),
            text("api_key_id", "The key that signed the request"),
            text("fingerprint", "Hash of the request"),
            text("object_id", "What it made"),
            int("created_at", "Microseconds since the Unix epoch"),
            int("expires_at", "Forgotten after this instant"),
        ],
        primary_key: &[],
        references: &[("project_id", "projects", "id")],
        unique: &[&["project_id", "endpoint", "key"]],
        indexes: &[&["project_id", "endpoint", "fingerprint"], &["expires_at"]],
    }
}
