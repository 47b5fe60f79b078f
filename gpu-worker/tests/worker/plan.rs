//! The worker's door: what a training would take of its memory.

use std::time::Duration;

use domain::dry_run::MemoryPlan;
use domain::message::{GenerateError, PlanRequest};
use domain::preference::Preference;
use domain::speed::DeviceKind;
use domain::x_training::{BaseWeights, Compute, GradientCheckpointing, TargetModules, Training};

use crate::house::{House, Running};
use crate::tiny_model;

fn training(change: impl FnOnce(&mut Training)) -> PlanRequest {
    let mut training = Training::default_for(tiny_model::CONTEXT as u32);
    change(&mut training);
    PlanRequest {
        base_model: "tiny".to_owned(),
        training,
        preference: None,
        longest: 100,
    }
}

async fn plan(house: &House, worker: &Running, request: &PlanRequest) -> MemoryPlan {
    let reply = house.post_to(worker, "/v1/plan", request).await;
    assert_eq!(reply.status(), 200, "{}", reply.text().await.unwrap());
    reply.json().await.unwrap()
}

/// f32 numbers of the tiny model's weights, which are stored in f32: its embeddings and two blocks.
const WEIGHTS: u64 = {
    let (hidden, inner, kv) = (tiny_model::HIDDEN, 96, tiny_model::HIDDEN / 2);
    let block = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * inner;
    (tiny_model::VOCAB * hidden + 2 * block) as u64
};

/// Of LoRA on all linears of both blocks, for each rank.
const OF_A_RANK: u64 = {
    let (hidden, inner, kv) = (tiny_model::HIDDEN, 96, tiny_model::HIDDEN / 2);
    2 * (2 * (hidden + hidden) + 2 * (hidden + kv) + 3 * (hidden + inner)) as u64
};

