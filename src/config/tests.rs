use std::time::Duration;

use super::*;

fn env(pairs: &[(&str, &str)]) -> Sources {
    Sources { env: pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(), ..Sources::default() }
}

fn faults(sources: Sources) -> Vec<String> {
    read(sources).faults.iter().map(ToString::to_string).collect()
}

#[test]
fn the_defaults_are_sound_and_each_is_read() {
    let layers = sources::merge(Sources::default());
    let mut reader = Reader::new(&layers);
    let config = read_sections(&mut reader);
    let mut asked = reader.asked().to_vec();
    asked.sort_unstable();
    assert_eq!(asked, layers.defaults.keys().collect::<Vec<_>>(), "every setting is read, once, and nothing else");
    assert_eq!(faults(Sources::default()), Vec::<String>::new());
    assert_eq!((config.server.port, config.server.body_limit), (8000, 32 << 20));
    assert_eq!(config.comfyui.urls, [SecretUrl::new("http://127.0.0.1:8188")]);
    assert!(!config.app.node.is_empty());
}

#[test]
fn every_fault_is_told_at_once() {
    let mut sources = env(&[
        ("PORT", "80a"),
        ("COMFYUI_URL", "ftp://x"),
        ("DATABASE_URL", "mysql://u:hunter2@db/x"),
        ("STORAGE_PROVIDER", "gcs"),
        ("COMFYD_QUEUE__LAESE", "5s"),
        ("COMFYUI_HEADERS", "hunter2"),
    ]);
    sources.file = Some(("my.toml".into(), "[queue]\nmax_pendng = 5\nlease = \"5\"\n[quue]\nx = 1\n".into()));
    sources.dotenv = Some("LOG_LEVEL=lots of\nHOST='not an address'\n".into());
    let faults = faults(sources);
    let found = |parts: &[&str]| {
        assert!(faults.iter().any(|f| parts.iter().all(|part| f.contains(part))), "{parts:?} not in {faults:#?}");
    };
    found(&["server.port = \"80a\"", "environment: PORT", "whole number"]);
    found(&["comfyui.urls", "environment: COMFYUI_URL", "http or https"]);
    found(&["store.database_url", "postgres://<user>"]);
    found(&["storage.gcs_bucket_name", "required"]);
    found(&["storage.gcs_credentials", "required"]);
    found(&["COMFYD_QUEUE__LAESE", "did you mean `COMFYD_QUEUE__LEASE`"]);
    found(&["queue.max_pendng", "my.toml", "did you mean `queue.max_pending`"]);
    found(&["queue.lease = \"5\"", "my.toml", "30s, 5m"]);
    found(&["quue", "did you mean"]);
    found(&["LOG_LEVEL", ".env:1", "single quotes"]);
    found(&["server.host", ".env: HOST"]);
    found(&["comfyui.headers = ***"]);
    assert_eq!(faults.len(), 12, "{faults:#?}");
    assert!(!faults.concat().contains("hunter2"));
}

#[test]
fn later_layers_win_and_empty_is_unset() {
    let mut sources =
        env(&[("PORT", "4"), ("COMFYD_SERVER__PORT", "5"), ("HOST", ""), ("COMFYD_PORT", "tcp://10.0.0.1:1")]);
    sources.file = Some(("f.toml".into(), "[server]\nport = 1\nhost = \"::1\"\n[queue]\nlease = \"60s\"".into()));
    sources.dotenv = Some("PORT=3\nCOMFYD_QUEUE__LEASE=90s\nLOG_LEVEL=\n".into());
    let loaded = read(sources);
    assert_eq!(loaded.faults, []);
    assert_eq!(loaded.config.server.port, 5, "the long name wins over the short one of its layer");
    assert_eq!(loaded.config.server.host.to_string(), "::1");
    assert_eq!(loaded.config.queue.lease, Duration::from_secs(90));
    assert_eq!(loaded.config.log.level, "info");
}

