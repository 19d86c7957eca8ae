//! What operators write.

use super::{Sources, read, values};
use crate::fuzz::{Target, text};

pub const TARGETS: &[Target] = &[Target {
    name: "config",
    run: config,
    seeds: &[
        b"[server]\nport = 9000\nbody_limit = \"1MiB\"\n[comfyui]\nurls = [\"http://u:pw@h:1\"]\nheaders = { \"X-A\" = \"b\" }\n[queue]\nlease = \"1h 30m\"",
        b"COMFYUI_URL=http://a,http://b\nCOMFYUI_HEADERS='Name: value; Other: value'\nPORT=8000\nCOMFYD_QUEUE__LEASE=5s\nAPP_ENV=production",
        b"http://user:secret@host/path?token=secret",
        b"99999999999999GiB",
        b"{\"X\": \"y\"}",
    ],
}];

/// Settings that hold passwords, by their names in the environment.
const SECRET: [&str; 4] = ["COMFYUI_URL", "COMFYUI_HEADERS", "DATABASE_URL", "CORS_ORIGINS"];
const PLAIN: [&str; 3] = ["COMFYD_PASSTHROUGH__ALLOW", "COMFYD_QUEUE__LEASE", "COMFYD_SERVER__BODY_LIMIT"];

/// Every text is a configuration or has faults, and no fault tells a password.
fn config(data: &[u8]) {
    let text = text(data).into_owned();
    let env = |names: &[&str]| {
        let env = names.iter().map(|name| ((*name).to_owned(), text.clone())).collect();
        read(Sources { env, ..Sources::default() })
    };
    let told: String = env(&SECRET).faults.iter().map(ToString::to_string).collect();
    assert!(!told.contains("secret@"), "{told}");
    let _ = env(&PLAIN);
    let _ = read(Sources { dotenv: Some(text.clone()), ..Sources::default() });
    let _ = read(Sources { file: Some(("x.toml".to_owned(), text.clone())), ..Sources::default() });
    let _ = (values::size(&text), values::headers(&text), values::origin(&text), values::public_url(&text));
    assert!(!values::redact(&format!("http://u:secret@{text}")).contains("u:secret@"), "{text}");
}
