//! Adapters of the `ObjectStore` port: where outputs are kept.

mod folders;
pub mod local;

#[cfg(test)]
mod local_tests;

use comfyd_actors::ports::object_store::ObjectError;

/// Longest key, the limit of S3 and of what fits a path comfortably.
const MAX_KEY: usize = 1024;
/// Longest part of a key, the limit of a file name.
const MAX_PART: usize = 255;

/// Checks that a key is one of ours: ASCII letters, digits, `. _ -`, in parts set apart by single slashes. No adapter hands
/// on another, so no key can leave its folder or bucket prefix.
///
/// # Errors
/// `Refused`.
pub fn check_key(key: &str) -> Result<(), ObjectError> {
    let plain = |part: &str| {
        !matches!(part, "" | "." | "..")
            && part.len() <= MAX_PART
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
    };
    if key.len() <= MAX_KEY && key.split('/').all(plain) {
        Ok(())
    } else {
        Err(ObjectError::Refused("the key holds characters or parts that keys must not have".to_owned()))
    }
}
