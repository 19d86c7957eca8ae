//! How many consumers there should be: one number for whatever starts and stops machines.
//!
//! A server that runs tasks of `took` begins one at once and another each `took` after it: in a wait of `target` that is
//! `1 + target / took`. So `waiting + running` tasks need `(waiting + running) * took / (took + target)` servers for each to have begun in that
//! time. Where tasks come evenly this settles where Little's law says. Servers that run something are always among the wanted, and while
//! anything waits no server stays idle, so the number falls only when the work does: nobody is stopped to be started again.

use std::{collections::BTreeMap, time::Duration};

use super::tenant::{Caps, NOBODY};

/// What there is to do, and who is there to do it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Tasks that wait for a server, those included that were sent ahead to one that is busy.
    pub waiting: u64,
    /// Servers that run a task now.
    pub running: u64,
    /// Tasks that somebody holds, in whatever stage.
    pub held: u64,
    /// How long tasks lately occupied a server; `None` = none ended yet.
    pub took: Option<Duration>,
    /// Consumers that are there.
    pub consumers: u64,
    /// Their servers.
    pub servers: u64,
}

/// What is aimed at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Aim {
    /// In this time every waiting task should have begun.
    pub wait: Duration,
    /// Servers of a consumer, while none is there to tell.
    pub servers_each: u64,
}

/// Consumers that should be there. 0 when nothing waits and nothing runs.
///
/// Without experience of how long tasks take there is one beside those that run something: the first ends teach more.
#[must_use]
pub fn consumers_wanted(load: &Load, aim: Aim) -> u64 {
    let for_the_wait = match load.took {
        Some(took) => {
            let (took, wait) = (took.as_micros().max(1), aim.wait.as_micros());
            let tasks = u128::from(load.waiting) + u128::from(load.running);
            let servers = tasks.saturating_mul(took).div_ceil(took + wait);
            u64::try_from(servers).unwrap_or(u64::MAX)
        }
        None => u64::from(load.waiting > 0),
    };
    // A task whose consumer died and an output that is being stored need somebody too.
    let somebody = u64::from(load.held > 0);
    let servers = for_the_wait.max(load.running).max(somebody);
    let (consumers, each) =
        if load.consumers == 0 || load.servers == 0 { (1, aim.servers_each) } else { (load.consumers, load.servers) };
    let wanted = (u128::from(servers) * u128::from(consumers)).div_ceil(u128::from(each.max(1)));
    u64::try_from(wanted).unwrap_or(u64::MAX)
}

/// The waiting tasks of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    /// Whose lane it is.
    pub tenant: i64,
    /// How many wait in it.
    pub tasks: u64,
    /// Whether consumers like those there are might run them.
    pub is_served: bool,
}

/// How many of `pending` tasks more consumers would be of use to: not those that none of them could run, nor more of a tenant's than may run
/// beside those that do. `lines` are all lanes but lane 0, `running` is what tenants have running.
#[must_use]
pub fn of_use(pending: u64, lines: &[Line], caps: &Caps, running: &BTreeMap<i64, u64>) -> u64 {
    let in_lines: u64 = lines.iter().map(|line| line.tasks).sum();
    let mut waiting: BTreeMap<i64, u64> = [(NOBODY, pending.saturating_sub(in_lines))].into();
    for line in lines.iter().filter(|line| line.is_served) {
        *waiting.entry(line.tenant).or_default() += line.tasks;
    }
    let within = |(tenant, tasks): (i64, u64)| match caps.of(tenant) {
        Some(cap) => tasks.min(u64::from(cap).saturating_sub(running.get(&tenant).copied().unwrap_or(0))),
        None => tasks,
    };
    waiting.into_iter().map(within).sum()
}