#[tokio::test]
async fn a_training_s_memory_is_told_before_it_begins() {
    let house = House::new().await;
    let worker = house.worker("a", |_| {}).await;
    let fp32 = plan(&house, &worker, &training(|_| ())).await;
    assert_eq!((fp32.device, &fp32.gpu_declined), (DeviceKind::Cpu, &None));
    // Rows of embeddings come in sixteens; norms are small.
    let weights = 4 * WEIGHTS;
    assert!(
        (weights..weights + 16 * 1024).contains(&fp32.weights),
        "{fp32:?} {weights}"
    );
    // Values, gradient and two moments, and eight copies that products read.
    assert_eq!(fp32.adapter, 16 * OF_A_RANK * (16 + 8 * 4));
    assert_eq!((fp32.fits, fp32.pass_tokens, fp32.on_host), (true, 1024, 0));
    assert!(
        fp32.available
            .is_none_or(|available| available > fp32.total())
    );
    assert_eq!(
        (
            fp32.gradient_checkpointing,
            fp32.n_recomputed_layers,
            fp32.streams_on_host
        ),
        (GradientCheckpointing::None, 0, false)
    );
    let of = async |change: fn(&mut Training)| plan(&house, &worker, &training(change)).await;
    let bf16 = of(|training| training.precision.compute = Compute::Bf16).await;
    assert!(bf16.activations < fp32.activations && bf16.adapter < fp32.adapter);
    assert_eq!(bf16.weights, fp32.weights);
    let nf4 = of(|training| training.precision.base_weights = BaseWeights::Nf4).await;
    let in_blocks = 4 * (WEIGHTS - (tiny_model::VOCAB * tiny_model::HIDDEN) as u64);
    assert!(nf4.weights < fp32.weights - in_blocks * 4 / 5, "{nf4:?}");
    let one = TargetModules::Named(vec!["q_proj".to_owned()]);
    let one = plan(
        &house,
        &worker,
        &training(|training| training.adapter.target_modules = one),
    )
    .await;
    assert_eq!(
        one.adapter,
        16 * 2 * 2 * tiny_model::HIDDEN as u64 * (16 + 8 * 4)
    );
    for (asked, n_layers) in [
        (GradientCheckpointing::Selective, 2),
        (GradientCheckpointing::Full, 2),
    ] {
        let checkpointed = training(|training| training.memory.gradient_checkpointing = asked);
        let told = plan(&house, &worker, &checkpointed).await;
        assert_eq!(
            (told.gradient_checkpointing, told.n_recomputed_layers),
            (asked, n_layers)
        );
        assert!(told.activations < fp32.activations, "{told:?}");
    }
    // A loss with a reference keeps the first adapter as products read it.
    let pairs = PlanRequest {
        preference: Some(Preference::default()),
        ..training(|_| ())
    };
    let pairs = plan(&house, &worker, &pairs).await;
    assert_eq!(pairs.adapter, 16 * OF_A_RANK * (16 + 16 * 4));
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_plan_is_what_the_training_then_does_and_its_memory_is_not_missed_meanwhile() {
    let house = House::new().await;
    let worker = house.worker("a", |_| {}).await;
    let asked = training(|_| ());
    let before = plan(&house, &worker, &asked).await;
    house.give(&house.long_assignment().await);
    house
        .door
        .until("a step", |script| !script.metrics.is_empty())
        .await;
    let beside = plan(&house, &worker, &asked).await;
    assert_eq!(
        MemoryPlan {
            available: None,
            ..beside.clone()
        },
        MemoryPlan {
            available: None,
            ..before.clone()
        }
    );
    house.door.with(|script| {
        assert!(
            script.finish.is_none() && script.fail.is_none(),
            "it trains still"
        );
    });
    worker.kill().await;
}

#[tokio::test]
async fn what_cannot_be_planned_is_refused_with_the_reason() {
    let house = House::new().await;
    let worker = house.worker("a", |_| {}).await;
    let unknown = PlanRequest {
        base_model: "other".to_owned(),
        ..training(|_| ())
    };
    let too_wide = training(|training| training.adapter.r = 65);
    let nothing = training(|training| {
        training.adapter.target_modules = TargetModules::Named(vec!["nope".to_owned()]);
    });
    for (request, status, part) in [
        (unknown, 404, "other"),
        (too_wide, 400, "64"),
        (nothing, 400, "nope"),
    ] {
        let reply = house.post_to(&worker, "/v1/plan", &request).await;
        assert_eq!(reply.status(), status);
        let error = reply.json::<GenerateError>().await.unwrap();
        assert!(error.to_string().contains(part), "{error}");
    }
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("{}/v1/plan", worker.address);
    let forged = client
        .post(&url)
        .bearer_auth("forged")
        .json(&training(|_| ()));
    assert_eq!(forged.send().await.unwrap().status(), 401);
    worker.stop().await.unwrap();
}

/// Examples that no memory holds are told as such, and a worker lives on.
#[tokio::test]
async fn what_does_not_fit_is_told() {
    let house = House::with_context(1 << 26).await;
    let worker = house.worker("a", |_| {}).await;
    let longest = PlanRequest {
        longest: 1 << 26,
        ..training(|_| ())
    };
    let told = plan(&house, &worker, &longest).await;
    assert_eq!(told.pass_tokens, 1 << 26);
    assert_eq!(told.gradient_checkpointing, GradientCheckpointing::Full);
    assert!(
        !told.fits && told.total() > told.available.unwrap(),
        "{told:?}"
    );
    let ordinary = plan(&house, &worker, &training(|_| ())).await;
    assert!(ordinary.fits);
    worker.stop().await.unwrap();
}

#[tokio::test]
async fn a_gpu_s_plan_says_what_lies_there_and_why_something_does_not() {
    if !crate::gpu::has_gpu() {
        return;
    }
    let house = House::for_gpu().await;
    let gpu = platform::config::WorkerDevice::Cuda { ordinal: 0 };
    let worker = house.worker("a", |config| config.device = gpu).await;
    let on_gpu = plan(&house, &worker, &training(|_| ())).await;
    assert_eq!(
        (on_gpu.device, &on_gpu.gpu_declined),
        (DeviceKind::Gpu, &None)
    );
    assert!(on_gpu.fits && on_gpu.pass_tokens == 16_384, "{on_gpu:?}");
    let fp32 = training(|training| {
        (
            training.precision.compute,
            training.precision.compute_on_gpu,
        ) = (Compute::Fp32, None);
    });
    let on_cpu = plan(&house, &worker, &fp32).await;
    assert_eq!(on_cpu.device, DeviceKind::Cpu);
    assert!(on_cpu.gpu_declined.unwrap().contains("fp32"));
    // A copy with another room takes the place of the one that lies there.
    let wide = plan(
        &house,
        &worker,
        &training(|training| training.adapter.r = 64),
    )
    .await;
    assert!(wide.weights > on_gpu.weights && wide.fits, "{wide:?}");
    house.give(&house.long_assignment().await);
    house
        .door
        .until("a step", |script| !script.metrics.is_empty())
        .await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let beside = plan(&house, &worker, &training(|_| ())).await;
    let (before, beside) = (on_gpu.available.unwrap(), beside.available.unwrap());
    assert!(beside.abs_diff(before) < 1 << 30, "{before} {beside}");
    worker.kill().await;
}
