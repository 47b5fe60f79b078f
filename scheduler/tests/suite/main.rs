//! The scheduler as workers and operators meet it: a real database file, real objects, a real
//! door over HTTP. Only the queue is fake, and it is a bad one. The clock is ours.

mod datasets;
mod door;
mod dry_runs;
mod formats;
mod house;
mod leases;
mod lengths;
mod lossy_queue;
mod offers;
mod running;
mod scripted_worker;
mod spend_limits;
mod stops;
mod sweep;
mod two;
mod walk;
mod webhooks;
