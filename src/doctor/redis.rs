//! The Redis server that keeps the tasks: whether it can be used, what it may lose, how much it can hold.

use std::time::{Duration, Instant};

use comfyd_actors::{domain::time::Timestamp, ports::clock::Clock};

use super::{report::Section, server, store::Kept};
use crate::{
    clock::SystemClock,
    store::redis::{RedisConfig, ServerReport, look},
};

/// Looks at the server; returns the workflows it has, too.
pub(super) async fn examine(config: &RedisConfig) -> (Section, Vec<Kept>) {
    let mut section = Section::new("Store  Redis");
    let began = Instant::now();
    match look(config).await {
        Ok(found) => {
            describe(&mut section, &found, began.elapsed(), SystemClock::start().now());
            (section, found.published)
        }
        Err(error) => {
            section.bad(error.to_string(), "");
            (section, Vec::new())
        }
    }
}

fn describe(section: &mut Section, found: &ServerReport, took: Duration, now: Timestamp) {
    let each = took / ServerReport::TRIPS;
    server::pace(section, &format!("Redis {}", found.version), each);
    match found.warning() {
        Some(warning) => section.odd(warning, ""),
        None => section.good("every write is on its disk before it answers"),
    }
    match found.policy.as_deref() {
        Some(policy) => section.good(format!("it throws nothing away (maxmemory-policy {policy})")),
        None => section.odd(
            "it does not say what it does when its memory is full",
            "see that maxmemory-policy is noeviction: it throws tasks away otherwise",
        ),
    }
    memory(section, found);
    server::time(section, found.now, now, took);
}

/// Everything lives in its memory.
fn memory(section: &mut Section, found: &ServerReport) {
    let mib = |bytes: u64| bytes >> 20;
    let used = mib(found.used_memory);
    match found.max_memory {
        0 => section.odd(
            format!("it uses {used} MiB, and has no bound of its own"),
            "set maxmemory below what its machine has: without one the system may kill it when memory runs out",
        ),
        max if found.used_memory > max / 10 * 8 => section.odd(
            format!("it uses {used} of {} MiB", mib(max)),
            "no new tasks are taken once it is full: give it more, or keep finished tasks for a shorter time ([retention])",
        ),
        max => section.good(format!("it uses {used} of {} MiB", mib(max))),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::report::Health, *};

    #[test]
    fn what_matters_about_a_server_is_told() {
        let now = Timestamp(1_800_000_000_000);
        let judged = |found: &ServerReport| {
            let mut section = Section::new("");
            describe(&mut section, found, Duration::from_millis(5), now);
            (section.worst(), section.text())
        };
        let well = ServerReport::well(now);
        assert_eq!(judged(&well).0, Some(Health::Good), "{}", judged(&well).1);
        for (found, word) in [
            (ServerReport { now: now.after(Duration::from_secs(70)), ..well.clone() }, "our clock is 1m 10s behind"),
            (ServerReport { durability: None, ..well.clone() }, "CONFIG is not allowed"),
            (ServerReport { max_memory: 0, ..well.clone() }, "no bound"),
            (ServerReport { used_memory: 90 << 20, ..well.clone() }, "90 of 100 MiB"),
            (ServerReport { policy: None, ..well.clone() }, "noeviction"),
        ] {
            let (worst, text) = judged(&found);
            assert!(worst == Some(Health::Odd) && text.contains(word), "{text}");
        }
    }
}
