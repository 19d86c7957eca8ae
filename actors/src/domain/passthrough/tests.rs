use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn rules(texts: &[&str]) -> Vec<Rule> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn judge(gate: &Gate, method: &str, path: &str) -> Verdict {
    gate.judge(method, &Target::parse(path).unwrap())
}

#[test]
fn every_rule_of_ours_can_be_read() {
    assert_eq!(Gate::default().open.len(), OPEN.len());
}

/// All routes of a real server, by whether they are for everybody. A route of a newer version is closed until somebody looks at it.
#[test]
fn of_comfyuis_routes_those_that_read_or_add_are_open() {
    let routes: Value = serde_json::from_str(include_str!("../../../../tests/fixtures/routes.json")).unwrap();
    let gate = Gate::default();
    let (mut open, mut closed) = (Vec::new(), Vec::new());
    for route in routes["registered"].as_array().unwrap() {
        let (method, path) = (route["method"].as_str().unwrap(), route["path"].as_str().unwrap());
        let sent = path.trim_matches('/').replace(['{', '}'], "x");
        if method == "HEAD" || sent.is_empty() {
            continue;
        }
        let list = if judge(&gate, method, &sent) == Verdict::Open { &mut open } else { &mut closed };
        let bare = path.trim_start_matches("/api");
        let line = format!("{method} {bare}");
        if !list.contains(&line) {
            list.push(line);
        }
    }
    open.sort_unstable();
    closed.sort_unstable();
    assert_eq!(
        closed,
        [
            "DELETE /assets/{id}",
            "DELETE /assets/{id}/tags",
            "DELETE /userdata/{file}",
            "GET /",
            "GET /docs",
            "GET /internal/files/{directory_type}",
            "GET /internal/folder_paths",
            "GET /internal/logs",
            "GET /internal/logs/raw",
            "GET /settings",
            "GET /settings/{id}",
            "GET /templates/{path}",
            "GET /userdata",
            "GET /userdata/{file}",
            "GET /users",
            "GET /v2/userdata",
            "PATCH /internal/logs/subscribe",
            "POST /assets/prune",
            "POST /assets/seed",
            "POST /assets/seed/cancel",
            "POST /assets/{id}/tags",
            "POST /free",
            "POST /history",
            "POST /interrupt",
            "POST /jobs/cancel",
            "POST /jobs/{job_id}/cancel",
            "POST /queue",
            "POST /settings",
            "POST /settings/{id}",
            "POST /userdata/{file}",
            "POST /userdata/{file}/move/{dest}",
            "POST /users",
            "PUT /assets/{id}",
        ]
    );
    assert!(open.contains(&"POST /prompt".to_owned()) && open.contains(&"GET /ws".to_owned()), "{open:?}");
}

#[test]
fn no_spelling_gets_around_the_list() {
    let gate = Gate::default();
    for path in [
        "free",
        "api/free",
        "api/api/free",
        "%66ree",
        "%61pi/fr%65e",
        "Free",
        "FREE",
        "free;x",
        "free%20",
        "prompt%2ffree",
        "prompt;/free",
        "interrupt",
        "api/jobs/cancel",
        "manager/reboot",
        "v2/manager/reboot",
        "customnode/install",
    ] {
        assert_eq!(judge(&gate, "POST", path), Verdict::Closed, "{path}");
    }
    for path in [
        "",
        "/free",
        "queue/",
        "prompt//free",
        "prompt/../free",
        "prompt/%2e%2e/free",
        "prompt/%2E./free",
        "prompt/..%2ffree",
        "prompt/..%5cfree",
        "prompt\\..\\free",
        "./free",
        "api/./free",
        "history/%2e%2e%2ffree",
    ] {
        assert_eq!(Target::parse(path), Err(BadPath::Unclean), "{path}");
    }
    for path in ["%", "fre%6", "%zz", "%ff", "%252e%252e/free", "%25%32%65", "free%00", "free%0d%0a"] {
        assert_eq!(Target::parse(path), Err(BadPath::Encoding), "{path}");
    }
    assert_eq!(Target::parse(&"a".repeat(5_000)), Err(BadPath::TooLong));
}

#[test]
fn a_name_may_hold_anything_a_file_may() {
    let target = Target::parse("api/userdata/work%20flows%2F%C3%A4%25.json").unwrap();
    assert_eq!(target.parts(), ["api", "userdata", "work flows/\u{e4}%.json"]);
}

#[test]
fn the_operator_adds_and_removes() {
    let allow = rules(&["POST /interrupt", "/api/userdata/*", "get  /settings", "POST /queue"]);
    let gate = Gate::new(allow, rules(&["POST /prompt", "/view"]));
    for (method, path, verdict) in [
        ("POST", "interrupt", Verdict::Allowed),
        ("POST", "api/interrupt", Verdict::Allowed),
        ("GET", "interrupt", Verdict::Closed),
        ("DELETE", "userdata/a.json", Verdict::Allowed),
        ("POST", "api/userdata/a/move/b", Verdict::Allowed),
        ("GET", "userdata", Verdict::Closed),
        ("HEAD", "settings", Verdict::Allowed),
        ("POST", "settings", Verdict::Closed),
        ("POST", "prompt", Verdict::Denied),
        ("GET", "prompt", Verdict::Open),
        ("GET", "api/view", Verdict::Denied),
        ("OPTIONS", "upload/image", Verdict::Open),
        ("OPTIONS", "free", Verdict::Closed),
    ] {
        assert_eq!(judge(&gate, method, path), verdict, "{method} {path}");
    }
    let everything = Gate::new(rules(&["*"]), rules(&["/manager/*"]));
    assert_eq!(judge(&everything, "POST", "free"), Verdict::Allowed);
    assert_eq!(judge(&everything, "POST", "manager/reboot"), Verdict::Denied);
}

#[test]
fn a_rule_that_cannot_be_read_says_how_to_write_it() {
    for text in ["", "queue", "FETCH /queue", "POST queue", "/userdata/*/x", "/a*", "//", "/../x", "GET"] {
        assert!(text.parse::<Rule>().is_err(), "{text}");
    }
}

proptest! {
    /// What is judged is what is sent: encoding the parts and reading them again gives the same parts.
    #[test]
    fn any_path_is_read_or_refused(raw in "([a-z]|/|\\.|%2[efEF]|%5c|%|%25|\\\\){0,24}") {
        if let Ok(target) = Target::parse(&raw) {
            prop_assert!(target.parts().iter().all(|part| !matches!(part.as_str(), "" | "." | "..")));
            let again: String = target.to_string().trim_start_matches('/').replace('%', "%25");
            if !target.parts().iter().any(|part| part.contains('/')) {
                prop_assert_eq!(Target::parse(&again), Ok(target));
            }
        }
    }
}
