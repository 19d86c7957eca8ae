//! The WebSocket breaks at every single frame of a run, in every way there is; the task completes all the same, having run once.
//!
//! What that costs in time is measured by `cargo bench --bench sockets`.

use fake_comfyui::{Breakage, Control, EventKind, FakeConfig, Fault};
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::{
    support::{World, task, world},
    witness::until_from,
};

/// A run brings at least so many frames: two nodes, one of them with three steps and previews.
const FRAMES: u64 = 20;

/// A graph whose run shows every kind of frame.
fn sampling(color: u32) -> Value {
    let mut body = task(color);
    let steps = json!({"image": ["1", 0], "steps": 3, "seconds_per_step": 0.01, "preview": true, "preview_format": "PNG", "nonce": color});
    body["workflow"]["3"] = json!({"class_type": "LabSlowProgress", "inputs": steps});
    body["workflow"]["2"]["inputs"]["images"] = json!(["3", 0]);
    body
}

/// A sound socket for the next run: nothing tells a session that it is deaf until it sends a prompt.
async fn afresh(world: &World, fake: &Control) {
    let position = fake.position();
    fake.inject(Fault::DropSockets).await.unwrap();
    let event = until_from(fake, position, |event| matches!(event, EventKind::FlagsNegotiated { .. })).await;
    assert!(event.seq >= position);
    world.online().await;
}

/// Breaks the socket of one run after the other, each a frame later, until a run has fewer frames.
async fn breaks_at_every_frame(how: Breakage) {
    let world = world().fakes([FakeConfig::default()]).with("COMFYD_COMFYUI__PING_INTERVAL", "300ms").start().await;
    let fake = world.fake();
    for after in 0.. {
        fake.inject(Fault::BreakSocket { after, how }).await.unwrap();
        let id = world.create(&sampling(u32::try_from(after).unwrap())).await;
        world.ran(&id, 1).await;
        if !fake.faults().is_empty() {
            assert!(after >= FRAMES, "{how:?}: a run has only {after} frames");
            break;
        }
        afresh(&world, &fake).await;
    }
    world.assert_nothing_was_repeated();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_may_break_at_any_frame() {
    join_all(Breakage::ALL.map(breaks_at_every_frame)).await;
}
