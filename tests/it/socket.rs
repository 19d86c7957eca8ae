//! The WebSocket and the server itself break at every moment of a task; the task ends all the same, having run once.

use std::time::Duration;

use fake_comfyui::{Control, EventKind, Fault};
use serde_json::json;

use crate::{
    support::{World, id, task, world},
    witness::{newest_client, posted, prompts, started, until, until_from, until_level},
};

/// Noticing that nobody is at the other end takes this times two and a half.
const PING: (&str, &str) = ("COMFYD_COMFYUI__PING_INTERVAL", "300ms");

fn finished(prompts: Vec<String>) -> impl Fn(&EventKind) -> bool {
    move |event| matches!(event, EventKind::Finished { prompt_id, .. } if prompts.contains(prompt_id))
}

/// Breaks the sockets in one way at five moments, each time with a task of its own.
async fn breaks_at_every_moment(fault: Fault) {
    let world = world().with(PING.0, PING.1).start().await;
    before_the_post(&world, &fault).await;
    while_it_runs(&world, &fault).await;
    between_two_steps(&world, &fault).await;
    before_the_end(&world, &fault).await;
    after_the_end(&world, &fault).await;
    world.assert_nothing_was_repeated();
}

async fn hurt(fake: &Control, fault: &Fault) {
    fake.inject(fault.clone()).await.unwrap();
}

/// The task ends. Then whatever is in force does, and the next moment gets a sound socket: nothing tells a session that it is deaf
/// until it sends a prompt.
async fn recovers(world: &World, id: &str) {
    world.ran(id, 1).await;
    let fake = world.fake();
    fake.clear();
    let position = fake.position();
    fake.inject(Fault::DropSockets).await.unwrap();
    until_from(&fake, position, |event| matches!(event, EventKind::SocketOpened { .. })).await;
    world.online().await;
}

async fn before_the_post(world: &World, fault: &Fault) {
    hurt(&world.fake(), fault).await;
    let id = world.create(&task(1)).await;
    recovers(world, &id).await;
}

async fn while_it_runs(world: &World, fault: &Fault) {
    world.fake().pause_execution();
    let id = world.create(&task(2)).await;
    world.running(&id).await;
    hurt(&world.fake(), fault).await;
    world.fake().resume();
    recovers(world, &id).await;
}

async fn between_two_steps(world: &World, fault: &Fault) {
    let mut body = task(3);
    let steps = json!({"image": ["1", 0], "steps": 20, "seconds_per_step": 0.02, "preview": true, "preview_format": "PNG", "nonce": 1});
    body["workflow"]["3"] = json!({"class_type": "LabSlowProgress", "inputs": steps});
    body["workflow"]["2"]["inputs"]["images"] = json!(["3", 0]);
    let task = world.create(&body).await;
    let is_stepping = || {
        let progress = world.system().board.progress_here(id(&task));
        progress.is_some_and(|progress| progress.step.is_some())
    };
    until_level("a step", is_stepping).await;
    hurt(&world.fake(), fault).await;
    recovers(world, &task).await;
}

/// The run is over but for the last frame, the one that says that the history is there.
async fn before_the_end(world: &World, fault: &Fault) {
    let fake = world.fake();
    fake.pause_execution();
    fake.inject_times(Fault::SlowHistory { delay: Duration::from_millis(300) }, 1).await.unwrap();
    let id = world.create(&task(4)).await;
    world.running(&id).await;
    fake.resume();
    hurt(&fake, fault).await;
    recovers(world, &id).await;
}

