//! Uploads and downloads: trace 11.

use reqwest::multipart::{Form, Part};
use serde_json::{Value as Json, json};

use crate::client::Rig;

async fn upload(rig: &Rig, name: &str, bytes: &[u8], fields: &[(&str, &str)]) -> reqwest::Response {
    let part = Part::bytes(bytes.to_vec()).file_name(name.to_owned());
    let form = fields.iter().fold(Form::new(), |form, (key, value)| form.text((*key).to_owned(), (*value).to_owned()));
    rig.http.post(rig.url("/upload/image")).multipart(form.part("image", part)).send().await.expect("an answer")
}

async fn stored_name(rig: &Rig, name: &str, bytes: &[u8], fields: &[(&str, &str)]) -> Json {
    upload(rig, name, bytes, fields).await.json().await.expect("JSON")
}

/// A picture the fake itself made.
async fn some_png(rig: &Rig) -> Vec<u8> {
    let id = rig.run(crate::client::simple(1), "me").await;
    rig.wait_finished(&id).await;
    rig.get("/view?filename=simple_00001_.png&subfolder=lab").await.bytes().await.expect("bytes").to_vec()
}

#[tokio::test]
async fn taken_names_get_a_number_unless_the_bytes_are_the_same() {
    let rig = Rig::new().await;
    let named = |name: &str| json!({"name": name, "subfolder": "", "type": "input"});
    assert_eq!(stored_name(&rig, "a.png", b"one", &[]).await, named("a.png"));
    assert_eq!(stored_name(&rig, "a.png", b"one", &[]).await, named("a.png"));
    assert_eq!(stored_name(&rig, "a.png", b"two", &[]).await, named("a (1).png"));
    assert_eq!(stored_name(&rig, "a.png", b"two", &[]).await, named("a (1).png"));
    assert_eq!(stored_name(&rig, "a.png", b"three", &[("overwrite", "true")]).await, named("a.png"));
    assert_eq!(rig.get("/view?filename=a.png&type=input").await.bytes().await.expect("bytes"), "three");
    let elsewhere = stored_name(&rig, "a.png", b"one", &[("subfolder", "x/y"), ("type", "temp")]).await;
    assert_eq!(elsewhere, json!({"name": "a.png", "subfolder": "x/y", "type": "temp"}));
    assert_eq!(stored_name(&rig, "bild-ä-日本.png", b"one", &[]).await, named("bild-ä-日本.png"));
}

#[tokio::test]
async fn bad_uploads_are_refused_as_recorded() {
    let rig = Rig::new().await;
    assert_eq!(upload(&rig, "a.png", b"x", &[("subfolder", "../..")]).await.status(), 400);
    assert_eq!(upload(&rig, "a.png", b"x", &[("type", "nonsense")]).await.status(), 500);
    assert_eq!(upload(&rig, "", b"x", &[]).await.status(), 500);
    assert_eq!(upload(&rig, &"n".repeat(300), b"x", &[]).await.status(), 500);
    let form = Form::new().text("other", "x");
    let answer = rig.http.post(rig.url("/upload/image")).multipart(form).send().await.expect("an answer");
    assert_eq!(answer.status(), 400);
    assert_eq!(rig.post("/upload/image", &json!({"image": "x"})).await.status(), 400);
}

#[tokio::test]
async fn bodies_above_the_limit_are_refused() {
    let config = fake_comfyui::FakeConfig { max_body: 10_000, ..fake_comfyui::FakeConfig::default() };
    let rig = Rig::with(config).await;
    let answer = upload(&rig, "a.bin", &vec![0; 20_000], &[]).await;
    assert_eq!(answer.status(), 413);
    assert_eq!(answer.text().await.expect("text"), "Maximum request body size 10000 exceeded.");
}