/// What a task usually takes: the mean, because it is the sum of them that has to be worked off.
#[must_use]
pub fn usual(took: impl IntoIterator<Item = Duration>) -> Option<Duration> {
    let (mut sum, mut count) = (Duration::ZERO, 0_u32);
    for took in took {
        sum = sum.saturating_add(took);
        count += 1;
    }
    sum.checked_div(count)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::tenant::{Limits, Tenants};

    const AIM: Aim = Aim { wait: Duration::from_secs(60), servers_each: 1 };

    /// With consumers of one server each, as many as run something.
    fn load(waiting: u64, running: u64, took: u64) -> Load {
        let took = Some(Duration::from_secs(took)).filter(|took| !took.is_zero());
        Load { waiting, running, held: running, took, consumers: running, servers: running }
    }

    #[test]
    fn as_many_as_the_wait_asks_for() {
        for (what, load, wanted) in [
            ("nothing to do", load(0, 0, 20), 0),
            ("nothing to do, nothing known", load(0, 0, 0), 0),
            ("one task wakes one", load(1, 0, 20), 1),
            ("one server begins 4 of 20 s within a minute", load(4, 0, 20), 1),
            ("the fifth needs another", load(5, 0, 20), 2),
            ("400 need 100", load(400, 0, 20), 100),
            ("tasks of ten minutes: almost one each", load(10, 0, 600), 10),
            ("never more than one each", load(3, 0, 360_000), 3),
            ("short ones share a server", load(1_000, 0, 1), 17),
            ("what runs now stays, whatever waits", load(0, 7, 1), 7),
            ("what runs stays until it ends, though fewer would do", load(20, 50, 20), 50),
            ("nobody ran anything yet: one", load(500, 0, 0), 1),
            ("or those that run", load(500, 3, 0), 3),
            ("what its consumer left behind", Load { held: 1, ..load(0, 0, 20) }, 1),
            ("tasks of no time at all", Load { took: Some(Duration::ZERO), ..load(9, 0, 1) }, 1),
        ] {
            assert_eq!(consumers_wanted(&load, AIM), wanted, "{what}: {load:?}");
        }
    }

    #[test]
    fn servers_share_a_consumer() {
        let eight = load(32, 0, 20);
        for (consumers, servers, each, wanted) in [
            (2, 8, 1, 2),
            (3, 9, 1, 3),
            // While nobody tells, the setting does.
            (0, 0, 1, 8),
            (0, 0, 4, 2),
            (0, 0, 0, 8),
            // One that has none yet tells nothing.
            (1, 0, 2, 4),
        ] {
            let load = Load { consumers, servers, ..eight };
            assert_eq!(consumers_wanted(&load, Aim { servers_each: each, ..AIM }), wanted, "{load:?}");
        }
    }

    #[test]
    fn what_may_not_or_cannot_run_wants_nobody() {
        let limits = Limits { max_waiting: None, max_running: Some(3) };
        let caps = Tenants { usual: limits, ..Tenants::default() }.caps();
        let line = |tenant, tasks, is_served| Line { tenant, tasks, is_served };
        let running = [(2, 1), (3, 9)].into();
        for (pending, lines, wanted) in [
            (7, vec![], 7),
            (10, vec![line(NOBODY, 4, true), line(NOBODY, 2, false)], 8),
            // Of two lanes of a tenant no more than may run, with what runs already.
            (20, vec![line(1, 9, true), line(1, 9, true)], 2 + 3),
            (20, vec![line(2, 20, true)], 2),
            (20, vec![line(3, 20, true)], 0),
            (20, vec![line(1, 2, true), line(2, 18, false)], 2),
            // Lanes were read after the others were counted.
            (1, vec![line(NOBODY, 4, true)], 4),
        ] {
            assert_eq!(of_use(pending, &lines, &caps, &running), wanted, "{pending} {lines:?}");
        }
        assert_eq!(of_use(20, &[line(3, 20, true)], &Caps::default(), &running), 20);
    }

    #[test]
    fn the_usual_time_is_the_mean() {
        assert_eq!(usual([]), None);
        assert_eq!(usual([1, 2, 6].map(Duration::from_secs)), Some(Duration::from_secs(3)));
    }

    /// A queue that is worked off by as many consumers as are wanted, asked each second: the number rises at once, then only falls.
    #[test]
    fn a_backlog_is_worked_off_without_swinging() {
        let (took, mut waiting, mut servers, mut ends) = (20_u64, 400_u64, 0_u64, Vec::<u64>::new());
        let mut seen = Vec::new();
        for now in 0..=90 {
            ends.retain(|end| *end > now);
            // Those that are there take what they can, then somebody asks, and those that are new take theirs.
            for _ in 0..2 {
                let begin = servers.saturating_sub(ends.len() as u64).min(waiting);
                waiting -= begin;
                ends.extend((0..begin).map(|_| now + took));
                servers = consumers_wanted(&load(waiting, ends.len() as u64, took), AIM);
            }
            seen.push(servers);
        }
        assert_eq!(
            (seen[0], seen[79], seen[80]),
            (100, 100, 0),
            "as many as it takes, until the last has ended: {seen:?}"
        );
        assert!(seen.windows(2).all(|pair| pair[0] >= pair[1]), "{seen:?}");
        assert_eq!(waiting, 0);
    }

    proptest! {
        /// Enough for what runs, never more than there are tasks, and one more task changes it by one at most.
        #[test]
        fn no_task_makes_it_jump(waiting in 0_u64..10_000, running in 0_u64..1_000, took in 1_u64..100_000) {
            let wanted = |waiting| consumers_wanted(&load(waiting, running, took), AIM);
            let now = wanted(waiting);
            prop_assert!(now >= running && now <= waiting + running);
            prop_assert!((now..=now + 1).contains(&wanted(waiting + 1)));
            prop_assert!(now > 0 || waiting + running == 0);
        }

        /// Nothing that a store or a notice can say is too large.
        #[test]
        fn nothing_overflows(waiting: u64, running: u64, held: u64, took: Option<Duration>, consumers: u64, servers: u64, wait: Duration) {
            let load = Load { waiting, running, held, took, consumers, servers };
            let _ = consumers_wanted(&load, Aim { wait, servers_each: servers });
        }
    }
}