#[test]
fn names_of_other_parts_are_known() {
    let mut sources = env(&[("COMFYD_SERVICE_HOST", "10.0.0.1"), ("COMFYD_CONFIG", "x")]);
    sources.dotenv = Some("R2_BUCKET_NAME=b\nAPI_KEYS_REQUIRED=true\nSOMETHING_ELSE=1\nCOMFYUI_ULR=http://x\n".into());
    let loaded = read(sources);
    assert_eq!(loaded.faults, []);
    assert_eq!(loaded.warnings, [".env: COMFYUI_ULR is not known; did you mean COMFYUI_URL?"]);
}

#[test]
fn variables_of_services_are_not_settings() {
    let of_services = [
        ("COMFYD_API_PORT", "tcp://10.0.0.1:8000"),
        ("COMFYD_API_PORT_8000_TCP", "tcp://10.0.0.1:8000"),
        ("COMFYD_API_PORT_8000_TCP_PORT", "8000"),
        ("COMFYD_API_SERVICE_HOST", "10.0.0.1"),
        ("COMFYD_API_SERVICE_PORT_HTTP", "8000"),
        ("COMFYD_PORT_8000_TCP_ADDR", "10.0.0.1"),
    ];
    assert_eq!(read(env(&of_services)).faults, []);
    assert_eq!(faults(env(&[("COMFYD_SERVER_PORT", "9000")])).len(), 1);
}

#[test]
fn lists_and_headers_come_in_either_form() {
    let loaded = read(env(&[
        ("COMFYUI_URL", "http://a:1/, https://u:p@b"),
        ("COMFYUI_HEADERS", "Authorization: Bearer x"),
        ("CORS_ORIGINS", "https://one.example,https://two.example"),
    ]));
    assert_eq!(loaded.faults, []);
    let urls: Vec<String> = loaded.config.comfyui.urls.iter().map(|url| url.expose().to_owned()).collect();
    assert_eq!(urls, ["http://a:1", "https://u:p@b"]);
    assert_eq!(loaded.config.comfyui.headers[0].0, "Authorization");
    assert_eq!(loaded.config.server.cors_origins.len(), 2);
    let file = "[comfyui]\nurls = [\"http://a\", \"http://b\"]\nheaders = { X-Key = \"k\" }";
    let loaded = read(Sources { file: Some(("f".into(), file.into())), ..Sources::default() });
    assert_eq!(loaded.faults, []);
    assert_eq!((loaded.config.comfyui.urls.len(), loaded.config.comfyui.headers.len()), (2, 1));
    let file = "[outbound]\nports = [443, \"8443\"]\nheaders = { \"A.example\" = { X-Key = \"k\" } }";
    let loaded = read(Sources { file: Some(("f".into(), file.into())), ..Sources::default() });
    assert_eq!(loaded.faults, []);
    assert_eq!(loaded.config.outbound.policy.ports, [443, 8443]);
    assert_eq!(loaded.config.outbound.headers["a.example"].len(), 1);
}