#[tokio::test]
async fn masks_need_a_reference() {
    let rig = Rig::new().await;
    let post =
        async |form: Form| rig.http.post(rig.url("/upload/mask")).multipart(form).send().await.expect("an answer");
    let part = || Part::bytes(b"mask".to_vec()).file_name("m.png");
    assert_eq!(post(Form::new().part("image", part())).await.status(), 500);
    let form = Form::new().part("image", part()).text("original_ref", r#"{"filename": "none.png"}"#);
    assert_eq!(post(form).await.status(), 200);
}

#[tokio::test]
async fn views_follow_the_recorded_rules() {
    let rig = Rig::new().await;
    stored_name(&rig, "a.png", b"0123456789abcdef", &[]).await;
    stored_name(&rig, "a.png", b"0123456789abcdef", &[("subfolder", "x/y")]).await;
    stored_name(&rig, "page.html", b"<script>", &[]).await;
    for (query, status) in [
        ("filename=a.png&type=input", 200),
        ("filename=a.png%20[input]", 200),
        ("filename=a.png&type=input&subfolder=x/y", 200),
        ("filename=a.png&type=input&subfolder=x%2Fy", 200),
        ("filename=q/a.png&type=input", 200),
        ("filename=a.png", 404),
        ("filename=a.png&type=input&subfolder=../output", 403),
        ("filename=a.png&type=input&subfolder=/etc", 403),
        ("filename=../main.py&type=input", 400),
        ("filename=/etc/passwd&type=input", 400),
        ("filename=&type=input", 400),
        ("filename=a.png&type=nonsense", 400),
        ("filename=a%00b&type=input", 404),
        ("type=input", 404),
        ("", 404),
        ("filename=a.png&type=input&preview=webp", 500),
    ] {
        assert_eq!(rig.get(&format!("/view?{query}")).await.status(), status, "{query}");
    }
    let page = rig.get("/view?filename=page.html&type=input").await;
    assert_eq!(page.headers()["content-type"], "application/octet-stream");
    assert!(page.headers()["content-disposition"].to_str().expect("text").starts_with("attachment"));

    let url = rig.url("/view?filename=a.png&type=input");
    let part = rig.http.get(&url).header("Range", "bytes=4-7").send().await.expect("an answer");
    assert_eq!(part.status(), 206);
    assert_eq!(part.headers()["content-range"], "bytes 4-7/16");
    let etag = part.headers()["etag"].clone();
    assert_eq!(part.bytes().await.expect("bytes"), "4567");
    let same = rig.http.get(&url).header("If-None-Match", etag).send().await.expect("an answer");
    assert_eq!(same.status(), 304);
    let head = rig.http.head(&url).send().await.expect("an answer");
    assert_eq!((head.status().as_u16(), head.headers()["content-length"].to_str().expect("text")), (200, "16"));
    let beyond = rig.http.get(&url).header("Range", "bytes=99-").send().await.expect("an answer");
    assert_eq!(beyond.status(), 416);
}

#[tokio::test]
async fn uploaded_pictures_can_be_loaded_scaled_and_inverted() {
    let rig = Rig::new().await;
    let png = some_png(&rig).await;
    stored_name(&rig, "in.png", &png, &[("subfolder", "a/b")]).await;
    let graph = json!({
        "1": {"class_type": "LoadImage", "inputs": {"image": "a/b/in.png"}},
        "2": {"class_type": "ImageScale", "inputs": {"image": ["1", 0], "upscale_method": "bilinear", "width": 20,
            "height": 0, "crop": "disabled"}},
        "3": {"class_type": "ImageInvert", "inputs": {"image": ["2", 0]}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "out"}},
    });
    let id = rig.run(graph, "me").await;
    rig.wait_finished(&id).await;
    let bytes = rig.get("/view?filename=out_00001_.png").await.bytes().await.expect("bytes");
    let image = image::load_from_memory(&bytes).expect("a picture").to_rgb8();
    assert_eq!(image.dimensions(), (20, 20));
    // The original is colour 1: nearly black with a little blue.
    assert_eq!(image.get_pixel(10, 10).0, [255, 255, 254]);
}

#[tokio::test]
async fn what_is_not_a_picture_fails_when_it_runs() {
    let rig = Rig::new().await;
    stored_name(&rig, "text.png", b"hello", &[]).await;
    let graph = json!({
        "1": {"class_type": "LoadImage", "inputs": {"image": "text.png"}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    });
    let id = rig.run(graph, "me").await;
    rig.wait_finished(&id).await;
    let entry = rig.history(&id).await.expect("history");
    assert_eq!(entry["status"]["messages"][2][1]["exception_type"], "PIL.UnidentifiedImageError");
}

#[tokio::test]
async fn generated_files_are_the_same_by_range_and_as_a_whole() {
    let rig = Rig::new().await;
    let graph = json!({"1": {"class_type": "FakeBytes", "inputs": {"bytes": 1_000_003, "count": 2, "seed": 9, "extension": "bin"}}});
    let id = rig.run(graph, "me").await;
    rig.wait_finished(&id).await;
    let url = rig.url("/view?filename=fake_00002_.bin");
    let whole = rig.http.get(&url).send().await.expect("an answer").bytes().await.expect("bytes");
    assert_eq!(whole.len(), 1_000_003);
    let part = rig.http.get(&url).header("Range", "bytes=500001-500100").send().await.expect("an answer");
    assert_eq!(part.bytes().await.expect("bytes"), whole.slice(500_001..500_101));
    let other = rig.get("/view?filename=fake_00001_.bin").await.bytes().await.expect("bytes");
    assert_ne!(other, whole);
}
