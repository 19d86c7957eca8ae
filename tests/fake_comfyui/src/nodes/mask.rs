//! The nodes that make and change masks.

use image::{DynamicImage, GrayImage, Luma};

use super::image::{MAX_SIDE, decode, file};
use super::{Failure, Product, Stop, Value, compute, values};
use crate::worker::step::Step;

/// What a picture without the channel has: nothing is meant, in the size ComfyUI gives it.
const NOTHING: u32 = 64;

pub(super) async fn load(step: &mut Step<'_>) -> Result<Product, Stop> {
    let file = file(step)?;
    let channel = step.text("channel");
    let mask = compute(false, move || Ok(of_channel(&decode(&file)?, &channel))).await?;
    Ok(values([Value::Mask(mask.into())]))
}

/// One channel as a mask. What is transparent is meant, so alpha counts the other way round.
pub(super) fn of_channel(image: &DynamicImage, channel: &str) -> GrayImage {
    let index = match channel {
        "red" => 0,
        "green" => 1,
        "blue" => 2,
        _ if image.color().has_alpha() => 3,
        _ => return GrayImage::new(NOTHING, NOTHING),
    };
    let pixels = image.to_rgba8();
    GrayImage::from_fn(pixels.width(), pixels.height(), |x, y| {
        let value = pixels.get_pixel(x, y).0[index];
        Luma([if index == 3 { 255 - value } else { value }])
    })
}

/// Grows, or with a negative number shrinks, what is white, by so many pixels in each direction.
pub(super) async fn grow(step: &mut Step<'_>) -> Result<Product, Stop> {
    let mask = of(step, "mask")?;
    let expand = step.int("expand", 0);
    let far = u32::try_from(expand.unsigned_abs()).unwrap_or(MAX_SIDE).min(MAX_SIDE);
    let grown = compute(false, move || {
        let across = spread(&mask, far, expand > 0, |a, b| (a, b));
        Ok(spread(&across, far, expand > 0, |a, b| (b, a)))
    })
    .await?;
    Ok(values([Value::Mask(grown.into())]))
}

/// The greatest (or least) value within reach along one axis; `place` says which of the two numbers is x.
fn spread(mask: &GrayImage, far: u32, greatest: bool, place: fn(u32, u32) -> (u32, u32)) -> GrayImage {
    let (along, lines) = place(mask.width(), mask.height());
    let mut result = mask.clone();
    for line in 0..lines {
        let at = |position: u32| {
            let (x, y) = place(position, line);
            mask.get_pixel(x, y).0[0]
        };
        // Distance to the last pixel that decides, from the left and then from the right.
        let mut decides = vec![u32::MAX; along as usize];
        let target = |value: u8| if greatest { value > 127 } else { value <= 127 };
        for positions in [(0..along).collect::<Vec<_>>(), (0..along).rev().collect()] {
            let mut distance = u32::MAX;
            for position in positions {
                distance = if target(at(position)) { 0 } else { distance.saturating_add(1) };
                let nearest = &mut decides[position as usize];
                *nearest = (*nearest).min(distance);
            }
        }
        for position in 0..along {
            if decides[position as usize] <= far && !target(at(position)) {
                let (x, y) = place(position, line);
                result.put_pixel(x, y, Luma([if greatest { 255 } else { 0 }]));
            }
        }
    }
    result
}

pub(super) fn of(step: &Step<'_>, name: &str) -> Result<std::sync::Arc<GrayImage>, Stop> {
    match step.inputs.get(name) {
        Some(Value::Mask(mask)) => Ok(mask.clone()),
        _ => Err(Failure::new("AttributeError", "'NoneType' object has no attribute 'reshape'").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_grows_and_shrinks() {
        let dot = GrayImage::from_fn(7, 7, |x, y| Luma([if (x, y) == (3, 3) { 255 } else { 0 }]));
        let white = |mask: &GrayImage| mask.pixels().filter(|pixel| pixel.0[0] == 255).count();
        let both = |mask: &GrayImage, far, greatest| {
            spread(&spread(mask, far, greatest, |a, b| (a, b)), far, greatest, |a, b| (b, a))
        };
        let grown = both(&dot, 2, true);
        assert_eq!(white(&grown), 25);
        assert_eq!(both(&grown, 2, false), dot);
        assert_eq!(both(&dot, 0, true), dot);
    }
}