/// Every frame was sent, and the history is not there yet.
async fn after_the_end(world: &World, fault: &Fault) {
    let fake = world.fake();
    fake.inject_times(Fault::LateHistory { delay: Duration::from_millis(400) }, 1).await.unwrap();
    let id = world.create(&task(5)).await;
    until(&fake, posted(&id)).await;
    until(&fake, finished(prompts(&fake, &id))).await;
    hurt(&fake, fault).await;
    recovers(world, &id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_socket_costs_nothing_at_any_moment() {
    breaks_at_every_moment(Fault::DropSockets).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_socket_costs_nothing_at_any_moment() {
    breaks_at_every_moment(Fault::ResetSockets).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_socket_costs_nothing_at_any_moment() {
    breaks_at_every_moment(Fault::Silence).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deaf_socket_costs_nothing_at_any_moment() {
    breaks_at_every_moment(Fault::Deafen).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_open_socket_costs_nothing_at_any_moment() {
    breaks_at_every_moment(Fault::HalfOpen).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_deafness_the_session_comes_back_under_another_name() {
    let world = world().start().await;
    let fake = world.fake();
    let (before, position) = (newest_client(&fake), fake.position());
    fake.inject(Fault::Deafen).await.unwrap();
    let first = world.create(&task(1)).await;
    world.ran(&first, 1).await;
    until_from(&fake, position, |event| matches!(event, EventKind::SocketOpened { client_id } if *client_id != before))
        .await;
    world.online().await;

    let second = world.create(&task(2)).await;
    world.ran(&second, 1).await;
    let its_client = until(&fake, posted(&second)).await;
    let EventKind::Posted { client_id: Some(client), .. } = its_client.kind else { panic!() };
    assert_ne!(client, before, "prompts are sent under the new name");
    world.assert_nothing_was_repeated();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_open_connection_is_noticed_by_pinging() {
    let world = world().with(PING.0, PING.1).start().await;
    let fake = world.fake();
    let position = fake.position();
    fake.inject(Fault::HalfOpen).await.unwrap();
    // Nothing is sent, so that nothing but the pings can tell.
    until_from(&fake, position, |event| matches!(event, EventKind::SocketOpened { .. })).await;
    world.assert_nothing_was_repeated();
}

/// Longer than the pair of looks that concludes an absence.
const VERY_LATE: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread")]
async fn a_late_history_is_not_taken_for_absence() {
    let world = world().start().await;
    world.fake().inject_times(Fault::LateHistory { delay: VERY_LATE }, 1).await.unwrap();
    let id = world.create(&task(1)).await;
    world.ran(&id, 1).await;
    world.assert_nothing_was_repeated();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_history_is_not_taken_for_absence_after_a_reconnect() {
    let world = world().with("COMFYD_QUEUE__PREPARE_AHEAD", "0").start().await;
    let fake = world.fake();
    fake.inject_times(Fault::LateHistory { delay: VERY_LATE }, 1).await.unwrap();
    let (id, next) = (world.create(&task(1)).await, world.create(&task(2)).await);
    // The next one is sent when the end of the first was heard of.
    until(&fake, posted(&next)).await;
    let position = fake.position();
    fake.inject(Fault::DropSockets).await.unwrap();
    until_from(&fake, position, |event| matches!(event, EventKind::SocketOpened { .. })).await;
    world.ran(&id, 1).await;
    world.ran(&next, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_history_keeps_nobody_waiting_and_is_waited_for() {
    let world = world().start().await;
    world.fake().inject_times(Fault::SlowHistory { delay: VERY_LATE }, 1).await.unwrap();
    let (first, second) = (world.create(&task(1)).await, world.create(&task(2)).await);
    // The server still has the first, but says it succeeded: the second is sent meanwhile.
    let second_posted = until(&world.fake(), posted(&second)).await;
    world.ran(&first, 1).await;
    world.ran(&second, 1).await;
    let first_ended = until(&world.fake(), finished(prompts(&world.fake(), &first))).await;
    assert!(second_posted.seq < first_ended.seq);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_server_is_ill_tasks_wait() {
    let world = world().start().await;
    let fake = world.fake();
    fake.inject(Fault::Unhealthy).await.unwrap();
    // The socket still stands, so this one is sent, and answered 500.
    let sent = world.create(&task(1)).await;
    world.stage(&sent, "preparing").await;
    fake.inject(Fault::DropSockets).await.unwrap();
    world.offline(0).await;
    let waiting = world.create(&task(2)).await;
    assert_eq!(world.now(&waiting).await["stage"], "queued");
    assert_eq!(fake.total_executions(), 0);
    fake.clear();
    world.completed(&sent).await;
    world.ran(&waiting, 1).await;
    assert_eq!(world.executions(&sent), 1);
    world.assert_nothing_was_repeated();
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_server_is_down_tasks_wait() {
    let world = world().start().await;
    let fake = world.fake();
    fake.inject(Fault::Kill).await.unwrap();
    let mut ids = vec![world.create(&task(0)).await];
    world.offline(0).await;
    for color in 1..5 {
        ids.push(world.create(&task(color)).await);
    }
    // The first one may have been on its way when the server went; it comes back by itself.
    for id in &ids {
        world.stage(id, "queued").await;
    }
    fake.inject(Fault::Revive).await.unwrap();
    for id in &ids {
        world.ran(id, 1).await;
    }
    world.assert_nothing_was_repeated();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_forgets_everything_runs_again_only_what_ran() {
    let world = world().start().await;
    let fake = world.fake();
    fake.pause_execution();
    let mut ids = Vec::new();
    for color in 0..4 {
        ids.push(world.create(&task(color)).await);
    }
    let [ran, prepared, waiting, last] = &ids[..] else { panic!() };
    world.running(ran).await;
    until(&fake, posted(prepared)).await;
    fake.inject(Fault::Restart { down: Duration::from_millis(50) }).await.unwrap();
    // Whichever comes first to the gate: the server is empty, and its order is ours again.
    until(&fake, |event| matches!(event, EventKind::Restarted)).await;
    fake.resume();
    world.ran(ran, 2).await;
    for id in [prepared, waiting, last] {
        world.ran(id, 1).await;
    }
    world.assert_nothing_was_repeated();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_only_waits_on_a_dying_server_is_not_blamed() {
    let world = world().start().await;
    let fake = world.fake();
    fake.pause_execution();
    world.foreign_prompt(&world.fakes[0], 1).await;
    until(&fake, |event| matches!(event, EventKind::Gated { .. })).await;
    let id = world.create(&task(2)).await;
    // As many deaths as would make it poison.
    for deaths in 1..=3 {
        let nth = |fake: &Control| prompts(fake, &id).len() == deaths;
        until_level("sent again", || nth(&fake)).await;
        world.stage(&id, "executing").await;
        fake.inject(Fault::Restart { down: Duration::ZERO }).await.unwrap();
        // The next death's victim: runs before ours can, because ours is looked for twice, two seconds apart.
        world.foreign_prompt(&world.fakes[0], 1).await;
    }
    fake.resume();
    world.ran(&id, 1).await;
    world.assert_nothing_was_repeated();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_kills_its_server_three_times_is_poison() {
    let world = world().start().await;
    let fake = world.fake();
    fake.pause_execution();
    let id = world.create(&task(1)).await;
    let mut position = 0;
    for _ in 1..=3 {
        position = until_from(&fake, position, started(&id)).await.seq + 1;
        world.heard(&id).await;
        fake.inject(Fault::Restart { down: Duration::ZERO }).await.unwrap();
    }
    let failed = world.finished(&id).await;
    assert_eq!((&failed["status"], &failed["error"]["code"]), (&json!("failed"), &json!("poison")), "{failed}");
    assert_eq!(world.executions(&id), 3);
    // The others go on.
    fake.resume();
    let next = world.create(&task(2)).await;
    world.ran(&next, 1).await;
    world.assert_nothing_was_repeated();
}
