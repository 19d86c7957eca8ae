//! The nodes this server has: their schemas (what `/object_info` says and validation checks) and what they do.

mod bytes;
pub(crate) mod classes;
mod clips;
pub(crate) mod expand;
mod image;
mod lab;
mod mask;
mod sampling;
mod schema;
mod text;

use std::sync::Arc;
use std::time::Duration;

use ::image::{GrayImage, RgbImage};
use serde_json::Value as Json;

pub(crate) use schema::{InputSpec, Kind, Lists, NodeClass};

use crate::worker::step::Step;

/// The classes one server has.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Installed<'a> {
    /// Not these.
    pub missing: &'a [String],
    /// Each this many times more, as `SaveImage.1` and so on.
    pub copies: usize,
}

impl Installed<'_> {
    /// The class of this name.
    pub fn find(&self, name: &str) -> Option<&'static NodeClass> {
        let copied = name.rsplit_once('.').filter(|(_, n)| n.parse().is_ok_and(|n| (1..=self.copies).contains(&n)));
        let original = copied.map_or(name, |(original, _)| original);
        classes::all()
            .find(|class| class.name == original)
            .filter(|_| !self.missing.iter().any(|missing| missing == name))
    }

    /// All of them by name.
    pub fn all(&self) -> impl Iterator<Item = (String, &'static NodeClass)> {
        let copies = |class: &'static NodeClass| (1..=self.copies).map(move |n| (format!("{}.{n}", class.name), class));
        let there = classes::all().filter(|class| !self.missing.iter().any(|missing| missing == class.name));
        there.flat_map(move |class| std::iter::once((class.name.to_owned(), class)).chain(copies(class)))
    }
}

/// A batch of pictures on its way between nodes.
pub(crate) type Images = Arc<Vec<RgbImage>>;

/// What flows along a link.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Images(Images),
    /// White is what is meant.
    Mask(Arc<GrayImage>),
    Model,
    /// How many times larger it makes a picture.
    UpscaleModel(u32),
    Clip,
    Vae,
    /// The text that conditions a sampler.
    Conditioning(Arc<str>),
    Latent(Arc<sampling::Latent>),
    Audio,
    Video,
    Text(Arc<str>),
}

/// What a node hands back.
#[derive(Debug, Default)]
pub(crate) struct Product {
    /// One value per output slot.
    pub values: Vec<Value>,
    /// What an output node shows: the `output` of `executed` and of history.
    pub ui: Option<Json>,
    /// The subgraph it expanded into: what its nodes show, in the order they run.
    pub children: Vec<Option<Json>>,
}

/// An exception in a node.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub exception_type: String,
    pub message: String,
}

impl Failure {
    pub fn new(exception_type: &str, message: impl Into<String>) -> Self {
        Self { exception_type: exception_type.to_owned(), message: message.into() }
    }

    pub fn out_of_memory() -> Self {
        Self::new(
            "torch.OutOfMemoryError",
            "Allocation on device\nThis error means you ran out of memory on your GPU.\n\nTIPS: If the workflow worked before \
             you might have accidentally set the batch_size to a large number.",
        )
    }
}

