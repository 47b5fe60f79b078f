//! The store on SQLite and PostgreSQL: one suite for both.

mod harness;
mod sample;

mod apply;
mod connect;
mod files;
mod idempotency;
mod jobs;
mod models;
mod outbox;
mod pages;
mod pick;
mod shared;
mod tenancy;
mod tenants;
mod webhooks;
