//! What a worker computes on: the choice on every machine, and jobs and answers on a GPU where there is one.

use domain::error::FailureClass;
use domain::hyperparameters::Auto;
use domain::message::{Assignment, FinishRequest, GenerateEvent, GenerateRequest, Prompt};
use domain::x_training::{AskedAdapter, AskedTraining, BaseWeights, Compute, Training};
use engine::cuda::Gpu;
use platform::config::{WorkerConfig, WorkerDevice};
use platform::shutdown::Shutdown;

use crate::house::{House, ask, with_adapter};
use crate::tiny_model::CONTEXT;

pub fn has_gpu() -> bool {
    let has_gpu = Gpu::count() > 0;
    if !has_gpu {
        println!("skipped: no NVIDIA GPU on this machine");
    }
    has_gpu
}

fn resolved(asked: AskedTraining) -> Option<Training> {
    Some(asked.resolve(CONTEXT as u32, None).unwrap())
}

/// What a GPU neither trains nor serves.
fn dora() -> AskedTraining {
    AskedTraining {
        adapter: AskedAdapter {
            use_dora: Some(true),
            ..AskedAdapter::default()
        },
        ..AskedTraining::default()
    }
}

/// Runs `assignment` to its end; the name of the worker's device beside it.
async fn run(
    house: &House,
    name: &str,
    device: WorkerDevice,
    assignment: &Assignment,
) -> (FinishRequest, String) {
    house.door.with(|script| {
        (script.finish, script.fail) = (None, None);
        script.metrics.clear();
        script.checkpoints.clear();
    });
    let worker = house.worker(name, |config| config.device = device).await;
    house.give(assignment);
    house
        .door
        .until("an end", |script| {
            script.finish.is_some() || script.fail.is_some()
        })
        .await;
    worker.stop().await.unwrap();
    house.door.with(|script| {
        assert_eq!(script.fail, None);
        let device = script.statuses.last().unwrap().device.clone();
        (script.finish.clone().unwrap(), device)
    })
}

