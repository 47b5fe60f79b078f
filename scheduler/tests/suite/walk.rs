//! The main walk: one job, one worker, nothing goes wrong.

use domain::file::Purpose;
use domain::job::JobState;
use domain::message::Desired;
use domain::object_key;

use crate::house::{BASE, House};

#[tokio::test]
async fn a_job_walks_from_its_files_to_a_model_through_the_door() {
    let house = House::new().await;
    let worker = house.worker("a");
    assert_eq!(worker.hello().await.base_models[0].name, BASE);
    let id = house.create_job().await;
    assert_eq!(worker.claim(None, 0).await, None, "not validated yet");
    assert_eq!(house.scheduler.validate_pass().await.unwrap(), 1);

    let a = worker.claim(None, 0).await.unwrap();
    assert_eq!(
        (a.job_id.clone(), a.attempt, a.total_steps, a.seed),
        (id.clone(), 1, 6, 7)
    );
    assert_eq!(
        a.object_prefix,
        object_key::attempt(&house.project.id, &id, 1)
    );
    assert_eq!(
        (a.resume.clone(), a.lease_ttl_s, a.base_model.name.as_str()),
        (None, 30, BASE)
    );
    assert_eq!(
        (a.hyperparameters.n_epochs, a.hyperparameters.batch_size),
        (2, 4)
    );
    assert_eq!(
        worker.claim(None, 0).await,
        None,
        "a job is handed out once"
    );

    assert_eq!(worker.beat(&a, 1..=3).await, Ok(Desired::GoOn));
    assert_eq!(worker.checkpoint(&a, 3).await, Ok(Desired::GoOn));
    assert_eq!(worker.beat(&a, 4..=6).await, Ok(Desired::GoOn));
    assert_eq!(worker.checkpoint(&a, 6).await, Ok(Desired::GoOn));
    assert_eq!(
        worker.checkpoint(&a, 6).await,
        Ok(Desired::GoOn),
        "safe to repeat"
    );
    assert_eq!(worker.finish(&a).await, Err(400), "not before finalizing");
    assert_eq!(worker.finalizing(&a).await, Ok(Desired::GoOn));
    assert_eq!(worker.finish(&a).await, Ok(Desired::GoOn));

    let job = house.job(&id).await;
    let model = format!("ft:{BASE}:luthier::{}", job.model_nonce);
    let result = job.progress().result.clone().unwrap();
    assert_eq!(
        (job.state(), result.fine_tuned_model.as_str()),
        (JobState::Succeeded, &*model)
    );
    assert_eq!(result.trained_tokens, 1_234);
    let checkpoints = house.store.checkpoints().all(&id).await.unwrap();
    let names: Vec<&str> = checkpoints.iter().map(|c| c.name.as_str()).collect();
    assert_eq!((names.len(), names[1]), (2, &*model));
    assert!(
        names[0].ends_with(":ckpt-step-3") && !names[0].contains(&job.model_nonce),
        "{names:?}"
    );
    let models = house.store.models().list(&house.project.id).await.unwrap();
    let mut served: Vec<&str> = models.iter().map(|m| m.name.as_str()).collect();
    served.sort_unstable();
    let mut expected = names.clone();
    expected.sort_unstable();
    assert_eq!(served, expected);
    let usage = house
        .store
        .usage()
        .trained_tokens(&house.project.id, &id)
        .await
        .unwrap();
    assert_eq!(usage, Some(1_234));

    let training_file = &job.spec.training_file;
    assert_eq!(
        house.messages(&id).await,
        [
            format!("Created fine-tuning job: {id}"),
            format!("Validating training file: {training_file}"),
            "Files validated, moving job to queued state".to_owned(),
            "Fine-tuning job started".to_owned(),
            "Step 1/6: training loss=4.00".to_owned(),
            "Step 2/6: training loss=2.00".to_owned(),
            "Step 3/6: training loss=1.33, validation loss=0.25".to_owned(),
            format!(
                "Checkpoint created at step 3 with Snapshot ID: {}",
                names[0]
            ),
            "Step 4/6: training loss=1.00".to_owned(),
            "Step 5/6: training loss=0.80".to_owned(),
            "Step 6/6: training loss=0.67".to_owned(),
            format!("Checkpoint created at step 6 with Snapshot ID: {model}"),
            format!("New fine-tuned model created: {model}"),
            "The job has successfully completed".to_owned(),
        ]
    );
}

