//! The Redis server that keeps the tasks: whether it can be used, what it may lose, how much it can hold.

use std::time::{Duration, Instant};

use comfyd_actors::{domain::time::Timestamp, ports::clock::Clock};
use humantime::format_duration;

use super::{report::Section, store::Kept};
use crate::{
    clock::SystemClock,
    store::redis::{RedisConfig, ServerReport, look},
};

/// An answer that takes longer is felt: a new task needs four.
const SLOW: Duration = Duration::from_millis(20);
/// Clocks of machines that are kept by NTP differ by less.
const APART: Duration = Duration::from_secs(2);

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
    let text = format!("Redis {} answers in {:.1} ms", found.version, each.as_secs_f64() * 1e3);
    if each > SLOW {
        section.odd(text, "each new task waits for some answers: put the server nearer");
    } else {
        section.good(text);
    }
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
    let (behind, ahead) = (found.now.since(now), now.since(found.now));
    if behind.max(ahead) > APART + took {
        let (apart, how) = if behind > ahead { (behind, "behind") } else { (ahead, "ahead of") };
        let apart = format_duration(Duration::from_secs(apart.as_secs()));
        section.odd(
            format!("our clock is {apart} {how} the server's, which decides on leases"),
            "find out which one is wrong and let NTP keep it",
        );
    }
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
