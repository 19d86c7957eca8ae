use super::*;
use crate::domain::id::TaskId;

/// The value of a sample with these labels.
fn value(metrics: &Metrics, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let families = metrics.gather(&Picture { now: Timestamp(10_000), ..Picture::default() });
    let family = families.iter().find(|family| family.name() == name)?;
    let sample = family.get_metric().iter().find(|metric| {
        labels.iter().all(|(name, value)| {
            metric.get_label().iter().any(|label| label.name() == *name && label.value() == *value)
        })
    })?;
    Some(sample.get_gauge().get_value() + sample.get_counter().get_value())
}

fn changed(was: Option<TaskState>, state: TaskState, level: i64) -> Changed {
    Changed {
        id: TaskId::new(),
        was,
        state,
        priority: Priority::new(level).unwrap(),
        cancelling: false,
        hooked: false,
        of_tenant: false,
        here: true,
    }
}

#[test]
fn depths_follow_the_changes() {
    let metrics = Metrics::new().unwrap();
    let tell = |was, state, level| metrics.changed(&changed(was, state, level), Timestamp(4_000));
    let depth = |level| value(&metrics, "comfyd_queue_depth", &[("priority", level)]);
    let tasks = |status| value(&metrics, "comfyd_tasks", &[("status", status)]).unwrap();
    tell(None, TaskState::Pending, 0);
    tell(None, TaskState::Pending, 10);
    tell(None, TaskState::Pending, 10);
    tell(None, TaskState::Scheduled, 0);
    assert_eq!((depth("0"), depth("10"), depth("5")), (Some(1.0), Some(2.0), None));
    assert_eq!((tasks("scheduled"), tasks("pending"), tasks("processing")), (1.0, 3.0, 0.0));
    assert_eq!(value(&metrics, "comfyd_queue_oldest_seconds", &[("priority", "10")]), Some(6.0));

    tell(Some(TaskState::Pending), TaskState::Dispatching, 0);
    tell(Some(TaskState::Dispatching), TaskState::Executing, 0);
    tell(Some(TaskState::Executing), TaskState::Executing, 0);
    tell(Some(TaskState::Scheduled), TaskState::Pending, 0);
    tell(Some(TaskState::Pending), TaskState::Cancelled, 10);
    assert_eq!((depth("0"), depth("10")), (Some(1.0), Some(1.0)));
    tell(Some(TaskState::Executing), TaskState::Completed, 0);
    tell(Some(TaskState::Pending), TaskState::Cancelled, 10);
    assert_eq!((depth("0"), depth("10")), (Some(1.0), None), "a priority nobody waits in is not shown");
    assert_eq!((tasks("scheduled"), tasks("pending"), tasks("processing")), (0.0, 1.0, 0.0));
    assert_eq!(value(&metrics, "comfyd_tasks_created_total", &[]), Some(4.0));

    let elsewhere = |was, state| {
        metrics.changed(&Changed { here: false, ..changed(was, state, 0) }, Timestamp(4_000));
    };
    elsewhere(None, TaskState::Pending);
    assert_eq!((depth("0"), tasks("pending")), (Some(2.0), 2.0), "what waits is everybody's");
    elsewhere(Some(TaskState::Pending), TaskState::Cancelled);
    assert_eq!((depth("0"), value(&metrics, "comfyd_tasks_created_total", &[])), (Some(1.0), Some(4.0)));

    let exact = Depth { priority: Priority::default(), waiting: 7, oldest: Timestamp(1_000) };
    metrics.counted(Counts { scheduled: 2, pending: 7, held: 3 }, &[exact]);
    assert_eq!((depth("0"), tasks("scheduled"), tasks("processing")), (Some(7.0), 2.0, 3.0));
    assert_eq!(value(&metrics, "comfyd_queue_oldest_seconds", &[("priority", "0")]), Some(9.0));
}