#[tokio::test]
async fn the_result_file_has_openais_columns_and_empty_cells() {
    let house = House::new().await;
    let id = house.create_queued_job().await;
    let worker = house.worker("a");
    let a = worker.claim(None, 0).await.unwrap();
    assert_eq!(worker.train(&a).await, Ok(Desired::GoOn));
    let result = house.job(&id).await.progress().result.clone().unwrap();
    let files = house.store.files();
    let file = files
        .find(&house.project.id, &result.result_file)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (file.filename.as_str(), file.purpose),
        ("step_metrics.csv", Purpose::FineTuneResults)
    );
    let csv = house.objects.get_bytes(&file.object_key).await.unwrap();
    assert_eq!(file.size_bytes, csv.len() as u64);
    assert_eq!(
        String::from_utf8(csv.to_vec()).unwrap(),
        "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n\
         1,4,0.5,,\n2,2,0.5,,\n3,1.3333333333333333,0.5,0.25,0.75\n\
         4,1,0.5,,\n5,0.8,0.5,,\n6,0.6666666666666666,0.5,,\n"
    );
}

#[tokio::test]
async fn finishing_again_is_accepted_and_changes_nothing() {
    let house = House::new().await;
    let id = house.create_queued_job().await;
    let worker = house.worker("a");
    let a = worker.claim(None, 0).await.unwrap();
    assert_eq!(worker.train(&a).await, Ok(Desired::GoOn));
    let before = (house.job(&id).await, house.events(&id).await);
    house.advance_s(5);
    assert_eq!(worker.finish(&a).await, Ok(Desired::GoOn));
    assert_eq!((house.job(&id).await, house.events(&id).await), before);
    assert_eq!(
        house
            .store
            .models()
            .list(&house.project.id)
            .await
            .unwrap()
            .len(),
        2
    );
    assert_eq!(
        worker.beat(&a, 6..=6).await,
        Err(409),
        "the attempt is over all the same"
    );
}

#[tokio::test]
async fn two_finishes_at_once_make_one_model() {
    let house = House::new().await;
    let id = house.create_queued_job().await;
    let worker = house.worker("a");
    let a = worker.claim(None, 0).await.unwrap();
    for step in [3, 6] {
        worker.beat(&a, step - 2..=step).await.unwrap();
        worker.checkpoint(&a, step).await.unwrap();
    }
    worker.finalizing(&a).await.unwrap();
    let (one, other) = tokio::join!(worker.finish(&a), worker.finish(&a));
    assert_eq!((one, other), (Ok(Desired::GoOn), Ok(Desired::GoOn)));
    assert_eq!(house.state(&id).await, JobState::Succeeded);
    assert_eq!(
        house
            .store
            .models()
            .list(&house.project.id)
            .await
            .unwrap()
            .len(),
        2
    );
}

#[tokio::test]
async fn finish_needs_the_adapter_of_the_last_step() {
    let house = House::new().await;
    house.create_queued_job().await;
    let worker = house.worker("a");
    let a = worker.claim(None, 0).await.unwrap();
    worker.beat(&a, 1..=3).await.unwrap();
    worker.checkpoint(&a, 3).await.unwrap();
    worker.finalizing(&a).await.unwrap();
    assert_eq!(
        worker.finish(&a).await,
        Err(400),
        "step 6 has no checkpoint"
    );
}
