//! How a worker comes by work: offers from the queue of each base model, and the door itself, which also serves where
//! there is no broker or it is down. One job at a time.

use std::sync::Arc;
use std::time::Duration;

use domain::message::{
    Assignment, ClaimRequest, ControlMessage, HelloRequest, OfferMessage, train_queue,
};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use platform::queue::{Consumer, Delivery, Queue};
use tokio::time::Instant;

use crate::door_client::DoorError;
use crate::heart::jittered;
use crate::train;
use crate::worker::Worker;

/// How long the door may hold a claim where no broker offers jobs. Seconds.
const CLAIM_WAIT_S: u32 = 20;
/// How often the door is asked beside a broker, which may be down or have lost an offer.
const CLAIM_BESIDE_BROKER: Duration = Duration::from_secs(10);
/// Pause after a claim that failed or that the door did not hold.
const CLAIM_PAUSE: Duration = Duration::from_secs(1);
/// The first claim of a fresh worker comes soon after a restart of the door.
const HELLO_RETRY: Duration = Duration::from_millis(500);

/// Says hello until the process ends: it announces the worker and learns which base models there are.
pub(crate) async fn say_hello(worker: Arc<Worker>, greeted: tokio::sync::watch::Sender<bool>) {
    loop {
        let pause = match worker
            .door
            .hello(&HelloRequest {
                status: worker.status(),
            })
            .await
        {
            Ok(reply) => {
                let first = !worker.bases.set_installed(reply.base_models);
                greeted.send_replace(true);
                // The first hello could not name the base models yet.
                if first {
                    Duration::ZERO
                } else {
                    jittered(worker.beat_interval)
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the door does not greet us");
                HELLO_RETRY.min(worker.beat_interval)
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Passes on what the scheduler broadcasts.
pub(crate) async fn listen(worker: Arc<Worker>, queue: Queue) {
    let mut control = queue.subscribe().await;
    while let Some(body) = control.next().await {
        match serde_json::from_slice::<ControlMessage>(&body) {
            Ok(message) => worker.wake(&message.job_id),
            Err(error) => tracing::warn!(%error, "a control message cannot be read"),
        }
    }
}

/// Claims and runs jobs, one after the other, until the worker drains.
pub(crate) async fn work(worker: Arc<Worker>, queue: Queue) {
    loop {
        let won = if queue.has_broker() {
            from_queue(&worker, &queue).await
        } else {
            from_door(&worker).await
        };
        let Some((assignment, claimed_at)) = won else {
            return;
        };
        train::run(&worker, assignment, claimed_at).await;
    }
}

type Won = (Assignment, Instant);

/// What ends the wait for an offer.
enum Wake {
    Offer(Box<Delivery>),
    AskTheDoor,
    LookAgain,
}

/// The next job that an offer or, now and then, the door brings; `None` once the worker drains. The consumers live
/// only while the worker is idle, so that a delivery never waits behind a job. A claim is never dropped half way: the
/// door may have given the job to us already.
async fn from_queue(worker: &Worker, queue: &Queue) -> Option<Won> {
    let mut ask_at = Instant::now() + jittered(CLAIM_BESIDE_BROKER);
    loop {
        let names = worker.bases.names();
        let mut consumers = Vec::with_capacity(names.len());
        for base in &names {
            match queue.consume(&train_queue(base), 1).await {
                Ok(consumer) => consumers.push(consumer),
                Err(error) => tracing::warn!(base, %error, "cannot wait for offers"),
            }
        }
        // Base models come and go rarely; looking again now and then is enough.
        let look_again_at = Instant::now() + 12 * worker.beat_interval;
        loop {
            let wake = tokio::select! {
                biased;
                () = worker.draining.cancelled() => return None,
                wake = next_offer(&mut consumers) => wake,
                () = tokio::time::sleep_until(ask_at) => Wake::AskTheDoor,
                () = tokio::time::sleep_until(look_again_at) => Wake::LookAgain,
            };
            let won = match wake {
                Wake::LookAgain => break,
                Wake::Offer(delivery) => claim_offer(worker, *delivery).await,
                Wake::AskTheDoor => {
                    ask_at = Instant::now() + jittered(CLAIM_BESIDE_BROKER);
                    claim_any(worker, 0).await
                }
            };
            if won.is_some() {
                return won;
            }
        }
    }
}

/// The next delivery of any consumer; `LookAgain` when one of them ended.
async fn next_offer(consumers: &mut [Consumer]) -> Wake {
    let mut next: FuturesUnordered<_> = consumers.iter_mut().map(Consumer::next).collect();
    match next.next().await {
        Some(Some(delivery)) => Wake::Offer(Box::new(delivery)),
        Some(None) => Wake::LookAgain,
        None => std::future::pending().await,
    }
}

/// The next job that the door gives; `None` once the worker drains.
async fn from_door(worker: &Worker) -> Option<Won> {
    loop {
        let began = Instant::now();
        // A drain drops a claim that waits; one that was won in that instant comes back when its lease ends.
        let won = tokio::select! {
            biased;
            () = worker.draining.cancelled() => return None,
            won = claim_any(worker, CLAIM_WAIT_S) => won,
        };
        if won.is_some() {
            return won;
        }
        // A door that answers at once must not be asked in a tight loop.
        if began.elapsed() < CLAIM_PAUSE {
            tokio::time::sleep(jittered(CLAIM_PAUSE)).await;
        }
    }
}

async fn claim_any(worker: &Worker, wait_s: u32) -> Option<Won> {
    claim(worker, None, wait_s).await.unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot ask the door for a job");
        None
    })
}

/// Claims what `delivery` offers, then acknowledges it, won or lost: from here on the lease is the claim.
async fn claim_offer(worker: &Worker, delivery: Delivery) -> Option<Won> {
    let claimed = match serde_json::from_slice::<OfferMessage>(&delivery.body) {
        Ok(offer) => claim(worker, Some(offer), 0).await,
        Err(error) => {
            tracing::warn!(%error, "an offer cannot be read; it is dropped");
            Ok(None)
        }
    };
    match delivery.ack().await {
        Ok(true) => {}
        // The broker delivers it again, to somebody whose claim will lose.
        Ok(false) => tracing::warn!("the broker took an offer back before it was acknowledged"),
        Err(error) => tracing::warn!(%error, "an offer cannot be acknowledged"),
    }
    claimed.unwrap_or_else(|error| {
        tracing::warn!(%error, "an offer cannot be claimed; the scheduler makes it again");
        None
    })
}

async fn claim(
    worker: &Worker,
    offer: Option<OfferMessage>,
    wait_s: u32,
) -> Result<Option<Won>, DoorError> {
    let base_models = worker.bases.names();
    if base_models.is_empty() {
        return Ok(None);
    }
    let claimed_at = Instant::now();
    let request = ClaimRequest {
        worker_id: worker.id.clone(),
        base_models,
        offer,
        wait_s,
    };
    match worker.door.claim(&request).await {
        Ok(reply) => Ok(reply.assignment.map(|assignment| (assignment, claimed_at))),
        // Somebody else was faster.
        Err(DoorError::Stale) => Ok(None),
        Err(error) => Err(error),
    }
}
