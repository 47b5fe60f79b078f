//! Where a job that waits stands, and when it will start, as far as that can be known.

use crate::id::JobId;
use crate::time::Timestamp;

/// A job that waits for a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    pub id: JobId,
    pub base_model: String,
    /// Jobs on the same base model that are started before it.
    pub n_before: u64,
}

/// Where a job stands in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    /// `None`: it waits for no worker now.
    pub n_before: Option<u64>,
    /// `None`: not known.
    pub start: Option<Timestamp>,
}

/// A worker as those who wait see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub base_models: Vec<String>,
    /// When it can take a job; `None`: nobody knows.
    pub free_at: Option<Timestamp>,
}

impl Place {
    fn takes(&self, job: &Waiting) -> bool {
        self.base_models.contains(&job.base_model)
    }
}

/// When each of `waiting`, which stand in the order in which they are started, begins if nobody comes between, as far as those know who
/// run now: how long one that waits will take is not known, so each worker says when the first one begins that it takes.
pub fn starts(mut places: Vec<Place>, waiting: &[Waiting]) -> Vec<Option<Timestamp>> {
    let mut start = |job: &Waiting| {
        let able = || places.iter().enumerate().filter(|(_, p)| p.takes(job));
        let is_known = able().all(|(_, place)| place.free_at.is_some());
        let free = able().filter_map(|(i, place)| Some((place.free_at?, i)));
        // Where one does not say when it is free, it may take the job before; then this one is not taken.
        let (earliest, i) = free.min()?;
        places.remove(i);
        is_known.then_some(earliest)
    };
    waiting.iter().map(&mut start).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(places: &[(&str, Option<i64>)], waiting: &[&str], expected: &[Option<i64>]) {
        let places = places.iter().map(|(bases, free_at)| Place {
            base_models: bases.chars().map(String::from).collect(),
            free_at: free_at.map(Timestamp),
        });
        let waiting: Vec<Waiting> = waiting
            .iter()
            .map(|base| Waiting {
                id: JobId::mint([1; 24]),
                base_model: (*base).to_owned(),
                n_before: 0,
            })
            .collect();
        let expected: Vec<_> = expected.iter().map(|at| at.map(Timestamp)).collect();
        assert_eq!(starts(places.collect(), &waiting), expected);
    }

    #[test]
    fn the_first_ones_start_when_workers_are_free() {
        let two = [("a", Some(20)), ("a", Some(10))];
        check(&two, &["a", "a", "a"], &[Some(10), Some(20), None]);
        check(&two, &["b", "a"], &[None, Some(10)]);
        check(&[], &["a"], &[None]);
    }

    #[test]
    fn where_a_worker_does_not_say_when_it_is_free_nothing_is_known_of_whom_it_might_take() {
        let places = [("ab", None), ("b", Some(10)), ("bc", Some(20))];
        // The first worker takes it, or the second one: the third one is still free for others.
        check(&places, &["b", "c"], &[None, Some(20)]);
        check(&places, &["c", "b", "a"], &[Some(20), None, None]);
        // Who might take the first one and did not, may still not know when it is free.
        check(&[("a", None), ("a", Some(10))], &["a", "a"], &[None, None]);
    }

    #[test]
    fn a_job_on_another_base_takes_a_worker_away() {
        check(&[("ab", Some(10))], &["b", "a"], &[Some(10), None]);
    }
}