/// Why a node did not finish.
#[derive(Debug)]
pub(crate) enum Stop {
    Interrupted,
    Failed(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// What a node class does when it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    EmptyImage,
    LoadImage,
    LoadImageMask,
    ImageScale,
    ImageScaleBy,
    GrowMask,
    LoadUpscaleModel,
    UpscaleWithModel,
    ImageInvert,
    ImageBlur,
    SaveImage,
    PreviewImage,
    LoadCheckpoint,
    LoadLora,
    LoadDiffusionModel,
    LoadTextEncoder,
    LoadVae,
    ShiftSampling,
    EncodeText,
    EmptyLatent,
    EmptyVideoLatent,
    Sample,
    Decode,
    Encode,
    EncodeForInpaint,
    SetNoiseMask,
    SlowProgress,
    Fail,
    OutOfMemory,
    Hang,
    TextOut,
    PreviewAny,
    SaveText,
    Gifs,
    EmptyAudio,
    SaveAudio(&'static str),
    PreviewAudio,
    CreateVideo,
    SaveVideo(&'static str),
    SaveAnimatedWebp,
    SaveAnimatedPng,
    SaveLatent,
    SendImages,
    Expand,
    Bytes,
}

/// Runs a node.
pub(crate) async fn run(work: Work, step: &mut Step<'_>) -> Result<Product, Stop> {
    match work {
        Work::EmptyImage => image::empty(step).await,
        Work::LoadImage => image::load(step).await,
        Work::LoadImageMask => mask::load(step).await,
        Work::GrowMask => mask::grow(step).await,
        Work::ImageScale => image::scale(step).await,
        Work::ImageScaleBy => image::scale_by(step).await,
        Work::LoadUpscaleModel => image::load_upscale_model(step),
        Work::UpscaleWithModel => image::upscale(step).await,
        Work::ImageInvert => image::invert(step).await,
        Work::ImageBlur => image::blur(step).await,
        Work::SaveImage => image::save(step).await,
        Work::PreviewImage => image::preview(step).await,
        Work::LoadCheckpoint => Ok(values([Value::Model, Value::Clip, Value::Vae])),
        Work::LoadLora => Ok(values([Value::Model, Value::Clip])),
        Work::LoadDiffusionModel | Work::ShiftSampling => Ok(values([Value::Model])),
        Work::LoadTextEncoder => Ok(values([Value::Clip])),
        Work::LoadVae => Ok(values([Value::Vae])),
        Work::EncodeText => sampling::encode_text(step),
        Work::EmptyLatent => sampling::empty_latent(step),
        Work::EmptyVideoLatent => sampling::empty_video_latent(step),
        Work::Sample => sampling::sample(step).await,
        Work::Decode => sampling::decode(step).await,
        Work::Encode => sampling::encode(step),
        Work::EncodeForInpaint => sampling::encode_for_inpaint(step),
        Work::SetNoiseMask => sampling::set_noise_mask(step),
        Work::SlowProgress => lab::slow_progress(step).await,
        Work::Fail => lab::fail(step),
        Work::OutOfMemory => Err(Failure::out_of_memory().into()),
        Work::Hang => lab::hang(step).await,
        Work::TextOut => text::lab_text_out(step),
        Work::PreviewAny => text::preview_any(step),
        Work::SaveText => text::save_text(step),
        Work::Gifs => lab::gifs(step).await,
        Work::EmptyAudio => Ok(clips::empty_audio()),
        Work::SaveAudio(ending) => clips::save_audio(step, ending),
        Work::PreviewAudio => clips::preview_audio(step),
        Work::CreateVideo => clips::create_video(step),
        Work::SaveVideo(ending) => clips::save_video(step, ending),
        Work::SaveAnimatedWebp => clips::save_animated_webp(step).await,
        Work::SaveAnimatedPng => clips::save_animated_png(step).await,
        Work::SaveLatent => sampling::save_latent(step),
        Work::SendImages => image::send(step).await,
        Work::Expand => expand::expand(step),
        Work::Bytes => bytes::produce(step),
    }
}

pub(crate) fn values<const N: usize>(values: [Value; N]) -> Product {
    Product { values: values.into(), ..Product::default() }
}

/// Does CPU work without holding up the runtime. Work that costs less than the hand-over itself is done on the spot.
pub(crate) async fn compute<T: Send + 'static>(
    cheap: bool,
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Stop> {
    if cheap {
        return Ok(work()?);
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(Failure::new("RuntimeError", "the node's own thread ended early").into()),
    }
}

/// Seconds from outside as a duration; nonsense is zero, and a century is for ever.
pub(crate) fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value.clamp(0.0, 3_153_600_000.0)).unwrap_or_default()
}
