//! What the servers did, read from their logs: each run of a task with its beginning, its end, and whether it could still deliver.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use fake_comfyui::{Event, EventKind, Outcome};

/// One run of a task.
#[derive(Debug, Clone)]
pub struct Execution {
    /// Which server.
    server: usize,
    /// Its prompt.
    prompt: String,
    /// When it began, in milliseconds since 1970.
    pub began: u64,
    /// When and how it ended.
    ended: Option<(u64, Outcome)>,
    /// When its server forgot all about it.
    forgotten: Option<u64>,
}

impl fmt::Display for Execution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { server, prompt, began, ended, forgotten } = self;
        write!(f, "{prompt} on {server} at {began}, ended {ended:?}, forgotten {forgotten:?}")
    }
}

impl Execution {
    pub fn succeeded(&self) -> bool {
        self.ended.is_some_and(|(_, outcome)| outcome == Outcome::Success)
    }

    pub fn failed(&self) -> bool {
        self.ended.is_some_and(|(_, outcome)| outcome == Outcome::Error)
    }

    /// Its server died over it.
    pub fn died(&self) -> bool {
        self.ended.is_none() && self.forgotten.is_some()
    }

    /// Whether, as far as logs show, nothing had spoilt it by `now`.
    pub fn may_still_deliver(&self, now: u64) -> bool {
        let spoilt = self.ended.is_some_and(|(_, outcome)| outcome != Outcome::Success);
        !spoilt && self.forgotten.is_none_or(|at| at > now)
    }

    /// Whether the next one began before this one was over.
    pub fn overlaps(&self, next: &Self) -> bool {
        self.ended.is_none_or(|(at, _)| at > next.began)
    }
}

/// The runs of every task that a marker tells, in order.
pub fn of(servers: &[Vec<Event>]) -> BTreeMap<String, Vec<Execution>> {
    let mut found: BTreeMap<String, Vec<Execution>> = BTreeMap::new();
    for (server, log) in servers.iter().enumerate() {
        let mut known: Vec<(String, Execution)> = Vec::new();
        for event in log {
            match &event.kind {
                EventKind::Started { prompt_id, task: Some(task) } => {
                    let (prompt, began) = (prompt_id.clone(), event.wall_ms);
                    let run = Execution { server, prompt, began, ended: None, forgotten: None };
                    known.push((task.clone(), run));
                }
                EventKind::Finished { prompt_id, outcome } => {
                    let run = known.iter_mut().rev().find(|(_, run)| run.prompt == *prompt_id);
                    run.into_iter().for_each(|(_, run)| run.ended = Some((event.wall_ms, *outcome)));
                }
                EventKind::WentDown => {
                    for (_, run) in &mut known {
                        run.forgotten.get_or_insert(event.wall_ms);
                    }
                }
                _ => {}
            }
        }
        for (task, run) in known {
            found.entry(task).or_default().push(run);
        }
    }
    found.values_mut().for_each(|runs| runs.sort_by_key(|run| run.began));
    found
}

/// When prompts of a task were taken by a server.
pub fn sent(servers: &[Vec<Event>], task: &str) -> Vec<u64> {
    posts(servers, task).filter_map(|(at, accepted)| accepted.then_some(at)).collect()
}

/// How many prompts of a task were refused.
pub fn refusals(servers: &[Vec<Event>], task: &str) -> usize {
    posts(servers, task).filter(|(_, accepted)| !accepted).count()
}

fn posts<'a>(servers: &'a [Vec<Event>], wanted: &'a str) -> impl Iterator<Item = (u64, bool)> + 'a {
    servers.iter().flatten().filter_map(move |event| match &event.kind {
        EventKind::Posted { task: Some(task), accepted, .. } if task == wanted => Some((event.wall_ms, *accepted)),
        _ => None,
    })
}

/// Prompts of ours that were sent more than once.
pub fn sent_twice(servers: &[Vec<Event>]) -> Vec<String> {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for event in servers.iter().flatten() {
        if let EventKind::Posted { prompt_id, task: Some(_), .. } = &event.kind {
            *counts.entry(prompt_id).or_default() += 1;
        }
    }
    let mut twice: Vec<_> = counts.into_iter().filter(|(_, count)| *count > 1).map(|(id, _)| id.to_owned()).collect();
    twice.sort();
    twice
}
