//! A queue as bad as a queue may be: it loses, doubles and reorders, and sometimes it is away.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use domain::message::OfferMessage;
use futures::FutureExt;
use futures::future::BoxFuture;
use scheduler::{HintError, HintSink};

#[derive(Clone)]
pub struct LossyQueue(Arc<Inner>);

struct Inner {
    has_broker: bool,
    /// Of the fate of each message.
    seed: u64,
    n_published: AtomicU64,
    is_down: AtomicBool,
    offers: Mutex<VecDeque<OfferMessage>>,
    n_broadcast: AtomicU64,
}

impl LossyQueue {
    fn new(has_broker: bool, seed: u64) -> Self {
        Self(Arc::new(Inner {
            has_broker,
            seed,
            n_published: AtomicU64::new(0),
            is_down: AtomicBool::new(false),
            offers: Mutex::default(),
            n_broadcast: AtomicU64::new(0),
        }))
    }

    /// No broker at all.
    pub fn none() -> Self {
        Self::new(false, 0)
    }

    /// A broker; `seed` decides what happens to each message.
    pub fn lossy(seed: u64) -> Self {
        Self::new(true, seed)
    }

    pub fn set_down(&self, is_down: bool) {
        self.0.is_down.store(is_down, Ordering::SeqCst);
    }

    /// The next message for any worker.
    pub fn next(&self) -> Option<OfferMessage> {
        self.0.offers.lock().unwrap().pop_front()
    }

    pub fn n_published(&self) -> u64 {
        self.0.n_published.load(Ordering::SeqCst)
    }

    pub fn n_broadcast(&self) -> u64 {
        self.0.n_broadcast.load(Ordering::SeqCst)
    }

    fn check_up(&self) -> Result<(), HintError> {
        match self.0.is_down.load(Ordering::SeqCst) {
            true => Err(HintError("the broker is away".to_owned())),
            false => Ok(()),
        }
    }
}

impl HintSink for LossyQueue {
    fn has_broker(&self) -> bool {
        self.0.has_broker
    }

    fn publish<'a>(
        &'a self,
        queue: &'a str,
        body: &'a [u8],
    ) -> BoxFuture<'a, Result<(), HintError>> {
        async move {
            self.check_up()?;
            assert!(queue.starts_with("train."), "{queue}");
            let offer: OfferMessage = serde_json::from_slice(body).unwrap();
            let n = self.0.n_published.fetch_add(1, Ordering::SeqCst);
            let mut offers = self.0.offers.lock().unwrap();
            match mix(self.0.seed + n) % 4 {
                0 => {}
                1 => offers.push_back(offer),
                2 => offers.push_front(offer),
                _ => offers.extend([offer.clone(), offer]),
            }
            Ok(())
        }
        .boxed()
    }

    fn broadcast<'a>(&'a self, _body: &'a [u8]) -> BoxFuture<'a, Result<(), HintError>> {
        async move {
            self.check_up()?;
            self.0.n_broadcast.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
        .boxed()
    }
}

/// A number that looks random (splitmix64's last step).
fn mix(n: u64) -> u64 {
    let mut z = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z ^ (z >> 29)
}
