//! Without this a new migration would not be noticed: `sqlx::migrate!` reads the folder while compiling.

fn main() {
    println!("cargo:rerun-if-changed=src/store/migrations");
}
