//! How fast a training file is judged, and what takes the time: `cargo run --release -p text --example bench_check [MB] [threads] [format]`.
//! Rows are passages of this repository's English in a conversation of two or four messages; the tokenizer is SmolLM2's,
//! the template ChatML. Prints MB/s of the file, and MB for a second of processor time, which other programs on the machine do not change.

use std::collections::HashSet;
use std::io::Cursor;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use domain::x_training::{Data, DataFormat, Packing, Truncation};
use serde_json::{Value, json};
use text::chat_model::ChatModel;
use text::check::{See, Seen, check};
use text::dataset::DatasetReader;
use text::formats::{Expected, TrainingExample};

/// As the service has it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// As the doctor remembers rows.
#[derive(Default)]
struct Fingerprints(HashSet<u64>);

impl See for Fingerprints {
    fn see(&mut self, seen: Seen) {
        self.0.insert(seen.row.fingerprint);
    }
}

fn main() {
    let mut args = std::env::args().skip(1);
    let n_megabytes: usize = args.next().map_or(50, |n| n.parse().expect("MB"));
    let n_threads: NonZeroUsize = match args.next() {
        Some(n) => n.parse().expect("threads"),
        None => std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
    };
    let format = args.next();
    let format = format.map_or(DataFormat::Chat, |f| {
        DataFormat::parse(&f).expect("a format")
    });
    let (_folder, model) = model();
    let data = Data {
        format,
        max_length: 8192,
        truncation: Truncation::Right,
        packing: Packing::BinPack,
    };
    let expected = Expected::of(None, &data);
    let file = file(n_megabytes * 1_000_000, format);

    let told = |what: &str, began: Began| {
        let megabytes = file.len() as f64 / 1e6;
        let wall = megabytes / began.at.elapsed().as_secs_f64();
        let busy = megabytes / (processor_time() - began.busy).as_secs_f64();
        println!("{what}: {wall:.1} MB/s, {busy:.1} MB per processor second");
    };
    stages(&file, expected, &model, &told);
    for n in [NonZeroUsize::MIN, n_threads] {
        let started = Began::now();
        let mut seen = Fingerprints::default();
        let found = check(Cursor::new(&file), expected, &model, &data, n, &mut seen);
        let found = found.expect("memory is read");
        assert_eq!(
            (found.report.n_errors, found.n_rows),
            (0, seen.0.len() as u64)
        );
        let what = format!(
            "check of {} rows, {} tokens, {n} thread(s)",
            found.n_rows, found.n_tokens
        );
        told(&what, started);
    }
}

/// When something began.
struct Began {
    at: Instant,
    busy: Duration,
}

impl Began {
    fn now() -> Self {
        Self {
            at: Instant::now(),
            busy: processor_time(),
        }
    }
}

/// Of all threads of this process, those that ended too, so far.
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    // Behind the name in brackets: utime and stime are the fields 14 and 15, in hundredths of a second.
    let fields = stat.rsplit(") ").next().expect("a name").split(' ');
    let ticks = fields
        .skip(11)
        .take(2)
        .map(|n| n.parse::<u64>().expect("ticks"));
    Duration::from_millis(10 * ticks.sum::<u64>())
}

/// Each part by itself, on one thread.
fn stages(file: &str, expected: Expected, model: &ChatModel, told: &impl Fn(&str, Began)) {
    let started = Began::now();
    let rows = DatasetReader::new(Cursor::new(file), expected);
    let rows: Vec<TrainingExample> = rows
        .map(|row| row.expect("memory is read").expect("a good row").example)
        .collect();
    told("parse", started);
    let started = Began::now();
    let texts = rows.iter().filter_map(|row| match row {
        TrainingExample::Chat(chat) => Some(model.conversation_text(&chat.messages, None)),
        _ => None,
    });
    let texts: Vec<String> = texts.map(|text| text.expect("ChatML")).collect();
    told("render once", started);
    let started = Began::now();
    for text in &texts {
        model
            .tokenizer()
            .encode_template(text, '\u{e000}')
            .expect("BPE");
    }
    told("tokenize once", started);
    let started = Began::now();
    for row in &rows {
        model.example(row).expect("ChatML");
    }
    told("render, tokenize and label", started);
}

fn model() -> (tempfile::TempDir, ChatModel) {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let folder = tempfile::tempdir().expect("a folder");
    let zip = std::fs::read(fixtures.join("smollm2/tokenizer.zip")).expect("the fixture");
    let mut zip = zip::ZipArchive::new(Cursor::new(zip)).expect("a zip");
    zip.extract(folder.path()).expect("it unpacks");
    std::fs::write(
        folder.path().join("config.json"),
        r#"{"max_position_embeddings": 8192}"#,
    )
    .expect("it is written");
    let model = ChatModel::load(folder.path()).expect("a model");
    (folder, model)
}

/// Rows of `format`, some `n_bytes` of them, each another one.
fn file(n_bytes: usize, format: DataFormat) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("a workspace");
    let sources = [
        "docs/LOG.md",
        "ARCHITECTURE.md",
        "README.md",
        "LICENSE",
        "openapi/COMPATIBILITY.md",
    ];
    let read =
        |name: &&str| std::fs::read_to_string(PathBuf::from(root).join(name)).expect("a text");
    let words = sources.iter().map(read).collect::<String>();
    let words: Vec<&str> = words
        .split(' ')
        .filter(|word| !word.trim().is_empty())
        .collect();
    let mut state = 7_u64;
    let mut random = move |below: usize| {
        // Knuth's MMIX generator: the same file on every machine.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut passage = |n_words: usize| {
        let n = 1 + random(n_words);
        let start = random(words.len() - n);
        words[start..start + n].join(" ")
    };
    let mut file = String::with_capacity(n_bytes + 10_000);
    while file.len() < n_bytes {
        let texts: Vec<String> = [20, 200, 100, 200].map(&mut passage).into();
        file.push_str(&row(&texts, format).to_string());
        file.push('\n');
    }
    file
}

fn row(texts: &[String], format: DataFormat) -> Value {
    let [system, question, short, answer] = texts else {
        panic!("four texts");
    };
    let say = |role: &str, text: &String| json!({"role": role, "content": text});
    match format {
        DataFormat::Chat => {
            json!({"messages": [say("system", system), say("user", question), say("assistant", answer)]})
        }
        DataFormat::Alpaca => json!({"instruction": question, "input": short, "output": answer}),
        DataFormat::ShareGpt => {
            let turn = |from: &str, text: &String| json!({"from": from, "value": text});
            json!({"conversations": [turn("human", question), turn("gpt", short), turn("human", system), turn("gpt", answer)]})
        }
        DataFormat::QueryResponse => {
            json!({"query": question, "response": answer, "history": [[system, short]]})
        }
        DataFormat::PromptCompletion => json!({"prompt": question, "completion": answer}),
    }
}