/// What the last checkpoint was computed by.
async fn arithmetic(house: &House) -> String {
    let key = house.door.with(|script| {
        let last = script.checkpoints.last().unwrap();
        last.state.object_key.clone()
    });
    let state = house.objects.get_bytes(&key).await.unwrap();
    let text = String::from_utf8_lossy(&state);
    let (_, rest) = text.split_once(r#"\"arithmetic\":\""#).expect(&key);
    rest.split_once('\\').unwrap().0.to_owned()
}

#[tokio::test]
async fn the_cpu_is_taken_where_it_is_asked_for_and_where_there_is_no_gpu() {
    let house = House::new().await;
    let mut devices = vec![WorkerDevice::Cpu];
    if Gpu::count() == 0 {
        devices.push(WorkerDevice::Auto);
    }
    for device in devices {
        let name = format!("{device:?}");
        let assignment = Assignment {
            object_prefix: format!("projects/p/jobs/{name}/attempts/1"),
            ..house.assignment(1).await
        };
        let (_, announced) = run(&house, &name, device, &assignment).await;
        assert_eq!(announced, "cpu, 1 thread");
        // "auto" of `x_training.precision.compute`.
        assert_eq!(arithmetic(&house).await, "f32-chain-2");
    }
}

#[tokio::test]
async fn a_gpu_that_is_asked_for_and_not_there_is_an_error_that_says_what_to_do() {
    let house = House::new().await;
    let mut missing = vec![99];
    if Gpu::count() == 0 {
        missing.push(0);
    }
    for ordinal in missing {
        let device = WorkerDevice::Cuda { ordinal };
        let options = house.options("a", |config| config.device = device);
        let error = gpu_worker::run(options, Shutdown::new()).await.unwrap_err();
        let text = error.to_string();
        let parts = [
            format!("worker.device is \"cuda:{ordinal}\""),
            "nvidia-smi".to_owned(),
            "set worker.device to \"cpu\"".to_owned(),
        ];
        for part in parts {
            assert!(text.contains(&part), "{text}");
        }
    }
}

#[tokio::test]
async fn a_state_of_another_arithmetic_is_refused_with_what_to_do() {
    let house = House::new().await;
    let compute = |compute| {
        resolved(AskedTraining {
            compute: Auto::Given(compute),
            ..AskedTraining::default()
        })
    };
    let first = Assignment {
        training: compute(Compute::Bf16),
        ..house.assignment(1).await
    };
    run(&house, "a", WorkerDevice::Cpu, &first).await;
    // As if the job had begun on a device that computes its "auto" otherwise.
    let second = Assignment {
        training: compute(Compute::Fp32),
        ..house.next_attempt(&first)
    };
    house.door.with(|script| {
        (script.finish, script.current_attempt) = (None, 2);
    });
    house.give(&second);
    let cpu = |config: &mut platform::config::WorkerConfig| config.device = WorkerDevice::Cpu;
    let worker = house.worker("b", cpu).await;
    house
        .door
        .until("fail", |script| script.fail.is_some())
        .await;
    worker.stop().await.unwrap();
    let fail = house.door.with(|script| script.fail.take().unwrap());
    // Another worker may have the device that it began on.
    assert_eq!(fail.class, FailureClass::Infra);
    for part in ["bf16", "f32-chain-2", "Start a worker there"] {
        assert!(fail.error.message.contains(part), "{fail:?}");
    }
}

#[tokio::test]
async fn a_job_trains_on_the_gpu_and_resumes_there_to_the_same_bytes() {
    if !has_gpu() {
        return;
    }
    let house = House::for_gpu().await;
    let whole = house.assignment(4).await;
    let gpu = WorkerDevice::Cuda { ordinal: 0 };
    // It ends only where serving scores rows as the trainer does.
    let (expected, announced) = run(&house, "a", gpu, &whole).await;
    assert!(announced.ends_with(", and cpu, 1 thread"), "{announced}");
    assert!(arithmetic(&house).await.starts_with("cuda-bf16"));
    house.door.with(|script| {
        let losses: Vec<f64> = script.metrics.iter().map(|m| m.train_loss).collect();
        assert!(losses[11] < losses[0], "{losses:?}");
        // The first epoch's checkpoint is the last that is known.
        script.checkpoints.truncate(1);
    });
    let resumed = house.next_attempt(&whole);
    assert_eq!(resumed.resume.as_ref().unwrap().step, 3);
    house.door.with(|script| script.current_attempt = 2);
    let (finish, _) = run(&house, "b", WorkerDevice::Auto, &resumed).await;
    assert_eq!(finish.adapter.sha256, expected.adapter.sha256);
}

#[tokio::test]
async fn what_the_gpu_cannot_compute_trains_on_the_cpu_beside_it() {
    if !has_gpu() {
        return;
    }
    let house = House::for_gpu().await;
    let gpu = WorkerDevice::Cuda { ordinal: 0 };
    let fp32 = AskedTraining {
        compute: Auto::Given(Compute::Fp32),
        ..AskedTraining::default()
    };
    for (name, asked) in [("fp32", fp32), ("dora", dora())] {
        let assignment = Assignment {
            training: resolved(asked),
            object_prefix: format!("projects/p/jobs/{name}/attempts/1"),
            ..house.assignment(1).await
        };
        run(&house, name, gpu, &assignment).await;
        assert_eq!(arithmetic(&house).await, "f32-chain-2", "{name}");
    }
    // A job that began on the CPU goes on there.
    let first = Assignment {
        object_prefix: "projects/p/jobs/began/attempts/1".into(),
        ..house.assignment(2).await
    };
    let (expected, _) = run(&house, "cpu", WorkerDevice::Cpu, &first).await;
    house.door.with(|script| script.checkpoints.truncate(1));
    let resumed = house.next_attempt(&first);
    house.door.with(|script| script.current_attempt = 2);
    let (finish, _) = run(&house, "resumed", gpu, &resumed).await;
    assert_eq!(finish.adapter.sha256, expected.adapter.sha256);
}

/// The log-probabilities of an answer's tokens.
fn logprobs_of(events: &[GenerateEvent]) -> Vec<f32> {
    let all = events.iter().filter_map(|event| match event {
        GenerateEvent::Delta { logprobs, .. } => Some(logprobs),
        _ => None,
    });
    all.flatten().map(|token| token.logprob).collect()
}

fn asked() -> GenerateRequest {
    GenerateRequest {
        top_logprobs: Some(1),
        ..ask("What do you write?", 24)
    }
}

#[tokio::test]
async fn answers_come_from_the_gpu_and_a_training_there_changes_none_of_them() {
    if !has_gpu() {
        return;
    }
    let gpu = WorkerDevice::Cuda { ordinal: 0 };
    let on = |device| move |config: &mut WorkerConfig| config.device = device;
    // Where no job is ever given.
    let calm = House::for_gpu().await;
    let mut answers = Vec::new();
    for (name, device) in [("cpu", WorkerDevice::Cpu), ("gpu", gpu)] {
        let worker = calm.worker(name, on(device)).await;
        answers.push(calm.generate(&worker, &asked()).await);
        worker.stop().await.unwrap();
    }
    let (exact, before) = (logprobs_of(&answers[0]), &answers[1]);
    // bf16 there, f32 on the CPU: near, and not the same.
    let rounded = logprobs_of(before);
    assert_ne!(rounded[0], exact[0]);
    assert!((rounded[0] - exact[0]).abs() < 0.1, "{rounded:?} {exact:?}");
    // Its adapter has ranks that the copy for chats has no room for: another takes its place.
    let wide = AskedTraining {
        adapter: AskedAdapter {
            r: Some(64),
            ..AskedAdapter::default()
        },
        ..AskedTraining::default()
    };
    let house = House::for_gpu().await;
    let assignment = Assignment {
        training: resolved(wide),
        ..house.long_assignment().await
    };
    let worker = house.worker("trains", on(gpu)).await;
    assert_eq!(house.generate(&worker, &asked()).await, *before);
    house.give(&assignment);
    house
        .door
        .until("a step", |script| !script.metrics.is_empty())
        .await;
    for _ in 0..5 {
        assert_eq!(house.generate(&worker, &asked()).await, *before);
    }
    house.door.with(|script| {
        assert!(
            script.finish.is_none() && script.fail.is_none(),
            "it trains still"
        );
    });
    worker.kill().await;
}

#[tokio::test]
async fn a_tuned_model_is_served_on_the_gpu_and_one_that_replaces_parts_of_the_base_on_the_cpu() {
    if !has_gpu() {
        return;
    }
    let house = House::for_gpu().await;
    let gpu = WorkerDevice::Cuda { ordinal: 0 };
    let mut adapters = Vec::new();
    for (name, asked) in [("plain", AskedTraining::default()), ("dora", dora())] {
        let assignment = Assignment {
            training: resolved(asked),
            object_prefix: format!("projects/p/jobs/{name}/attempts/1"),
            ..house.assignment(4).await
        };
        adapters.push(run(&house, name, gpu, &assignment).await.0.adapter);
    }
    let worker = house.worker("serves", |config| config.device = gpu).await;
    let base = house.generate(&worker, &asked()).await;
    let both = adapters
        .iter()
        .map(|adapter| with_adapter(asked(), adapter))
        .collect::<Vec<_>>();
    let [plain, dora] = [&both[0], &both[1]];
    let (plain, dora) = tokio::join!(
        house.generate(&worker, plain),
        house.generate(&worker, dora)
    );
    for tuned in [&plain, &dora] {
        assert_ne!(logprobs_of(tuned)[0], logprobs_of(&base)[0]);
    }
    assert_eq!(house.generate(&worker, &both[0]).await, plain);
    assert_eq!(house.generate(&worker, &both[1]).await, dora);
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_prompt_is_scored_on_the_cpu_where_answers_come_from_the_gpu() {
    if !has_gpu() {
        return;
    }
    let house = House::for_gpu().await;
    let scored = GenerateRequest {
        prompt: Some(Prompt::Text("What do you write?".to_owned())),
        echo: true,
        echo_logprobs: true,
        max_tokens: Some(0),
        ..asked()
    };
    let mut told = Vec::new();
    let gpu = WorkerDevice::Cuda { ordinal: 0 };
    for (name, device) in [("cpu", WorkerDevice::Cpu), ("gpu", gpu)] {
        let worker = house.worker(name, |config| config.device = device).await;
        told.push(house.generate(&worker, &scored).await);
        worker.stop().await.unwrap();
    }
    assert_eq!(told[0], told[1]);
}

#[tokio::test]
async fn what_was_trained_on_a_base_in_few_bits_is_served_on_it_on_the_gpu() {
    if !has_gpu() {
        return;
    }
    let house = House::for_gpu().await;
    let gpu = WorkerDevice::Cuda { ordinal: 0 };
    let asked_training = AskedTraining {
        base_weights: Auto::Given(BaseWeights::Nf4),
        ..AskedTraining::default()
    };
    let assignment = Assignment {
        training: resolved(asked_training),
        ..house.assignment(4).await
    };
    // It ends only where serving scores rows as the trainer does.
    let (finish, _) = run(&house, "trains", gpu, &assignment).await;
    assert!(arithmetic(&house).await.starts_with("cuda-bf16"));
    let ask = with_adapter(asked(), &finish.adapter);
    let mut answers = Vec::new();
    for (name, device) in [("cpu", WorkerDevice::Cpu), ("gpu", gpu)] {
        let worker = house.worker(name, |config| config.device = device).await;
        answers.push(logprobs_of(&house.generate(&worker, &ask).await)[0]);
        worker.stop().await.unwrap();
    }
    // Near, and not the same.
    let [on_cpu, on_gpu] = answers[..] else {
        unreachable!()
    };
    assert_ne!(on_gpu, on_cpu);
    assert!((on_gpu - on_cpu).abs() < 0.1, "{on_gpu} {on_cpu}");
}
