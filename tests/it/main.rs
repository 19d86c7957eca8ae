//! Tests of the whole, one binary: linking is what costs.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test may panic; these lints spare only functions marked as tests, not their helpers"
)]

mod apart;
mod backends;
mod buckets;
mod cancel;
mod chaos;
mod checker;
mod clock;
mod control;
mod crash;
mod crash_table;
mod databases;
mod dead_letters;
mod deployment;
mod docs_page;
mod doctor;
mod doubt;
mod events;
mod examples;
mod failures;
mod flow;
mod frames;
mod generations;
mod health;
mod hostile;
mod inputs;
mod metrics;
mod outage;
mod outputs;
mod passthrough;
mod place;
mod postgres;
mod process;
mod properties;
mod receiver;
mod recorder;
mod redis;
mod redis_server;
mod replicas;
mod rolling;
mod rootfs;
mod servers;
mod socket;
mod storage;
mod stores;
mod support;
mod tenants;
mod tls;
mod tools;
mod uploads;
mod urls;
mod validation;
mod webhooks;
mod witness;
mod workflows;
