use comfyd_actors::{
    domain::{event::Stage, task::TaskState, time::Timestamp, webhook::EndpointId},
    ports::store::NewTask,
    testing::store_conformance::fixtures::{artifacts, error, new_task},
};
use serde_json::{Value, json};

use super::*;

fn key(text: &str) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, SigningKey::parse(text).unwrap().bytes())
}

/// What came later is no part of what happened then.
#[test]
fn a_message_tells_what_was() {
    let mut task = NewTask { workflow: Some("w".into()), ..new_task(0) };
    task.payload.metadata = r#"{"order":7}"#.into();
    let mut record = TaskRecord {
        task: task.first_state(),
        inputs: task.payload.inputs,
        metadata: task.payload.metadata,
        options: task.payload.options,
        needs: Arc::default(),
        artifacts: artifacts(3, true),
        nodes: Vec::new(),
    };
    (record.task.state, record.task.generation) = (TaskState::Completed, 2);
    let told = |delivery: &Delivery| -> Value {
        serde_json::from_str(&Message::of(delivery, &record, "https://a.example").write()).unwrap()
    };
    let new = Delivery::new(5, record.task.id, EndpointId(1), Timestamp(1_700_000_000_123), Stage::Failed);
    let failed = told(&Delivery { error: Some(error()), ..new.clone() });
    assert_eq!((&failed["type"], &failed["timestamp"]), (&json!("task.failed"), &json!("2023-11-14T22:13:20.123Z")));
    let data = &failed["data"];
    assert_eq!(
        (&data["status"], &data["generation"], &data["error"]["code"]),
        (&json!("failed"), &json!(1), &json!("node_failed"))
    );
    assert_eq!((&data["outputs"], &data["timings"]), (&json!([]), &Value::Null));
    let end = told(&Delivery { stage: Stage::Completed, generation: 2, ..new });
    let data = &end["data"];
    let urls: Vec<_> = data["outputs"].as_array().unwrap().iter().map(|output| output["url"].clone()).collect();
    let base = format!("https://a.example/api/tasks/{}/outputs", record.task.id);
    assert_eq!(urls, [0, 1, 2].map(|index| json!(format!("{base}/{index}"))));
    assert!(
        data["outputs"].as_array().unwrap().iter().all(|output| output.get("text").is_none()),
        "no place for files"
    );
    assert_eq!(
        (&data["error"], &data["metadata"], &data["workflow"]),
        (&Value::Null, &json!({"order": 7}), &json!("w"))
    );
    assert!(data["timings"].is_object());
}

/// The example that libraries for receivers are tested with.
#[test]
fn signatures_are_those_of_the_specification() {
    let (id, body) = ("msg_p5jXN8AQM9LWM0D4loKWxJek", r#"{"test": 2432232314}"#);
    let known = key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
    let signature = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
    assert_eq!(signatures(std::slice::from_ref(&known), id, "1614265330", body), signature);
    let newer = key("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
    let both = signatures(&[newer, known], id, "1614265330", body);
    let (first, second) = both.split_once(' ').unwrap();
    assert_eq!(second, signature, "the older key goes on signing");
    assert!(first.starts_with("v1,") && first != second);
    assert_eq!(signatures(&[], id, "1", body), "");
}

#[test]
fn short_and_foreign_secrets_are_refused_and_never_shown() {
    for bad in
        ["", "whsec_", "whsec_c2hvcnQ=", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_not base64 at all!!!!!!!!!!!!"]
    {
        let fault = SigningKey::parse(bad).unwrap_err();
        assert!(bad.len() < 7 || !fault.contains(bad), "{fault}");
    }
    let shown = format!("{:?}", SigningKey::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"));
    assert_eq!(shown, "Ok(***)");
}
