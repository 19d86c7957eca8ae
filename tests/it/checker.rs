//! The offline checker: reads a [`History`] and says which promise it breaks. Pure, so that forged histories can show that it does.
//!
//! It knows nothing of how comfyd works. It takes the word of clients, servers, database and storage, and compares them: what one party was
//! told must be what the others did. What may happen more than once needs a reason that a log shows.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
};

mod executions;
#[cfg(test)]
mod forged;
mod history;

pub use history::{Fact, History, Message, Object, Output, Row, Stored, Told, View, Word};

use self::{executions::Execution, history::is_final};

/// What is wrong. P1 to P8 are the promises of the README.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rule {
    /// P1: a client was given a task that is not stored.
    Lost,
    /// P1: a task nobody asked for.
    Invented,
    /// P2: a task without an end.
    NeverEnds,
    /// P3: a task has more endings, or fewer, than generations.
    EndsTwice,
    /// P3: an ending that a client saw is not the one that stands.
    EndChanged,
    /// P4: it ran again though nothing shows that the run before could not deliver.
    RanAgain,
    /// P4: two runs of one task at the same time.
    RanTwiceAtOnce,
    /// P4: one prompt was sent twice.
    SentTwice,
    /// P4: it is complete, and no server ever finished it.
    NeverRan,
    /// P4: it failed, and nothing shows why.
    FailedForNothing,
    /// P4: an attempt was spent though the task had not failed.
    AttemptSpent,
    /// P5: the manifest names what is not in the storage as it says.
    ManifestUntrue,
    /// P5: a client read other bytes than the manifest says, or saw another manifest.
    ReadOtherwise,
    /// P5: the picture is another task's.
    OthersResult,
    /// P5: something lies in the storage that no manifest names, under the name of a run that a manifest is of.
    Unnamed,
    /// P5: something of a run that was given up lies in the storage, though it was tidied up.
    LeftBehind,
    /// P6: an event of the database never reached who listened all the time.
    NeverHeard,
    /// P6: an event came twice, or out of order.
    HeardTwice,
    /// P6: what a webhook is to be told is not in the outbox, or something else is.
    NotPosted,
    /// P6: a message of the outbox never reached its receiver.
    NeverTold,
    /// P6: the messages of a task came out of order, or told something else.
    ToldUntrue,
    /// P6: the events do not tell how the task ended.
    StoryUntrue,
    /// P7: after its cancellation was taken, it completed or failed.
    EndedOtherwise,
    /// P7: after its cancellation was taken, another run of it was sent.
    RanAfterCancel,
    /// P8: one key made two tasks.
    KeyMadeTwo,
    /// The database is damaged.
    Damaged,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    pub rule: Rule,
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.rule, self.detail)
    }
}

/// Everything that is wrong; nothing when every promise was kept.
#[must_use]
pub fn check(history: &History) -> Vec<Violation> {
    let mut checker = Checker::new(history);
    checker.acceptance();
    checker.endings();
    checker.executions();
    checker.manifests();
    checker.cancellations();
    checker.events();
    checker.messages();
    if history.integrity != "ok" {
        checker.report(Rule::Damaged, history.integrity.clone());
    }
    checker.found.sort();
    checker.found
}

struct Checker<'a> {
    history: &'a History,
    rows: HashMap<&'a str, &'a Row>,
    executions: BTreeMap<String, Vec<Execution>>,
    found: Vec<Violation>,
}

impl<'a> Checker<'a> {
    fn new(history: &'a History) -> Self {
        let rows = history.rows.iter().map(|row| (row.id.as_str(), row)).collect();
        Self { history, rows, executions: executions::of(&history.servers), found: Vec::new() }
    }

    fn report(&mut self, rule: Rule, detail: impl Into<String>) {
        self.found.push(Violation { rule, detail: detail.into() });
    }

