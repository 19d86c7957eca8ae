//! Small tasks, artifacts and requests for tests.

use std::{sync::Arc, time::Duration};

use uuid::Uuid;

use crate::{
    domain::{
        artifact::{Artifact, Facts, FileRef, Kind, Source, StoredObject},
        error::{ErrorCode, TaskError},
        id::{BackendId, ClientId, TaskId, WorkerId},
        lane::{Lane, Lanes, ListValue, Needs},
        order::Priority,
        progress::NodeTiming,
        task::Intent,
        tenant::{Caps, Limits, Tenant, Tenants},
        time::Timestamp,
    },
    ports::store::{Claim, ClaimSlot, Idempotency, NewTask, Payload, Sweep},
};

/// How long leases last here.
pub const LEASE: Duration = Duration::from_secs(30);

/// A task with a fresh id that waits at `sort_key`.
#[must_use]
pub fn new_task(sort_key: i64) -> NewTask {
    NewTask {
        id: TaskId::new(),
        tenant: 0,
        lane: Lane::default(),
        workflow: None,
        priority: Priority::default(),
        sort_key,
        max_attempts: 3,
        timeout: None,
        created_at: Timestamp(1_700_000_000_000),
        run_at: None,
        payload: Payload {
            graph: "{\"1\":{}}".into(),
            inputs: "{}".into(),
            metadata: "null".into(),
            options: Arc::default(),
        },
        idempotency: None,
    }
}

/// A task made by a request with an idempotency key; `body` stands for the request's body.
#[must_use]
pub fn keyed_task(key: &str, body: u8) -> NewTask {
    NewTask { idempotency: Some(Idempotency { key: key.into(), body_sha256: [body; 32] }), ..new_task(0) }
}

/// A worker of a node.
#[must_use]
pub fn worker(node: &str, boot: u32) -> WorkerId {
    WorkerId::new(format!("{node}:{boot}"))
}

/// What a claim says it will do.
#[must_use]
pub fn intent(backend: &str) -> Intent {
    Intent { backend: BackendId::new(backend), client: ClientId::new("client-1") }
}

/// A request for `slots` tasks of any lane.
#[must_use]
pub fn claim(worker: &WorkerId, slots: usize) -> Claim {
    claim_of(worker, vec![Lanes::All; slots])
}

/// A request for a task for each slot, which serves these lanes.
#[must_use]
pub fn claim_of(worker: &WorkerId, slots: Vec<Lanes>) -> Claim {
    let slot = |(place, lanes)| ClaimSlot { intent: intent(&format!("http://gpu-{place}:8188")), lanes };
    let slots = slots.into_iter().enumerate().map(slot).collect();
    Claim { worker: worker.clone(), lease: LEASE, slots, caps: Caps::default() }
}

/// A search for what nobody holds any more, by somebody who reaches the first nine servers.
#[must_use]
pub fn sweep(worker: &WorkerId, limit: u32) -> Sweep {
    let backends = (0..9).map(|place| BackendId::new(format!("http://gpu-{place}:8188"))).collect();
    Sweep { worker: worker.clone(), lease: LEASE, backends, stranded_after: 9 * LEASE, limit }
}

/// The one of [`lane`]s that is a tenant's, who is called acme.
pub const CAPPED_LANE: i64 = 2;

/// A lane of a given number, and needs of its own.
#[must_use]
pub fn lane(id: i64) -> Lane {
    if id == 0 {
        return Lane::default();
    }
    let value = ListValue { class: "it's".into(), input: "\"name\"".into(), value: format!("é{id}.ckpt") };
    let backends = [BackendId::new("http://a")].into();
    let tenant = (id == CAPPED_LANE).then(|| tenant("acme"));
    let needs = Needs { values: [value].into(), backends, tenant, ..Needs::default() };
    Lane { id, needs: Arc::new(needs) }
}

/// A tenant.
#[must_use]
pub fn tenant(name: &str) -> Tenant {
    Tenant::parse(name).unwrap()
}

/// A tenant's task that waits at `sort_key`.
#[must_use]
pub fn of_tenant(tenant: &Tenant, sort_key: i64) -> NewTask {
    let lane = Lane::of(Needs { tenant: Some(tenant.clone()), ..Needs::default() });
    NewTask { tenant: tenant.id(), lane, ..new_task(sort_key) }
}

/// What claims keep to, when these tenants and nobody else have caps.
#[must_use]
pub fn capped<const N: usize>(caps: [(&str, u32); N]) -> Caps {
    let limits = |max_running| Limits { max_waiting: None, max_running: Some(max_running) };
    let named = caps.map(|(name, cap)| (tenant(name), limits(cap))).into();
    Tenants { named, ..Tenants::default() }.caps()
}

/// The object an artifact becomes.
#[must_use]
pub fn object(index: u32) -> StoredObject {
    StoredObject {
        target: format!("target-{index}"),
        key: format!("0/out-{index}.png"),
        content_type: "image/png".into(),
        bytes: 1 << 40,
        sha256: "ab".repeat(32),
        facts: facts(index),
    }
}

/// What a file says of itself: everything, nothing, or the awkward.
fn facts(index: u32) -> Facts {
    match index % 3 {
        0 => Facts::default(),
        1 => Facts {
            width: Some(u32::MAX),
            height: Some(1),
            duration_ms: Some(1 << 40),
            frames: Some(0),
            text: None,
            stripped: Some(false),
        },
        _ => Facts { text: Some("it's \"\u{1f5bc}\"\n".into()), stripped: Some(true), ..Facts::default() },
    }
}

/// Where an artifact's bytes come from: a file, a text, a frame.
fn source(index: u32) -> Source {
    let filename = format!("it's \"{index}\" é\u{1f5bc}.png");
    match index % 3 {
        0 => Source::File(FileRef { filename, subfolder: "a/b".into(), folder_type: "output".into() }),
        1 => Source::Text { filename, text: format!("\"{index}\"\n\u{1f5bc}") },
        _ => Source::Frame { filename },
    }
}

/// `count` artifacts with names that need care.
#[must_use]
pub fn artifacts(count: u32, stored: bool) -> Vec<Artifact> {
    let artifact = |index| Artifact {
        index,
        node_id: format!("{index}:9"),
        kind: if index == 0 { Kind::Image } else { Kind::Video },
        source: source(index),
        object: stored.then(|| object(index)),
    };
    (0..count).map(artifact).collect()
}

/// What nodes took, with names that need care.
#[must_use]
pub fn nodes(count: u8) -> Vec<NodeTiming> {
    let node = |place: u8| NodeTiming {
        node_id: format!("{place}:\"é\""),
        class_type: (place != 1).then(|| "it's".to_owned()),
        ms: i64::from(place),
        cached: place == 0,
    };
    (0..count).map(node).collect()
}

/// A node's failure, with every field set.
#[must_use]
pub fn error() -> TaskError {
    let mut error = TaskError::new(ErrorCode::NodeFailed, "it's \"broken\"\n");
    error.node_id = Some("9".into());
    error.class_type = Some("SaveImage".into());
    error.node_errors = Some(serde_json::json!({"9": {"errors": [1, null, "x"]}}));
    error
}

/// An id with a given place among others.
#[must_use]
pub fn id(place: u128) -> TaskId {
    TaskId(Uuid::from_u128(place))
}
