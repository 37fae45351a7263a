# What `.ci/run` runs.
check:
    .ci/run

test:
    cargo test --workspace

demo:
    cargo run --release --bin demo

bench *arguments:
    cargo run --release --bin bench -- {{arguments}}

simulate *arguments:
    cargo run --release --bin simulate -- {{arguments}}