    /// Every task as clients saw it, in order, with the wish it answers.
    fn views(&self) -> impl Iterator<Item = &'a View> + use<'a> {
        self.history.told.iter().filter_map(|told| match &told.word {
            Word::Seen(view) | Word::Cancelled(view) | Word::Reopened(view) => Some(view),
            _ => None,
        })
    }

    /// P1 and P8.
    fn acceptance(&mut self) {
        let mut made: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        let mut asked: BTreeSet<&str> = BTreeSet::new();
        for told in &self.history.told {
            match &told.word {
                Word::Accepted { key, task, .. } => {
                    asked.insert(key);
                    made.entry(key).or_default().insert(task);
                    if !self.rows.contains_key(task.as_str()) {
                        self.report(Rule::Lost, format!("{task}, acknowledged for the key {key}"));
                    }
                }
                Word::Unanswered { key } => _ = asked.insert(key),
                _ => {}
            }
        }
        for row in &self.history.rows {
            for key in &row.keys {
                made.entry(key).or_default().insert(&row.id);
            }
            if !row.keys.iter().any(|key| asked.contains(key.as_str())) {
                self.report(Rule::Invented, format!("{} is there, and nobody asked for it", row.id));
            }
        }
        for (key, tasks) in made.into_iter().filter(|(_, tasks)| tasks.len() > 1) {
            self.report(Rule::KeyMadeTwo, format!("{key} made {tasks:?}"));
        }
    }

    /// P2 and P3.
    fn endings(&mut self) {
        for row in &self.history.rows {
            if !is_final(&row.state) {
                self.report(Rule::NeverEnds, format!("{} is {} for ever", row.id, row.state));
            }
            let ends = row.facts.iter().filter(|fact| fact.stage.as_deref().is_some_and(is_final)).count();
            if is_final(&row.state) && i64::try_from(ends) != Ok(row.generation) {
                self.report(Rule::EndsTwice, format!("{} ended {ends} times in {} lives", row.id, row.generation));
            }
        }
        let mut ends: HashMap<(&str, i64), &View> = HashMap::new();
        for view in self.views() {
            let life = (view.task.as_str(), view.generation);
            match ends.get(&life) {
                Some(end) if (&end.status, &end.finished_at) != (&view.status, &view.finished_at) => {
                    self.report(Rule::EndChanged, format!("{}, after {}: {}", view.task, end.status, view.status));
                }
                Some(end) if end.outputs != view.outputs => {
                    self.report(Rule::EndChanged, format!("{}, its outputs after its end", view.task));
                }
                None if view.is_final() => _ = ends.insert(life, view),
                _ => {}
            }
        }
        for ((task, generation), end) in ends {
            let Some(row) = self.rows.get(task) else { continue };
            if row.generation == generation && row.state != end.status {
                self.report(Rule::EndChanged, format!("{task}, a client saw {}, it is {}", end.status, row.state));
            }
        }
    }

    /// P4.
    fn executions(&mut self) {
        for prompt in executions::sent_twice(&self.history.servers) {
            self.report(Rule::SentTwice, prompt);
        }
        for row in &self.history.rows {
            let runs = self.executions.get(&row.id).cloned().unwrap_or_default();
            let reopened = self.times(&row.id, |word| matches!(word, Word::Reopened(_)));
            let mut pardons = self.history.pardons.get(&row.id).copied().unwrap_or(0);
            for pair in runs.windows(2) {
                let (before, after) = (&pair[0], &pair[1]);
                let wanted = reopened.iter().any(|at| (before.began..=after.began).contains(at));
                if before.may_still_deliver(after.began) && !wanted {
                    match pardons.checked_sub(1) {
                        Some(left) => pardons = left,
                        None if before.overlaps(after) => {
                            self.report(Rule::RanTwiceAtOnce, format!("{}: {before} and {after}", row.id));
                        }
                        None => self.report(Rule::RanAgain, format!("{}: {before}, then {after}", row.id)),
                    }
                }
            }
            let refused = executions::refusals(&self.history.servers, &row.id);
            let errors = runs.iter().filter(|run| run.failed()).count() + refused;
            let deaths = runs.iter().filter(|run| run.died()).count();
            if row.state == "completed" && !runs.iter().any(Execution::succeeded) {
                self.report(Rule::NeverRan, row.id.clone());
            }
            if row.state == "failed" && errors == 0 && deaths < 3 {
                self.report(Rule::FailedForNothing, row.id.clone());
            }
            if usize::try_from(row.attempt).is_ok_and(|attempt| attempt > errors + 1) {
                self.report(Rule::AttemptSpent, format!("{}: attempt {}, {errors} errors", row.id, row.attempt));
            }
        }
    }

