//! Uploads: a file handed to the server, chunk by chunk, and the name a graph must use for it (protocol 9).

use std::time::Duration;

use comfyd_actors::{
    domain::artifact::FileRef,
    ports::comfy::{Upload, UploadError},
};
use futures_util::StreamExt;
use reqwest::{
    Body, Method, StatusCode,
    multipart::{Form, Part},
};
use serde::Deserialize;
use tokio::sync::watch;

use super::{
    http::{Answer, Fault, Http},
    json::relaxed,
    redact,
};

/// The folder below the server's `input`: ours, so that nobody's own files get in the way and all of ours can be removed at once.
const FOLDER: &str = "comfyd";

/// What the server calls the file.
#[derive(Deserialize)]
struct Stored {
    name: String,
    #[serde(default)]
    subfolder: String,
    #[serde(rename = "type", default = "input")]
    folder: String,
}

fn input() -> String {
    "input".to_owned()
}

/// Sends the file. No limit on the whole, as files may be large and links slow; `idle` limits each silence, `answer` the wait for the
/// answer once everything is sent.
pub(super) async fn upload(
    http: &Http,
    upload: Upload,
    idle: Duration,
    answer: Duration,
) -> Result<String, UploadError> {
    let Upload { name, content_type, bytes, body } = upload;
    let (pulse, mut beats) = watch::channel(());
    let body = body.inspect(move |_| _ = pulse.send(()));
    let part = Part::stream_with_length(Body::wrap_stream(body), bytes)
        .file_name(name)
        .mime_str(&content_type)
        .map_err(|_| UploadError::Refused("its media type is not one".to_owned()))?;
    let form = Form::new().text("type", "input").text("subfolder", FOLDER).part("image", part);
    let sending = http.send(http.request(Method::POST, http.url(&["upload", "image"])).multipart(form));
    tokio::pin!(sending);
    let answered = loop {
        tokio::select! {
            answered = &mut sending => break answered,
            beat = tokio::time::timeout(idle, beats.changed()) => match beat {
                Ok(Ok(())) => {}
                // The body is sent, or given up: the server's turn.
                Ok(Err(_)) => {
                    let late = || Err(Fault::Broken("no answer in time".to_owned()));
                    break tokio::time::timeout(answer, &mut sending).await.unwrap_or_else(|_| late());
                }
                Err(_) => break Err(Fault::Broken("the server stopped taking it".to_owned())),
            },
        }
    };
    let Answer { status, body } = answered.map_err(|fault| UploadError::Unavailable(fault.to_string()))?;
    verdict(status, body)
}

fn verdict(status: StatusCode, body: Result<String, Fault>) -> Result<String, UploadError> {
    let unavailable = |why: String| Err(UploadError::Unavailable(why));
    match status {
        StatusCode::OK => match body.map(|text| serde_json::from_str::<Stored>(&relaxed(&text))) {
            Ok(Ok(stored)) => graph_name(stored),
            _ => unavailable("the answer to the upload is not ComfyUI's".to_owned()),
        },
        StatusCode::PAYLOAD_TOO_LARGE => {
            let said = redact::text(body.unwrap_or_default().lines().next().unwrap_or_default().trim());
            Err(UploadError::Refused(format!(
                "it is larger than the server takes. {said} Start ComfyUI with a larger --max-upload-size"
            )))
        }
        StatusCode::BAD_REQUEST => Err(UploadError::Refused("the server answered 400".to_owned())),
        // A proxy's words, or a server that is not well: neither says anything about the file.
        status => unavailable(format!("the server answered {status}")),
    }
}

/// How a graph names the file.
fn graph_name(stored: Stored) -> Result<String, UploadError> {
    let Stored { name, subfolder, folder } = stored;
    let file = FileRef { filename: name, subfolder, folder_type: folder };
    if !file.is_safe() {
        return Err(UploadError::Unavailable("the server stored the file under a name that cannot be used".to_owned()));
    }
    let FileRef { filename, subfolder, folder_type } = file;
    let path = if subfolder.is_empty() { filename } else { format!("{subfolder}/{filename}") };
    Ok(if folder_type == "input" { path } else { format!("{path} [{folder_type}]") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status: u16, body: &str) -> Result<String, UploadError> {
        verdict(StatusCode::from_u16(status).unwrap(), Ok(body.to_owned()))
    }

    #[test]
    fn the_name_is_the_servers() {
        for (body, name) in [
            (r#"{"name": "a (1).png", "subfolder": "comfyd", "type": "input"}"#, "comfyd/a (1).png"),
            (r#"{"name": "a.png", "subfolder": "", "type": "temp"}"#, "a.png [temp]"),
            (r#"{"name": "a.png"}"#, "a.png"),
        ] {
            assert_eq!(answered(200, body), Ok(name.to_owned()));
        }
        for body in [r#"{"name": "../a"}"#, r#"{"name": ""}"#, "<html>", "{}"] {
            assert!(matches!(answered(200, body), Err(UploadError::Unavailable(_))), "{body}");
        }
    }

    #[test]
    fn only_what_is_about_the_file_refuses_it() {
        let large = answered(413, "Maximum request body size 104857600 exceeded.");
        assert!(
            matches!(large, Err(UploadError::Refused(why)) if why.contains("104857600") && why.contains("--max-upload-size"))
        );
        assert!(matches!(answered(400, ""), Err(UploadError::Refused(_))));
        for status in [401, 403, 404, 500, 502] {
            assert!(matches!(answered(status, ""), Err(UploadError::Unavailable(_))), "{status}");
        }
    }
}
