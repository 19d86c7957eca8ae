//! The adapters of comfyd and what ties them together: everything here does I/O, everything that decides is in `comfyd_actors`.

pub mod store;
