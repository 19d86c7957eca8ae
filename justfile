# `just` lists what there is.
_default:
    @just --list

# Everything the CI checks, tests included.
ci:
    ./.ci/run

# The checks without the tests.
check:
    cargo fmt --all --check
    cargo clippy --locked --workspace --all-targets --all-features -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --all-features --no-deps

# All tests, or those with FILTER in their name.
test *FILTER:
    ./tests/run {{ FILTER }}

# The main job on embedded defaults, with the built-in fake ComfyUI.
demo:
    cargo run --locked -- demo

# Licences, sources and banned crates of everything we depend on. Needs cargo-deny, no internet.
deny:
    cargo deny --offline check bans licenses sources

# Builds the image and tries it with whatever engine is there; with BINARY, a binary that is there already.
smoke *BINARY:
    ./docker/smoke {{ BINARY }}
