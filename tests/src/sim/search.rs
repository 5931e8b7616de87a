//! Many seeds, on all cores.

use super::run::{Options, Outcome, seed};
use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

/// All seeds from `first` to `last`; stops early at the first broken promise if told so.
#[must_use]
pub fn search(first: u64, last: u64, options: &Options, jobs: usize, stop: bool) -> (Outcome, u64) {
    let next = AtomicU64::new(first);
    let stopped = AtomicBool::new(false);
    let total = Mutex::new((Outcome::default(), 0));
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while !stopped.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number > last {
                        return;
                    }
                    let outcome = seed(number, options);
                    if stop && outcome.failure.is_some() {
                        stopped.store(true, Ordering::Relaxed);
                    }
                    let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
                    total.0.add(outcome);
                    total.1 += 1;
                }
            });
        }
    });
    total.into_inner().unwrap_or_else(PoisonError::into_inner)
}
