//! One moment, and a chain of processes on the same data that die in it, one after the other; then one that lives, and the checker.
//!
//! Each process finds what the one before it left, so every link of the chain is a crash and a recovery. In between clients come and go.

use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash, Hasher},
    os::unix::process::ExitStatusExt,
    time::Duration,
};

use fake_comfyui::{Control, EventKind, FakeConfig, Fault, Generation};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::timeout;

use super::errands::{Crowd, Errand};
use crate::{
    chaos::seed,
    checker::{History, Message, check},
    databases::database,
    place::{Place, Process},
    receiver::Receiver,
    recorder::{Recorder, gather, newest_event},
    support::PATIENCE,
};

/// Crashes per moment in an ordinary run, and links of a chain.
const RUNS: u32 = 5;
/// Tells how many there shall be instead: `tests/run --soak`.
const SOAK: &str = "COMFYD_SOAK";

const SIGABRT: i32 = 6;

/// When the process dies.
#[derive(Debug, Clone)]
pub enum Moment {
    /// At one of our own points.
    Point(&'static str),
    /// When the server logs such an event, under a fault.
    Logged { name: &'static str, fault: Option<Fault>, when: fn(&EventKind) -> bool },
    /// As the one before, and the server dies with it.
    Together { name: &'static str, when: fn(&EventKind) -> bool },
    /// When a fault has struck.
    Struck { name: &'static str, fault: Fault },
}

/// A moment, and what brings it about.
#[derive(Debug, Clone)]
pub struct Case {
    moment: Moment,
    errand: Errand,
    generation: Generation,
    settings: &'static [(&'static str, &'static str)],
    told: bool,
    is_on_postgres: bool,
}

impl Case {
    pub fn new(moment: Moment, errand: Errand) -> Self {
        Self { moment, errand, generation: Generation::Current, settings: &[], told: false, is_on_postgres: false }
    }

    /// Points, one case each.
    pub fn points<const N: usize>(points: [&'static str; N], errand: Errand) -> Vec<Self> {
        points.map(|point| Self::new(Moment::Point(point), errand)).into()
    }

    /// With settings of its own.
    pub fn with(self, settings: &'static [(&'static str, &'static str)]) -> Self {
        Self { settings, ..self }
    }

    /// Somebody is told of every task.
    pub fn told(self) -> Self {
        Self { told: true, ..self }
    }

    /// With its tasks in PostgreSQL.
    pub fn on_postgres(self) -> Self {
        Self { is_on_postgres: true, ..self }
    }

    /// The same on all three generations of servers.
    pub fn everywhere(self) -> [Self; 3] {
        [Generation::Current, Generation::V0_3_64, Generation::IgnoresPromptId]
            .map(|generation| Self { generation, ..self.clone() })
    }

    fn name(&self) -> String {
        let moment = match self.moment {
            Moment::Point(name)
            | Moment::Logged { name, .. }
            | Moment::Together { name, .. }
            | Moment::Struck { name, .. } => name,
        };
        let store = if self.is_on_postgres { ", PostgreSQL" } else { "" };
        format!("{moment} ({:?}, {:?}{store})", self.errand, self.generation)
    }

    /// Draws for this case, from the seed of the run.
    fn dice(&self, seed: u64) -> StdRng {
        let mut hasher = DefaultHasher::new();
        (seed, self.name()).hash(&mut hasher);
        StdRng::seed_from_u64(hasher.finish())
    }
}

/// Each of the cases dies as often as it shall, and none breaks a promise.
pub async fn survives(cases: impl IntoIterator<Item = Case>) {
    let cases: Vec<_> = cases.into_iter().collect();
    let runs = std::env::var(SOAK).map_or(RUNS, |runs| runs.parse().unwrap());
    let first = seed();
    for number in 0..runs.div_ceil(RUNS) {
        let (seed, links) = (first.wrapping_add(u64::from(number)), RUNS.min(runs - number * RUNS));
        let chains = cases.iter().map(|case| chain(case, seed, links));
        let broken: Vec<String> = futures_util::future::join_all(chains).await.concat();
        assert!(broken.is_empty(), "\n{}\nto see this again: COMFYD_SEED={seed}", broken.join("\n"));
    }
}

/// One chain of so many links; what it broke.
async fn chain(case: &Case, seed: u64, links: u32) -> Vec<String> {
    let mut rng = case.dice(seed);
    let fake = FakeConfig { node_time: case.errand.node_time(), generation: case.generation, ..FakeConfig::default() };
    let mut place = Place::of(fake).await.with("COMFYD_COMFYUI__VALIDATE_GRACE", "100ms");
    // So that it is tidied up while tasks still run and processes still die.
    place = place.with("COMFYD_RETENTION__LEFTOVERS", "1s");
    if case.is_on_postgres {
        place = place.with("DATABASE_URL", &database().await);
        // Nobody can know there that the one before is dead: its leases have to end, and what it may just have been sending has to be past
        // its time.
        place = place.with("COMFYD_QUEUE__LEASE", "3s").with("COMFYD_QUEUE__RENEW_EVERY", "500ms");
        place = place.with("COMFYD_COMFYUI__POST_TIMEOUT", "3s");
    }
    for (name, value) in case.settings {
        place = place.with(name, value);
    }
    let receiver = if case.told { Some(Receiver::start().await) } else { None };
    for (name, value) in receiver.iter().flat_map(told_settings) {
        place = place.with(name, &value);
    }
    let recorder = Recorder::new(place.api.clone());
    let listener = recorder.clone();
    let listening = tokio::spawn(async move { listener.listen().await });
    let mut crowd = Crowd::new(recorder.clone(), place.control());
    for _ in 0..links {
        crowd.join(case.errand, rng.random_range(1..=3));
        // Others are about, with other business.
        crowd.join(Errand::ALL[rng.random_range(0..Errand::ALL.len())], 1);
        match &case.moment {
            Moment::Point(point) => {
                let nth = rng.random_range(1..=3);
                let process = place.launch(&[("CRASH_AT", &format!("{point}:{nth}"))]);
                dies_by_itself(process, &mut crowd, case).await;
            }
            Moment::Logged { fault, when, .. } => {
                let (control, position) = (place.control(), place.control().position());
                arm(&control, fault.as_ref()).await;
                killed_when(&place, &mut crowd, case, async || drop(control.wait_from(position, when).await)).await;
                control.clear();
            }
            Moment::Together { when, .. } => {
                let (control, position) = (place.control(), place.control().position());
                killed_when(&place, &mut crowd, case, async || drop(control.wait_from(position, when).await)).await;
                control.inject(Fault::Restart { down: Duration::from_millis(20) }).await.unwrap();
            }
            Moment::Struck { fault, .. } => {
                let control = place.control();
                arm(&control, Some(fault)).await;
                killed_when(&place, &mut crowd, case, async || has_struck(&control, fault).await).await;
            }
        }
    }
    let process = place.launch(&[]);
    crowd.all_served().await;
    recorder.heard(newest_event(&place.database()).await).await;
    if case.told {
        recorder.nothing_left_to_tell().await;
    }
    listening.abort();
    let fakes = std::slice::from_ref(&place.fake);
    let tidied = async {
        while !gather(&recorder, fakes, &place).await.left_behind().is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    // What is left then is the checker's business.
    let _ = timeout(PATIENCE, tidied).await;
    drop(process);
    let mut history = gather(&recorder, fakes, &place).await;
    history.is_tidied = true;
    let heard: Vec<_> = receiver.iter().flat_map(Receiver::heard).collect();
    let ids: BTreeSet<_> = heard.iter().map(|heard| heard.id.clone()).collect();
    let again = heard.len() - ids.len();
    history.messages = heard.into_iter().map(Message::of).collect();
    let mut broken = verdict(&case.name(), links, &history);
    // What was heard and not noted is told again.
    if matches!(case.moment, Moment::Point("webhook/sent")) && again < links as usize {
        broken.push(format!("{}: {again} messages came again after {links} crashes", case.name()));
    }
    broken
}

/// Of every stage of every task. What is lost with a process is sent again soon.
fn told_settings(receiver: &Receiver) -> Vec<(&'static str, String)> {
    let events = ["queued", "preparing", "executing", "uploading", "completed", "failed", "cancelled"];
    let mut settings = vec![
        ("WEBHOOK_URL", receiver.url("x")),
        ("COMFYD_WEBHOOKS__EVENTS", events.map(|event| format!("task.{event}")).join(",")),
        ("COMFYD_WEBHOOKS__TIMEOUT", "1s".to_owned()),
    ];
    settings.extend(receiver.settings());
    settings
}

/// Waits until the process has come to its point; as long as it has not, more clients come.
async fn dies_by_itself(mut process: Process, crowd: &mut Crowd, case: &Case) {
    let dying = async {
        loop {
            tokio::select! {
                status = process.end() => return status,
                () = crowd.all_served() => crowd.join(case.errand, 1),
            }
        }
    };
    let status = timeout(PATIENCE, dying).await;
    let status = status.unwrap_or_else(|_| panic!("{} is never reached\n{}", case.name(), process.output()));
    assert_eq!(status.signal(), Some(SIGABRT), "{}: {status}\n{}", case.name(), process.output());
}

async fn arm(control: &Control, fault: Option<&Fault>) {
    if let Some(fault) = fault {
        control.inject_times(fault.clone(), 1).await.unwrap();
    }
}

async fn has_struck(control: &Control, fault: &Fault) {
    while control.faults().iter().any(|injection| injection.fault == *fault) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Starts the service and kills it when it is time.
async fn killed_when(place: &Place, crowd: &mut Crowd, case: &Case, it_is_time: impl AsyncFn()) {
    let process = place.launch(&[]);
    let waiting = async {
        loop {
            tokio::select! {
                () = it_is_time() => return,
                () = crowd.all_served() => crowd.join(case.errand, 1),
            }
        }
    };
    let came = timeout(PATIENCE, waiting).await;
    came.unwrap_or_else(|_| panic!("{} does not come\n{}", case.name(), process.output()));
    drop(process);
}

/// What the checker says of a history, and in a line what there was to say.
pub fn verdict(name: &str, crashes: u32, history: &History) -> Vec<String> {
    let started = |kind: &EventKind| matches!(kind, EventKind::Started { task: Some(_), .. });
    let runs = history.servers.iter().flatten().filter(|event| started(&event.kind)).count();
    let of_task = |kind: &EventKind| match kind {
        EventKind::Started { task, .. } => task.clone(),
        _ => None,
    };
    let ran: BTreeSet<_> = history.servers.iter().flatten().filter_map(|event| of_task(&event.kind)).collect();
    println!(
        "{name}: {crashes} crashes, {} tasks, {} of them ran, {runs} runs, {} words to clients",
        history.rows.len(),
        ran.len(),
        history.told.len()
    );
    check(history).into_iter().map(|violation| format!("{name}: {violation}")).collect()
}