#[test]
fn names_of_workflows_are_bounded() {
    let metrics = Metrics::new().unwrap();
    let mut task = crate::domain::task::tests::new_task();
    task.state = TaskState::Completed;
    for place in 0..2 * MAX_WORKFLOWS {
        task.workflow = Some(format!("w{place}"));
        metrics.ended(&task);
    }
    task.workflow = None;
    metrics.ended(&task);
    let of = |workflow| value(&metrics, "comfyd_tasks_ended_total", &[("workflow", workflow)]);
    assert_eq!((of("w0"), of("w150")), (Some(1.0), None));
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let others = MAX_WORKFLOWS as f64;
    assert_eq!((of("(other)"), of("(graph)")), (Some(others), Some(1.0)));
}

#[test]
fn two_systems_count_apart() {
    let (one, other) = (Metrics::new().unwrap(), Metrics::new().unwrap());
    one.restarted("queue");
    assert_eq!(value(&one, "comfyd_actor_restarts_total", &[("actor", "queue")]), Some(1.0));
    assert_eq!(value(&other, "comfyd_actor_restarts_total", &[("actor", "queue")]), None);
}

#[test]
fn a_task_whose_files_alone_were_asked_for_has_no_stages() {
    let metrics = Metrics::new().unwrap();
    let stages = || {
        let families = metrics.gather(&Picture::default());
        families.iter().any(|family| family.name() == "comfyd_task_stage_seconds")
    };
    let mut task = crate::domain::task::tests::new_task();
    (task.state, task.finished_at, task.uploads_only) = (TaskState::Completed, Some(Timestamp(9_000)), true);
    metrics.ended(&task);
    assert!(!stages(), "how long it lay about is none");
    task.uploads_only = false;
    metrics.ended(&task);
    assert!(stages());
}

#[test]
fn a_number_of_consumers_that_is_not_known_is_not_told() {
    let metrics = Metrics::new().unwrap();
    let wanted = |wanted: Option<u64>| {
        let demand = wanted.map(|consumers_wanted| Demand { consumers_wanted, ..Demand::default() });
        let families = metrics.gather(&Picture { demand, ..Picture::default() });
        let family = families.iter().find(|family| family.name() == "comfyd_consumers_wanted");
        family.map(|family| family.get_metric()[0].get_gauge().get_value())
    };
    assert_eq!(
        [wanted(Some(3)), wanted(Some(0)), wanted(None)],
        [Some(3.0), Some(0.0), None],
        "0 would stop everybody"
    );
}

#[test]
fn names_of_tenants_are_bounded() {
    let metrics = Metrics::new().unwrap();
    let tenants = (1..=103).map(|place| (Tenant::parse(&format!("t{place}")).unwrap(), place)).collect();
    let demand = Some(Demand { tenants, consumers_wanted: 1 });
    let families = metrics.gather(&Picture { demand, ..Picture::default() });
    let family = families.iter().find(|family| family.name() == "comfyd_tenant_waiting").unwrap();
    let of = |tenant: &str| {
        let sample = family.get_metric().iter().find(|sample| sample.get_label()[0].value() == tenant);
        sample.map(|sample| sample.get_gauge().get_value())
    };
    assert_eq!((of("t103"), of("t4"), of("t3"), of("(other)")), (Some(103.0), Some(4.0), None, Some(6.0)));
}

#[test]
fn memory_is_told_of_those_that_told_it() {
    let metrics = Metrics::new().unwrap();
    let backend = BackendId::new("http://b");
    let memory = vec![DeviceMemory { backend, device: 0, total: 8, free: 2 }];
    let shown = |memory| {
        let families = metrics.gather(&Picture { memory, ..Picture::default() });
        families.iter().filter(|family| family.name().starts_with("comfyd_backend_vram_")).count()
    };
    assert_eq!((shown(memory), shown(Vec::new())), (2, 0), "a server that is gone has no memory we know of");
}