    /// P5.
    fn manifests(&mut self) {
        let colors: HashMap<_, _> = self.history.told.iter().filter_map(|told| told.word.color()).collect();
        let mut named = BTreeSet::new();
        for row in self.history.rows.iter().filter(|row| row.state == "completed") {
            if row.outputs.is_empty() {
                self.report(Rule::ManifestUntrue, format!("{} is complete and has no output", row.id));
            }
            for output in &row.outputs {
                let object = output.key.as_ref().and_then(|key| Some((key, self.history.objects.get(key)?)));
                let Some((key, object)) = object else {
                    self.report(Rule::ManifestUntrue, format!("{}: output {} is not there", row.id, output.index));
                    continue;
                };
                named.insert(key.as_str());
                if (object.bytes, &object.sha256) != (output.bytes, &output.sha256) {
                    self.report(Rule::ManifestUntrue, format!("{}: {key} is other bytes", row.id));
                }
                let wanted = colors.get(row.id.as_str());
                if wanted.is_some_and(|wanted| object.color != Some(*wanted)) {
                    self.report(Rule::OthersResult, format!("{}: {:?} instead of {wanted:?}", row.id, object.color));
                }
            }
        }
        for key in self.history.objects.keys().filter(|key| !named.contains(key.as_str())) {
            let Some((row, dispatch)) = self.history.maker_of(key) else { continue };
            if row.state == "completed" && dispatch == row.dispatch {
                self.report(Rule::Unnamed, format!("{key}, though {} is complete without it", row.id));
            }
        }
        if self.history.is_tidied {
            for key in self.history.left_behind() {
                self.report(Rule::LeftBehind, key.to_owned());
            }
        }
        self.what_clients_read();
    }

    fn what_clients_read(&mut self) {
        let manifest = |row: &Row| -> Vec<Output> {
            let line = |it: &Stored| Output { index: it.index, bytes: it.bytes, sha256: it.sha256.clone() };
            row.outputs.iter().map(line).collect()
        };
        for told in &self.history.told {
            match &told.word {
                Word::Read { task, index, bytes, sha256 } => {
                    let row = self.rows.get(task.as_str());
                    let output = row.and_then(|row| row.outputs.iter().find(|output| output.index == *index));
                    if output.is_none_or(|output| (output.bytes, &output.sha256) != (*bytes, sha256)) {
                        self.report(Rule::ReadOtherwise, format!("{task}: output {index}"));
                    }
                }
                Word::Seen(view) if view.status == "completed" => {
                    let row = self.rows.get(view.task.as_str());
                    if row.is_some_and(|row| manifest(row) != view.outputs) {
                        self.report(Rule::ReadOtherwise, format!("{}: its list of outputs", view.task));
                    }
                }
                _ => {}
            }
        }
    }