#[test]
fn settings_must_agree_with_each_other() {
    for (pairs, word) in [
        (&[("COMFYD_QUEUE__LEASE", "29s")][..], "three times"),
        (&[("COMFYUI_URL", "http://a,http://a/")], "twice"),
        (&[("COMFYUI_URL", " , ")], "at least one"),
        (&[("COMFYD_TASKS__RETRY_CAP", "10ms")], "retry_base"),
        (&[("APP_ENV", "production"), ("DATABASE_URL", "sqlite://:memory:")], "lose all tasks"),
        (&[("APP_ENV", "Production"), ("CORS_ORIGINS", "http://app.example")], "http origins"),
        (&[("APP_ENV", "production"), ("COMFYUI_URL", "http://u:p@comfy.example")], "use https"),
        (&[("CORS_ORIGINS", "*")], "every web page"),
        (&[("COMFYUI_CLIENT_ID", "a b")], "part of a URL"),
        (&[("DATABASE_URL", "redis:///0")], "redis://:<password>@<host>"),
        (&[("COMFYD_STORE__REDIS_PREFIX", "a{b}")], "store.redis_prefix"),
        (&[("DATABASE_URL", "postgres://u:p#x@db/x")], "%40"),
        (&[("COMFYD_STORE__POSTGRES_READERS", "0")], "store.postgres_readers"),
        (&[("LOG_LEVEL", "info,[bad")], "log.level"),
        (&[("OUTBOUND_ALLOW_PRIVATE", "10.0.0.0/8,my-host")], "outbound.allow_private"),
        (&[("COMFYD_OUTBOUND__PORTS", "443,0")], "from 1 to 65535"),
        (&[("COMFYD_OUTBOUND__HOSTS", "https://a.example")], "*.example.org"),
        (&[("COMFYD_OUTBOUND__HEADERS", r#"{"*.example.org": {"A": "b"}}"#)], "one host"),
        (&[("COMFYD_OUTBOUND__HEADERS", "A: b")], "expected JSON"),
        (
            &[
                ("APP_ENV", "production"),
                ("COMFYD_OUTBOUND__HTTP", "true"),
                ("COMFYD_OUTBOUND__HEADERS", r#"{"a": {"A": "b"}}"#),
            ],
            "anybody on the way",
        ),
        (&[("WEBHOOK_URL", "http://hooks.example/x")], "only https"),
        (&[("WEBHOOK_SECRETS", "whsec_c2hvcnQ=")], "openssl rand"),
        (&[("COMFYD_WEBHOOKS__EVENTS", "task.complete")], "did you mean `task.completed`"),
        (&[("COMFYD_WEBHOOKS__SCHEDULE", "5s,31d")], "at most 30 days"),
        (&[("APP_ENV", "production"), ("WEBHOOK_URL", "https://hooks.example/x")], "forged"),
    ] {
        let faults = faults(env(pairs));
        assert!(faults.len() == 1 && faults[0].contains(word), "{pairs:?}: {faults:?}");
    }
}

#[test]
fn production_logs_json_unless_told() {
    let format = |pairs: &[(&str, &str)]| read(env(pairs)).config.log.format;
    assert_eq!(format(&[]), Format::Text);
    assert_eq!(format(&[("APP_ENV", "production")]), Format::Json);
    assert_eq!(format(&[("APP_ENV", "production"), ("COMFYD_LOG__FORMAT", "text")]), Format::Text);
}

#[test]
fn nothing_printed_holds_a_secret() {
    let mut sources = env(&[
        ("COMFYUI_URL", "http://a,https://u:hunter2@b"),
        ("COMFYUI_HEADERS", "Authorization: hunter2"),
        ("DATABASE_URL", "rediss://u:hunter2@db/0?key=hunter2"),
        ("COMFYD_OUTBOUND__HEADERS", r#"{"a.example": {"Authorization": "hunter2"}}"#),
        ("WEBHOOK_URL", "https://hooks.example/hunter2?token=hunter2"),
        ("WEBHOOK_SECRETS", "whsec_hunter2"),
    ]);
    sources.dotenv = Some("SECRET=hunter2 hunter2\n".into());
    sources.file = Some(("f".into(), "[comfyui]\nheaders = { A = \"hunter2\n".into()));
    let loaded = read(sources);
    let mut out = Vec::new();
    check::print(&mut out, &loaded).unwrap();
    let all = format!("{}{:?}{:?}", String::from_utf8(out).unwrap(), loaded.config, loaded.faults);
    assert!(!all.contains("hunter2"), "{all}");
    assert!(all.contains("APP_ENV, COMFYD_APP__ENV"));
}

#[test]
fn a_public_address_is_warned_of() {
    assert!(public_address_warning(&read(Sources::default()).config.server).is_none());
    let warning = public_address_warning(&read(env(&[("HOST", "0.0.0.0")])).config.server).unwrap();
    assert!(warning.contains("HOST=127.0.0.1"));
}

#[test]
fn targets_are_built_from_names_and_from_tables() {
    let mut sources = env(&[
        ("STORAGE_PROVIDER", "r2"),
        ("R2_BUCKET_NAME", "outputs"),
        ("R2_ACCOUNT_ID", "abc"),
        ("R2_ACCESS_KEY", "k"),
        ("R2_SECRET_KEY", "hunter2"),
        ("R2_PUBLIC_DOMAIN", "cdn.example.org"),
        ("COMFYD_STORAGE__OTHERS", "archive"),
        ("COMFYD_STORAGE__PREFIX", "/a/b/"),
        // Meant for another program: no bucket, no target.
        ("S3_ACCESS_KEY_ID", "x"),
    ]);
    let table = "[storage.targets.archive]\nprovider = \"local\"\ndir = \"/archive\"\nprefix = \"old\"\n";
    sources.file = Some(("my.toml".into(), table.into()));
    let loaded = read(sources);
    assert_eq!(loaded.faults, []);
    let storage = loaded.config.storage;
    assert_eq!(storage.targets.keys().collect::<Vec<_>>(), ["archive", "local", "r2"]);
    let TargetConfig { kind: TargetKind::S3(bucket), prefix, others } = &storage.targets["r2"] else { panic!() };
    assert_eq!((prefix.as_str(), others.as_deref()), ("a/b", Some("archive")));
    assert_eq!(bucket.endpoint.as_deref(), Some("https://abc.r2.cloudflarestorage.com"));
    assert_eq!((bucket.region.as_str(), bucket.public_url.as_deref()), ("auto", Some("https://cdn.example.org")));
    assert_eq!(storage.targets["archive"].kind, TargetKind::Local { dir: "/archive".into() });
    let mut shown = Vec::new();
    check::print(&mut shown, &read(env(&[("R2_SECRET_KEY", "hunter2"), ("COMFYD_STORAGE__TARGETS", "{hunter2")])))
        .unwrap();
    assert!(!String::from_utf8(shown).unwrap().contains("hunter2"));
}

#[test]
fn every_fault_of_a_target_names_its_field() {
    for (pairs, key, words) in [
        (&[("STORAGE_PROVIDER", "cf_image")][..], "storage.provider", "did you mean `cf_images`"),
        (&[("STORAGE_PROVIDER", "s3"), ("S3_BUCKET_NAME", "b")], "storage.s3_secret_access_key", "required"),
        (&[("STORAGE_PROVIDER", "s3"), ("S3_ENDPOINT_URL", "ftp://x")], "storage.s3_endpoint_url", "http or https"),
        (&[("STORAGE_PROVIDER", "cf_images"), ("CF_IMAGES_VARIANTS", "a b")], "storage.cf_images_variants", "variants"),
        (&[("COMFYD_STORAGE__FALLBACK", "archive")], "storage.fallback", "archive"),
        (&[("COMFYD_STORAGE__FALLBACK", "local")], "storage.fallback", "another"),
        (&[("COMFYD_STORAGE__PREFIX", "../x")], "storage.prefix", "prefix"),
        (&[("COMFYD_STORAGE__TARGETS", "{\"A b\": {}}")], "storage.targets", "lowercase"),
        (&[("COMFYD_STORAGE__TARGETS", "{\"a\": {}}")], "storage.targets", "a.provider"),
        (&[("COMFYD_STORAGE__TARGETS", "{\"a\": {\"provider\": \"x\"}}")], "storage.targets", "expected local"),
        (
            &[("COMFYD_STORAGE__TARGETS", "{\"a\": {\"provider\": \"r2\", \"bucketname\": \"x\"}}")],
            "storage.targets",
            "bucket_name",
        ),
        (
            &[("COMFYD_STORAGE__TARGETS", "{\"a\": {\"provider\": \"local\", \"dir\": \"/x\", \"others\": \"b\"}}")],
            "storage.targets",
            "a.others",
        ),
    ] {
        let faults = faults(env(pairs));
        assert!(faults.iter().any(|fault| fault.starts_with(key) && fault.contains(words)), "{pairs:?}: {faults:#?}");
    }
}