    /// P7.
    fn cancellations(&mut self) {
        for told in &self.history.told {
            let Word::Cancelled(view) = &told.word else { continue };
            let Some(row) = self.rows.get(view.task.as_str()).copied() else { continue };
            if view.is_final() {
                continue;
            }
            if row.generation == view.generation && is_final(&row.state) && row.state != "cancelled" {
                self.report(Rule::EndedOtherwise, format!("{} {}", row.id, row.state));
            }
            let reopened = self.times(&row.id, |word| matches!(word, Word::Reopened(_)));
            let again = reopened.into_iter().find(|at| *at >= told.at).unwrap_or(u64::MAX);
            let sent = executions::sent(&self.history.servers, &row.id);
            let (before, after): (Vec<_>, Vec<_>) =
                sent.into_iter().filter(|at| *at < again).partition(|at| *at <= told.at);
            // The one that was on its way when it was cancelled may still arrive.
            let on_its_way = usize::from(before.is_empty());
            if after.len() > on_its_way {
                self.report(Rule::RanAfterCancel, row.id.clone());
            }
        }
    }

    /// P6.
    fn events(&mut self) {
        for row in self.history.rows.iter().filter(|row| is_final(&row.state)) {
            let last = row.facts.iter().rev().find_map(|fact| fact.stage.as_deref());
            if last != Some(row.state.as_str()) {
                self.report(Rule::StoryUntrue, format!("{} is {}, its story ends with {last:?}", row.id, row.state));
            }
        }
        let (mut heard, mut newest) = (BTreeSet::new(), 0);
        for told in &self.history.told {
            let Word::Heard { seq, task } = &told.word else { continue };
            heard.insert(*seq);
            if *seq <= newest {
                self.report(Rule::HeardTwice, format!("{seq} of {task} after {newest}"));
            }
            newest = newest.max(*seq);
        }
        if heard.is_empty() {
            return;
        }
        for row in &self.history.rows {
            for fact in row.facts.iter().filter(|fact| !heard.contains(&fact.seq)) {
                self.report(Rule::NeverHeard, format!("{} of {}: {:?}", fact.seq, row.id, fact.stage));
            }
        }
    }

    /// P6, as far as webhooks are concerned. A message may come more than once.
    fn messages(&mut self) {
        for row in self.history.rows.iter().filter(|row| !row.told_of.is_empty()) {
            let stages = row.facts.iter().filter_map(|fact| fact.stage.as_ref());
            let wanted: Vec<_> = stages.filter(|stage| row.told_of.contains(stage)).collect();
            let posted: Vec<_> = row.posted.iter().map(|(_, stage)| stage).collect();
            if wanted != posted {
                self.report(Rule::NotPosted, format!("{}: {posted:?} instead of {wanted:?}", row.id));
            }
            let mut heard: Vec<(i64, String)> = Vec::new();
            for message in self.history.messages.iter().filter(|message| message.task == row.id) {
                if heard.iter().all(|(number, _)| *number != message.number) {
                    heard.push((message.number, message.stage.clone()));
                }
            }
            let missing: Vec<_> = row.posted.iter().filter(|posted| !heard.contains(posted)).collect();
            if !missing.is_empty() {
                self.report(Rule::NeverTold, format!("{}: {missing:?}", row.id));
            } else if heard != row.posted {
                self.report(Rule::ToldUntrue, format!("{}: {heard:?} instead of {:?}", row.id, row.posted));
            }
        }
    }

    /// When clients were told such a thing about a task.
    fn times(&self, task: &str, wanted: impl Fn(&Word) -> bool) -> Vec<u64> {
        let it = self.history.told.iter().filter(|told| told.word.task() == Some(task) && wanted(&told.word));
        it.map(|told| told.at).collect()
    }
}

impl Word {
    /// The task it is about.
    fn task(&self) -> Option<&str> {
        match self {
            Self::Accepted { task, .. } | Self::Read { task, .. } | Self::Heard { task, .. } => Some(task),
            Self::Seen(view) | Self::Cancelled(view) | Self::Reopened(view) => Some(&view.task),
            Self::Unanswered { .. } => None,
        }
    }

    /// A task, and the colour its picture shall have.
    fn color(&self) -> Option<(&str, u32)> {
        match self {
            Self::Accepted { task, color, .. } => Some((task, (*color)?)),
            _ => None,
        }
    }
}
